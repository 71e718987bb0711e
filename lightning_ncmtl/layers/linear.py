"""Layers with one set of weights per task, stacked in one parameter.

Shapes: B batch, N tasks, K clusters.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers._grouped_linear import grouped_linear
from lightning_ncmtl.layers.names import plain_name
from lightning_ncmtl.layers.per_task import PerTask, select_clusters
from lightning_ncmtl.layers.routing import Routing, route
from lightning_ncmtl.layers.whole import is_whole
from lightning_ncmtl.torch_versions import DTensor, distribute_tensor, is_exporting


class TaskLinear(PerTask):
    """A linear layer of its own for every task: a *specific* layer.

    A task that is absent from a batch has zero gradients, not none. So an optimizer with momentum (Adam) or weight
    decay still moves its weights, as it moves those of an embedding.

    Args:
        num_tasks: Number of tasks N.
        in_features: Size of each input row.
        out_features: Size of each output row.
        bias: Whether each task also learns an additive bias.

    Attributes:
        weight: ``[num_tasks, out_features, in_features]``.
        bias: ``[num_tasks, out_features]``, or ``None``.

    Example:
        >>> layer = TaskLinear(num_tasks=3, in_features=4, out_features=2)
        >>> layer(torch.randn(5, 4), torch.tensor([0, 2, 0, 2, 2])).shape
        torch.Size([5, 2])
    """

    bias: nn.Parameter | None

    def __init__(self, num_tasks: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        for name, value in (("num_tasks", num_tasks), ("in_features", in_features), ("out_features", out_features)):
            if not is_whole(value):
                raise InputError(f"{name} must be a whole number from 1, found {value!r}")
        self.num_tasks = num_tasks
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(num_tasks, out_features, in_features))
        if bias:
            self.bias = nn.Parameter(torch.empty(num_tasks, out_features))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, shared: bool = False, generator: torch.Generator | None = None) -> None:
        """Draw new weights, as ``nn.Linear`` does for each task.

        Args:
            shared: Draw once and give every task the same weights (the *shared start*).
            generator: Source of random numbers; the global one by default.
        """
        self.freeze_clusters(None)
        bound = 1 / math.sqrt(self.in_features)
        for parameter in self.parameters(recurse=False):
            start = torch.empty(
                parameter.shape[1:] if shared else parameter.shape,
                dtype=parameter.dtype,
                device=parameter.device if generator is None else generator.device,
            )
            start = start.uniform_(-bound, bound, generator=generator).expand(parameter.shape)
            if isinstance(parameter, DTensor):  # sharded: as the first rank draws for all
                start = distribute_tensor(start, parameter.device_mesh, parameter.placements)
            parameter.copy_(start)

    def forward(self, x: Tensor, task_ids: Tensor | Routing) -> Tensor:
        """Apply to each row the weights of its task.

        Args:
            x: ``[B, in_features]``, in any order of tasks.
            task_ids: ``[B]`` integers in ``0 .. num_tasks - 1``; tasks may be absent. Several layers share the work of
                sorting them when they are given ``route(task_ids, num_tasks)`` instead.

        Returns:
            ``[B, out_features]``, row ``b`` computed with the weights of ``task_ids[b]``.

        Raises:
            InputError: If a task id is out of range, or there is not one for each row.
        """
        ids = task_ids.task_ids if isinstance(task_ids, Routing) else task_ids
        if x.ndim != 2 or ids.shape != x.shape[:1]:
            raise InputError(f"found {list(ids.shape)} task ids for an input of shape {list(x.shape)}")
        if is_exporting():  # plain operations, which run without this package
            out = torch.einsum("boi,bi->bo", self.weight[ids], x)
            return out if self.bias is None else out + self.bias[ids]
        routing, clusters = route(task_ids, self.num_tasks), self.frozen_clusters
        if clusters is None:
            return grouped_linear(x, self.weight, self.bias, routing)
        weight, *bias = select_clusters(clusters, self.weight, *([] if self.bias is None else [self.bias]))
        return grouped_linear(x, weight, bias[0] if bias else None, routing.merge_tasks(clusters.on_host, len(weight)))

    def select_tasks(self, tasks: Sequence[int]) -> "TaskLinear":
        """A layer with the weights of some tasks."""
        result = TaskLinear(len(tasks), self.in_features, self.out_features, self.bias is not None).to(self.weight)
        for mine, theirs in zip(result.parameters(), self.parameters(), strict=True):
            mine.data.copy_(theirs.detach()[list(tasks)])
        return result

    def extra_repr(self) -> str:
        return (
            f"num_tasks={self.num_tasks}, in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class ClusterLinear(TaskLinear):
    """A :class:`TaskLinear` whose tasks are grouped into clusters during training: a *cluster* layer.

    The layer only computes. Which tasks share weights is decided by
    :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback`, which writes equal weights to all tasks of a cluster.
    Once these are frozen, the layer computes with K sets of weights (:meth:`.PerTask.freeze_clusters`).

    All tasks start with the same weights (the shared start), so that weights differ only by what tasks learned.
    This departs from the paper, whose independent random start decides the clusters for good.

    Args:
        num_tasks: Number of tasks N.
        in_features: Size of each input row.
        out_features: Size of each output row.
        num_clusters: Number of clusters K, at most ``num_tasks``, or ``"auto"``: network clustering will tell.
        bias: Whether each task also learns an additive bias.

    Attributes:
        assignment: ``[num_tasks]`` int64: the cluster of each task, ``-1`` before the first clustering. On the CPU, but
            for what a step has found on a GPU, until the next one. It is part of ``state_dict``, but not a buffer, of
            which averages are taken and which DDP broadcasts.

    Raises:
        InputError: If ``num_clusters`` is neither in ``1 .. num_tasks`` nor ``"auto"``.
    """

    def __init__(
        self,
        num_tasks: int,
        in_features: int,
        out_features: int,
        num_clusters: int | Literal["auto"] = "auto",
        bias: bool = True,
    ) -> None:
        super().__init__(num_tasks, in_features, out_features, bias)
        if num_clusters != "auto" and not (is_whole(num_clusters) and num_clusters <= num_tasks):
            raise InputError(
                f"num_clusters must be 'auto' or between 1 and the number of tasks {num_tasks}, found {num_clusters!r}"
            )
        self.num_clusters: int | Literal["auto"] = num_clusters
        self.assignment = torch.full((num_tasks,), -1, device="cpu")
        self.reset_parameters(shared=True)

    def get_extra_state(self) -> Tensor:
        return self.assignment.cpu()

    def set_extra_state(self, state: Any) -> None:
        if isinstance(state, Tensor):  # torch.distributed.checkpoint may have a placeholder
            self.assignment = state.cpu()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_clusters={self.num_clusters}"


def cluster_layers(module: nn.Module) -> dict[str, ClusterLinear]:
    """The :class:`ClusterLinear` layers of a module by their names, whether they are compiled or not."""
    return {plain_name(name): layer for name, layer in module.named_modules() if isinstance(layer, ClusterLinear)}


def per_task_layers(module: nn.Module) -> dict[str, PerTask]:
    """All layers of this package with weights per task, in the same way."""
    return {plain_name(name): layer for name, layer in module.named_modules() if isinstance(layer, PerTask)}
