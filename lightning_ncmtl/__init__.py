"""Network clustering for multi-task learning, on PyTorch Lightning."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ncmtl.callbacks import NetworkClusteringCallback
    from lightning_ncmtl.clustering import KMeansResult, NetworkClustering, kmeans
    from lightning_ncmtl.compaction import compact, count_parameters, load, save
    from lightning_ncmtl.layers import ClusterLinear, Routing, TaskLinear, TaskModule, route
    from lightning_ncmtl.modules import ASPMTL, NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare

__version__ = version("lightning-ncmtl")
__all__ = [
    "ASPMTL",
    "NCMTL",
    "PLE",
    "ClusterLinear",
    "CrossStitch",
    "HardShare",
    "KMeansResult",
    "MMoE",
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

# Imported when they are asked for: layers and clustering need no Lightning, which takes longer than torch
_FOLDERS = {
    "callbacks": ["NetworkClusteringCallback"],
    "clustering": ["KMeansResult", "NetworkClustering", "kmeans"],
    "compaction": ["compact", "count_parameters", "load", "save"],
    "layers": ["ClusterLinear", "Routing", "TaskLinear", "TaskModule", "route"],
    "modules": ["ASPMTL", "NCMTL", "PLE", "CrossStitch", "HardShare", "MMoE", "SingleTask", "SoftShare"],
}


def __getattr__(name: str) -> Any:
    for folder, names in _FOLDERS.items():
        if name in names:
            return getattr(import_module(f"lightning_ncmtl.{folder}"), name)
    raise AttributeError(f"module 'lightning_ncmtl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
