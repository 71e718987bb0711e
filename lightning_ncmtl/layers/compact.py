"""What remains of a layer after training: one set of weights per cluster."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ncmtl.layers.linear import TaskLinear
from lightning_ncmtl.layers.routing import Routing, route
from lightning_ncmtl.layers.task_module import TaskModule


class CompactLayer(nn.Module):
    """A :class:`TaskLinear` or :class:`TaskModule` whose tasks truly share the weights of their cluster.

    Args:
        layer: As training left it. Of each cluster, the weights of its first task are taken over.
        assignment: ``[N]`` integers, the cluster of each task; every one of ``0 .. K - 1`` is there.

    Attributes:
        clusters: A layer of the same kind, with K sets of weights.
        assignment: ``[N]`` buffer.
    """

    assignment: Tensor

    def __init__(self, layer: TaskLinear | TaskModule, assignment: Tensor) -> None:
        super().__init__()
        self.register_buffer("assignment", assignment)
        self.clusters = layer.select_tasks(np.unique(assignment.numpy(force=True), return_index=True)[1].tolist())
        self.train(layer.training)

    def forward(self, inputs: Any, task_ids: Tensor | Routing) -> Any:
        """As that of the layer: rows ``[B, ...]`` and ``task_ids [B]`` of the N tasks."""
        ids = route(task_ids, len(self.assignment)).task_ids  # in range, or the error names what is not
        clusters = self.assignment[ids]
        if torch.compiler.is_compiling():  # where the sorting above is left out, as nothing takes its result
            clusters = clusters.where(ids >= 0, -1)
        return self.clusters(inputs, clusters)
