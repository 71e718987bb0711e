"""Network clustering for multi-task learning, on PyTorch Lightning."""

from importlib.metadata import version

from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.clustering import KMeansResult, NetworkClustering, kmeans
from lightning_ncmtl.compaction import compact, count_parameters, load, save
from lightning_ncmtl.layers import ClusterLinear, Routing, TaskLinear, TaskModule, route
from lightning_ncmtl.modules import ASPMTL, NCMTL, HardShare, SingleTask, SoftShare

__version__ = version("lightning-ncmtl")
__all__ = [
    "ASPMTL",
    "NCMTL",
    "ClusterLinear",
    "HardShare",
    "KMeansResult",
    "NetworkClustering",
    "NetworkClusteringCallback",
    "Routing",
    "SingleTask",
    "SoftShare",
    "TaskLinear",
    "TaskModule",
    "compact",
    "count_parameters",
    "kmeans",
    "load",
    "route",
    "save",
]
