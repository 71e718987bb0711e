"""Layers whose clusters are frozen: K groups of rows and K sets of weights where there were N.

Shapes: N tasks, K clusters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError


class Clusters(NamedTuple):
    """Tasks that have the same weights.

    Attributes:
        of_task: ``[N]``, the cluster of each task, in ``0 .. K - 1``.
        first: ``[K]``, the first task of each cluster.
        sizes: ``[K]``, how many tasks each has.
        on_host: ``of_task`` on the CPU, where rows are sorted; the others are where the weights are.
    """

    of_task: Tensor
    first: Tensor
    sizes: Tensor
    on_host: Tensor


class PerTask(nn.Module):
    """A layer with parameters ``[num_tasks, ...]``.

    Attributes:
        num_tasks: Number of tasks N.
        frozen_clusters: By which it computes; ``None`` if by tasks. Not part of ``state_dict``.
    """

    num_tasks: int
    frozen_clusters: Clusters | None = None

    def freeze_clusters(self, assignment: Tensor | None) -> None:
        """Compute with one set of weights per cluster from now on: K groups of rows instead of N.

        The tasks of a cluster must have equal weights, and keep them:
        :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` calls this once clusters are frozen, and gives them
        the mean of their weights after each step.

        The gradient of a task is then the mean over its cluster, where it was its own. For SGD, with momentum and
        weight decay, the mean of the steps stays the same, unless gradients are clipped. With Adam it does not: the
        tasks of a cluster now move as one set of weights would that they share, and moved by the mean of their steps
        before.

        It ends when a state dict is loaded, of which it is no part, as that may be from before the clustering.

        Args:
            assignment: ``[num_tasks]`` integers, the cluster of each task; ``None`` to compute by tasks again.

        Raises:
            InputError: If there is not a cluster for each task.
        """
        self.frozen_clusters = None
        if assignment is None:
            return
        if assignment.shape != (self.num_tasks,) or assignment.is_floating_point() or assignment.min() < 0:
            raise InputError(
                f"clusters can be frozen once each of the {self.num_tasks} tasks has one, found {assignment.tolist()}"
            )
        found = np.unique(assignment.cpu().numpy(), return_index=True, return_inverse=True, return_counts=True)
        first, of_task, sizes = (torch.from_numpy(values) for values in found[1:])
        if len(first) < self.num_tasks:  # else there is nothing to share
            device = next(self.parameters()).device
            self.frozen_clusters = Clusters(of_task.to(device), first.to(device), sizes.to(device), on_host=of_task)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.frozen_clusters is not None:  # they go where the weights went, once
            self.freeze_clusters(self.frozen_clusters.on_host)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.frozen_clusters = None
        super()._load_from_state_dict(*args, **kwargs)


class _SelectClusters(torch.autograd.Function):
    """The mean over each cluster: as its tasks are equal, that of the first."""

    @staticmethod
    def forward(of_task: Tensor, first: Tensor, sizes: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple([parameter.index_select(0, first) for parameter in parameters])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        of_task, _, sizes, *_ = inputs
        ctx.save_for_backward(of_task, sizes)
        ctx.set_materialize_grads(False)  # a parameter that is not used has no gradient

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        of_task, sizes = ctx.saved_tensors
        means = [None if g is None else g / sizes.view(-1, *[1] * (g.ndim - 1)) for g in grads]
        return None, None, None, *(None if mean is None else mean.index_select(0, of_task) for mean in means)


_apply: Callable[..., tuple[Tensor, ...]] = _SelectClusters.apply


def select_clusters(clusters: Clusters, *parameters: Tensor) -> tuple[Tensor, ...]:
    """``[K, ...]`` of parameters ``[N, ...]``; their gradients go to the tasks of a cluster in equal parts."""
    device = parameters[0].device
    if not torch.is_grad_enabled():  # torch.compile would give forward the context, which it does not take
        return tuple([parameter.index_select(0, clusters.first.to(device)) for parameter in parameters])
    indices = (clusters.of_task, clusters.first, clusters.sizes)  # torch 2.6 and 2.7 do not compile a slice of clusters
    return _apply(*[values.to(device) for values in indices], *parameters)
