"""Layers with one set of weights per task, for rows of any tasks in any order."""

from lightning_ncmtl.layers.compact import CompactLayer
from lightning_ncmtl.layers.host import on_host, remember, to_device
from lightning_ncmtl.layers.linear import ClusterLinear, TaskLinear, cluster_layers, per_task_layers
from lightning_ncmtl.layers.names import plain_name, uncompiled
from lightning_ncmtl.layers.per_task import PerTask
from lightning_ncmtl.layers.routing import Routing, route
from lightning_ncmtl.layers.task_module import TaskModule

__all__ = [
    "ClusterLinear",
    "CompactLayer",
    "PerTask",
    "Routing",
    "TaskLinear",
    "TaskModule",
    "cluster_layers",
    "on_host",
    "per_task_layers",
    "plain_name",
    "remember",
    "route",
    "to_device",
    "uncompiled",
]
