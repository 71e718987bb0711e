"""Any small module with a set of weights per task, stacked in its parameters.

Shapes: B batch, N tasks, K clusters, P tasks that are present, M rows of a task.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map  # what vmap knows as inputs and outputs

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers._cells import PlainCells
from lightning_ncmtl.layers.host import to_device
from lightning_ncmtl.layers.per_task import Clusters, PerTask, select_clusters
from lightning_ncmtl.layers.routing import Routing, route
from lightning_ncmtl.layers.whole import is_whole
from lightning_ncmtl.torch_versions import is_exporting


class TaskModule(PerTask):
    """A module of its own for every task: an MLP, a LayerNorm and a Linear, a GRU cell.

    All tasks start with the weights of the given module (the *shared start*). They compute what a copy for each task
    would, but together, by ``torch.vmap``, and their parameters have the task as first dimension. So
    :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` clusters the layer where it is named in ``targets``,
    and :func:`lightning_ncmtl.compact` leaves one set of weights per cluster.

    The module must treat each row of a batch by itself and keep nothing from batch to batch. ``torch.vmap`` must be
    able to run it, which leaves out ``nn.GRU`` and ``nn.LSTM`` (take cells), and control flow that depends on values.
    Dropout differs from row to row. Autocast does not reach inside of ``torch.vmap``: the layer computes in the type of
    its parameters. For one linear layer, :class:`lightning_ncmtl.TaskLinear` is faster.

    Args:
        module: What a task has. It is copied.
        num_tasks: Number of tasks N.

    Attributes:
        module: The copy, in which every parameter ``[...]`` is one of ``[num_tasks, ...]``. Call it through this layer.

    Raises:
        InputError: If there are no parameters, or some that are tied, of tasks already or as yet without a shape; or if
            rows of a batch depend on each other (BatchNorm) or on batches before.

    Example:
        >>> layer = TaskModule(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), num_tasks=3)
        >>> layer(torch.randn(5, 4), torch.tensor([0, 2, 0, 2, 2])).shape
        torch.Size([5, 2])
        >>> cell = TaskModule(nn.GRUCell(4, 6), num_tasks=3)
        >>> cell((torch.randn(5, 4), torch.zeros(5, 6)), torch.tensor([0, 2, 0, 2, 2])).shape
        torch.Size([5, 6])
    """

    def __init__(self, module: nn.Module, num_tasks: int) -> None:
        super().__init__()
        if not is_whole(num_tasks):
            raise InputError(f"num_tasks must be a whole number from 1, found {num_tasks!r}")
        _check(module)
        self.num_tasks = num_tasks
        self._has_cells = any(isinstance(part, nn.RNNCellBase) for part in module.modules())
        self.module = copy.deepcopy(module)
        for part in self.module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                rows = parameter.detach().expand(num_tasks, *parameter.shape).clone()
                part.register_parameter(name, nn.Parameter(rows, parameter.requires_grad))
        self.train(module.training)

    def forward(self, inputs: Any, task_ids: Tensor | Routing) -> Any:
        """Apply to each row the module of its task.

        Args:
            inputs: ``[B, ...]``, in any order of tasks; a tuple for a module with several arguments, of which each is
                such a tensor or a tuple, list or mapping of them.
            task_ids: ``[B]`` integers in ``0 .. num_tasks - 1``; tasks may be absent. Or what ``route`` makes of them.

        Returns:
            What the module returns, tensors of ``[B, ...]``: row ``b`` computed with the weights of ``task_ids[b]``.

        Raises:
            InputError: If a task id is out of range, or there is not one for each row going in and coming out.
        """
        ids = task_ids.task_ids if isinstance(task_ids, Routing) else task_ids
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        for values in tree_leaves(arguments):
            if not isinstance(values, Tensor) or ids.ndim != 1 or values.shape[:1] != ids.shape:
                found = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
                raise InputError(f"found {list(ids.shape)} task ids for an input of {found}")
        parameter = next(self.module.parameters())
        if torch.is_autocast_enabled(parameter.device.type):  # linear layers before this one give another type
            arguments = tree_map(lambda x: x.to(parameter.dtype) if x.is_floating_point() else x, arguments)
        with torch.autocast(parameter.device.type, enabled=False):
            return self._compute(arguments, task_ids, ids)

    def _compute(self, arguments: Any, task_ids: Tensor | Routing, ids: Tensor) -> Any:
        weights: dict[str, Tensor] = dict(self.module.named_parameters())
        if is_exporting():  # plain operations for any number of rows: each with weights of its own
            ids = ids.to(next(iter(weights.values())).device)
            weights = {name: values[ids] for name, values in weights.items()}
            out = self._batched(weights, tree_map(lambda values: values.unsqueeze(1), arguments))
            return tree_map(lambda values: values.squeeze(1), out)
        clusters = self.frozen_clusters
        tasks, groups, place = _groups(task_ids, self.num_tasks, clusters, tree_leaves(arguments)[0].device)
        if clusters is not None:
            weights = dict(zip(weights, select_clusters(clusters, *weights.values()), strict=True))
        if len(groups) > 1 or len(tasks) < self.num_tasks:  # else these are all, in order
            weights = {name: values.index_select(0, tasks) for name, values in weights.items()}
        parts = {name: values.split([len(rows) for rows in groups]) for name, values in weights.items()}
        outs = [
            self._batched({name: parts[name][group] for name in parts}, tree_map(lambda x, of=rows: x[of], arguments))
            for group, rows in enumerate(groups)
        ]
        return tree_map(lambda *out: torch.cat([values.flatten(0, 1) for values in out]).index_select(0, place), *outs)

    def _batched(self, weights: dict[str, Tensor], arguments: Any) -> Any:
        """Tensors ``[P, M, ...]`` for arguments ``[P, M, ...]`` and weights ``[P, ...]``."""
        shape = tree_leaves(arguments)[0].shape[:2]
        out = torch.vmap(self._call, randomness="different")(weights, arguments)
        for values in tree_leaves(out):
            if values.shape[:2] != shape:
                raise InputError(
                    f"the module must return one row for each of {shape[1]}, found {list(values.shape[1:])}"
                )
        return out

    def _call(self, weights: dict[str, Tensor], arguments: Any) -> Any:
        with PlainCells() if self._has_cells else nullcontext():
            return functional_call(self.module, weights, arguments)

    def select_tasks(self, tasks: Sequence[int]) -> "TaskModule":
        """A layer with the weights of some tasks."""
        result = copy.deepcopy(self)
        result.freeze_clusters(None)
        result.num_tasks = len(tasks)
        for parameter in result.parameters():
            parameter.data = parameter.data[list(tasks)]
        return result

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


def _check(module: nn.Module) -> None:
    """Refuse what would not be the same as a loop over copies."""
    kind = type(module).__name__
    named = list(module.named_parameters(remove_duplicate=False))
    if not named:
        raise InputError(f"{kind} has no parameters, so that tasks cannot have their own: apply it to all rows")
    for name, parameter in named:
        if is_lazy(parameter):
            raise InputError(f"{name} of {kind} has no shape yet (a lazy module): run one batch through it before")
    if len({id(parameter) for _, parameter in named}) < len(named):
        raise InputError(f"{kind} has tied parameters, found one under several names: give each its own")
    for path, part in module.named_modules():
        where, of = f"{path} of {kind}" if path else "the module", type(part).__name__
        if isinstance(part, _BatchNorm) or (isinstance(part, _NormBase) and part.track_running_stats):
            raise InputError(
                f"{where} is a {of}, which mixes the rows of a batch or keeps statistics of batches: "
                "take LayerNorm or GroupNorm"
            )
        if isinstance(part, nn.RNNBase):
            raise InputError(
                f"{where} is a {type(part).__name__}, which torch.vmap cannot run: take {type(part).__name__}Cell"
            )
        if isinstance(part, PerTask):
            raise InputError(f"{where} is a {type(part).__name__}, which has weights per task already")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _groups(
    task_ids: Tensor | Routing, num_tasks: int, clusters: Clusters | None, device: torch.device
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Lay out the rows of a batch by task, or by cluster in the place of task.

    Tasks go together whose numbers of rows differ less than eightfold, and are filled up to the same number. So there
    are few groups, and padding stays bounded if one task has most of the rows.

    Returns:
        - The tasks that are present, ``[P]``, group after group.
        - For each group the rows of its tasks, ``[P of the group, M]``. A task with fewer repeats one of its own,
          where the module gives no other numbers (such as NaN of zeros) than it gives anyway.
        - ``[B]``, the place of each row in the groups, flattened one after the other.
    """
    routing = route(task_ids, num_tasks)
    order, counts = (
        values.numpy()
        for values in (
            routing if clusters is None else routing.merge_tasks(clusters.on_host, len(clusters.first))
        ).sort()
    )
    present = np.flatnonzero(counts)
    if not len(present):  # no rows, but the shape of the output and gradients of zero: as if task 0 had none
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return torch.zeros(1, dtype=torch.int64, device=device), [none.view(1, 0)], none
    ends = counts.cumsum()
    sizes = np.frexp(counts[present])[1] // 3  # rows 1 to 3, 4 to 31, 32 to 255, ...
    place, members, size = np.empty_like(order), [], 0
    tasks = []
    for group in np.unique(sizes):
        mine = present[sizes == group]
        number = counts[mine]
        columns = np.arange(number.max())
        rows = order[(ends - counts)[mine, None] + np.minimum(columns, number[:, None] - 1)]
        there = columns < number[:, None]
        place[rows[there]] = size + np.flatnonzero(there)
        size += rows.size
        members.append(rows)
        tasks.append(mine)
    there = to_device(device, np.concatenate(tasks), place, *[rows.ravel() for rows in members])
    return there[0], [each.view(rows.shape) for each, rows in zip(there[2:], members, strict=True)], there[1]
