"""What remains of a layer after training: one set of weights per cluster."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ncmtl.layers.host import on_host
from lightning_ncmtl.layers.linear import TaskLinear
from lightning_ncmtl.layers.routing import Routing, route
from lightning_ncmtl.layers.task_module import TaskModule
from lightning_ncmtl.torch_versions import is_tracing


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
        self.register_buffer("assignment", assignment.to(next(layer.parameters()).device))
        self.clusters: TaskLinear | TaskModule = layer.select_tasks(
            np.unique(assignment.numpy(force=True), return_index=True)[1].tolist()
        )
        self.train(layer.training)

    def forward(self, inputs: Any, task_ids: Tensor | Routing) -> Any:
        """As that of the layer: rows ``[B, ...]`` and ``task_ids [B]`` of the N tasks."""
        routing = route(task_ids, len(self.assignment))  # in range, or the error names what is not
        if not (torch.compiler.is_compiling() or is_tracing()):
            return self.clusters(inputs, routing.merge_tasks(on_host(self.assignment), self.clusters.num_tasks))
        ids = routing.task_ids
        # Compiled, the sorting above is left out, as nothing takes its result; traced, it would be that of the example
        return self.clusters(inputs, self.assignment[ids].where(ids >= 0, -1))
