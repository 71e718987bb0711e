"""Which rows of a batch belong to which task: found once per batch, for all layers of a stack.

Shapes: B batch, N tasks.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.host import on_host, to_device
from lightning_ncmtl.torch_versions import is_exporting

# Numbers in the matrix of a task from which on padding costs a CPU more than a call for each task (as measured by
# benchmarks/task_layers.py: so it is with 256 x 256, not with 100 x 32)
_LARGE = 2**14
# Multiplications in the time of a call for one task; a GPU is taken for a thousand times as fast, unmeasured
_CALL = 2**17

Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


class Plan(NamedTuple):
    """How the rows of each task are multiplied by the matrix of their task.

    Tasks with at most ``depth`` rows go together, in one batched product with ``depth`` places for each: of all N
    matrices as they lie in memory or, where few tasks are present, of copies of theirs. Tasks with more rows, of which
    there are few (or all, if ``depth`` is 0), have a product of their own. So padding stays bounded if one task has
    most of the rows, and many small tasks need no call each.

    Attributes:
        depth: Places of each task in the batched product.
        tasks: ``[M]``, the tasks in the batched product; ``None`` if it is of all, ``M = N``.
        fill: ``[M * depth]``, the row of the batch at each place; B where there is none.
        place: ``[B]``, the place of each row; that of another row if its task has a product of its own.
        large: Of each task with more than ``depth`` rows: the task, and where its rows begin and end in ``rows``.
        rows: The rows of these tasks, one task after the other.
    """

    depth: int
    tasks: Tensor | None
    fill: Tensor
    place: Tensor
    large: list[tuple[int, int, int]]
    rows: Tensor


class Routing:
    """The rows of a batch by task; made by :func:`route`, and taken by layers in the place of task ids.

    It stays on the host, where products are planned, whatever the device of the rows.

    Attributes:
        task_ids: ``[B]``, on any device.
        num_tasks: Number of tasks N.
    """

    def __init__(self, task_ids: Tensor, num_tasks: int, rows: tuple[Tensor, Tensor] | None = None) -> None:
        self.task_ids = task_ids
        self.num_tasks = num_tasks
        self._plans: dict[tuple[int, torch.device], Plan] = {}
        self._merged: dict[bytes, Routing] = {}
        self._on_host: Integers | None = None
        self._sorted = rows  # as of sort(), where that is known
        if rows is not None or is_exporting():
            return  # when exported, layers read only the task ids
        if torch.compiler.is_compiling():
            self._sorted = _sort_op(task_ids, num_tasks)
        else:
            self._ids()

    def sort(self) -> tuple[Tensor, Tensor]:
        """The rows by task, on the CPU; sorted at the first call, as layers with little to do never ask.

        Returns:
            ``order [B]``, the rows sorted by task, those of a task in their order; and ``counts [N]``, how many rows
            each task has. Both int64.
        """
        if self._sorted is None:
            if torch.compiler.is_compiling():
                compiled: tuple[Tensor, Tensor] = _sort_op(self.task_ids, self.num_tasks)
                return compiled
            self._sorted = _sort(self._ids(), self.num_tasks)
        return self._sorted

    def merge_tasks(self, cluster_of_task: Tensor, num_clusters: int) -> "Routing":
        """The same rows by cluster, as if each was a task; found once for layers with the same clusters.

        Args:
            cluster_of_task: ``[N]``, on the CPU.
            num_clusters: Number of clusters.
        """
        if torch.compiler.is_compiling():
            rows = _sort_op(self.task_ids, self.num_tasks, cluster_of_task, num_clusters)
            return Routing(self.task_ids, num_clusters, rows)
        of_task = _numpy(cluster_of_task)
        key = of_task.tobytes()
        if key not in self._merged:
            self._merged[key] = Routing(torch.from_numpy(of_task[self._ids()]), num_clusters)
        return self._merged[key]

    def plan(self, size: int, device: torch.device) -> Plan:
        """How a layer multiplies whose matrices have ``size`` numbers; planned once for layers of the same size."""
        key = (size, device)
        if key not in self._plans:
            self._plans[key] = make_plan(*self.sort(), size, device)
        return self._plans[key]

    def _ids(self) -> Integers:
        """On the host, all in range."""
        if self._on_host is None:
            self._on_host = _checked(self.task_ids, self.num_tasks)
        return self._on_host


def route(task_ids: Tensor | Routing, num_tasks: int) -> Routing:
    """Sort a batch by task.

    Layers do it by themselves when they are given task ids. In a stack of layers, do it once and give them the result.
    Done where batches are made, from task ids on the CPU, it spares a GPU that would have to be waited for; so does
    :func:`lightning_ncmtl.layers.remember` where they are moved, as ``MultiDomainDataModule`` has it.

    Args:
        task_ids: ``[B]`` integers in ``0 .. num_tasks - 1``, or what this function returned.
        num_tasks: Number of tasks N.

    Raises:
        InputError: If a task id is out of range or no integer, or the routing is for another number of tasks.

    Example:
        >>> route(torch.tensor([2, 0, 2]), num_tasks=3).sort()
        (tensor([1, 0, 2]), tensor([1, 0, 2]))
    """
    if not isinstance(task_ids, Routing):
        return Routing(task_ids, num_tasks)
    if task_ids.num_tasks != num_tasks:
        raise InputError(f"found a routing for {task_ids.num_tasks} tasks: the layer has {num_tasks}")
    return task_ids


def _checked(task_ids: Tensor, num_tasks: int) -> Integers:
    """Task ids on the host, all in range."""
    if task_ids.is_floating_point() and len(task_ids):  # torch.tensor([]) is
        raise InputError(f"task ids must be integers, found {task_ids.dtype}")
    ids = _numpy(on_host(task_ids))
    if len(ids) and not 0 <= (low := ids.min()) <= (high := ids.max()) < num_tasks:
        found = low if low < 0 else high
        raise InputError(f"task id {found} is out of range: the layer has tasks 0 to {num_tasks - 1}")
    return ids


def _sort(ids: Integers, num_tasks: int) -> tuple[Tensor, Tensor]:
    # Integers of 16 bits are sorted in linear time.
    order = ids.astype(np.min_scalar_type(num_tasks)).argsort(kind="stable")
    return torch.from_numpy(order), torch.from_numpy(np.bincount(ids, minlength=num_tasks))


def _numpy(integers: Tensor) -> Integers:
    try:
        return integers.numpy()
    except RuntimeError:  # inside of torch.func, where tolist() fails, too, in torch 2.8 and before
        return np.array([int(value) for value in integers], dtype=np.int64)


# torch.compile leaves the sorting to Python: one step for it, and an error for ids out of range.
@torch.library.custom_op("lightning_ncmtl::sort_by_task", mutates_args=())
def _sort_op(
    task_ids: Tensor, num_tasks: int, cluster_of_task: Tensor | None = None, num_clusters: int = 0
) -> tuple[Tensor, Tensor]:
    ids = _checked(task_ids, num_tasks)
    if cluster_of_task is None:
        return _sort(ids, num_tasks)
    return _sort(_numpy(cluster_of_task)[ids], num_clusters)


@_sort_op.register_fake
def _(
    task_ids: Tensor, num_tasks: int, cluster_of_task: Tensor | None = None, num_clusters: int = 0
) -> tuple[Tensor, Tensor]:
    order = torch.empty_like(task_ids, dtype=torch.int64, device="cpu")
    return order, order.new_empty(num_tasks if cluster_of_task is None else num_clusters)


def make_plan(order: Tensor, counts: Tensor, size: int, device: torch.device) -> Plan:
    """Choose how to multiply.

    Args:
        order: ``[B]``, as of :meth:`Routing.sort`.
        counts: ``[N]``, as of :meth:`Routing.sort`.
        size: Numbers in the matrix of a task.
        device: Where the rows are.
    """
    number, rows = _numpy(counts), _numpy(order)
    depth, copied = _choose(number, size, device.type == "cpu")
    large = np.flatnonzero(number > depth)
    ends = number[large].cumsum()
    tasks, fill, place = rows[:0], rows[:0], rows[:0]
    if depth:
        first = number.cumsum() - number
        task_of_row = np.repeat(np.arange(len(number)), number)
        small = (number > 0) & (number <= depth) if copied else np.full(len(number), True)
        slot = (small.cumsum() - 1).clip(0)[task_of_row]
        if copied:
            tasks = np.flatnonzero(small)
        places = np.arange(depth)
        members = np.where(places < number[small, None], first[small, None] + places, len(rows))
        fill = np.append(rows, len(rows))[members.ravel()]
        place = np.empty_like(rows)
        place[rows] = slot * depth + np.minimum(np.arange(len(rows)) - first[task_of_row], depth - 1)
        rows = rows[(number > depth)[task_of_row]]
    bounds = list(zip(large.tolist(), (ends - number[large]).tolist(), ends.tolist(), strict=True))
    there = to_device(device, tasks, fill, place, rows)
    return Plan(depth, there[0] if depth and copied else None, there[1], there[2], bounds, there[3])


def _choose(counts: Integers, size: int, on_cpu: bool) -> tuple[int, bool]:
    """The depth of the batched product, and whether it takes copies of the matrices of the tasks that are present.

    The depth is the number of rows of one of the tasks, or 0: that with the fewest multiplications, of which each call
    for a single task counts for :data:`_CALL` more.
    """
    present = np.sort(counts[counts > 0])
    copied = len(present) < len(counts) / 2
    if not len(present) or (on_cpu and size > _LARGE and present.sum() >= 4 * len(present)):
        return 0, False
    depths = np.append(0, present)
    padded = (len(present) if copied else len(counts)) * depths
    calls = np.arange(len(present), -1, -1)
    single = present.sum() - depths.cumsum()
    work = (padded + single) * size + calls * (_CALL if on_cpu else 2**10 * _CALL)
    return int(depths[work.argmin()]), copied
