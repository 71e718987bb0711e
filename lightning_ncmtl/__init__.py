"""Network clustering for multi-task learning, on PyTorch Lightning."""

from importlib.metadata import version

from lightning_ncmtl.absent_tasks import keep_absent_tasks
from lightning_ncmtl.clustering import KMeansResult, kmeans
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
    "Routing",
    "SingleTask",
    "SoftShare",
    "TaskLinear",
    "TaskModule",
    "compact",
    "count_parameters",
    "keep_absent_tasks",
    "kmeans",
    "load",
    "route",
    "save",
]
