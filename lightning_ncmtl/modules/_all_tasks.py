"""Documents of which each passes through the layers of all tasks."""

import torch
from torch import Tensor

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import Routing, route


def spread(documents: Tensor, num_tasks: int) -> tuple[Tensor, Routing]:
    """Every document in every task: from ``[B, F]`` to ``[N * B, F]``, the first task's before all others'."""
    tasks = torch.arange(num_tasks).repeat_interleave(documents.shape[0])  # on the CPU, where routings are planned
    return documents.repeat(num_tasks, 1), route(tasks, num_tasks)


def gather(x: Tensor, num_tasks: int, task_ids: Tensor, rows: Tensor | None) -> Tensor:
    """Of every document in every task the entries of a batch.

    Args:
        x: ``[N * B, F]``, in the order of :func:`spread`.
        num_tasks: Number of tasks N.
        task_ids: ``[R]``, the task of each entry.
        rows: ``[R]``, its document; ``None`` if these are ``0 .. B - 1``.

    Returns:
        ``[R, F]``.

    Raises:
        InputError: If a task id is out of range, or there is not one for each row.
    """
    documents = x.shape[0] // num_tasks
    places = torch.arange(documents, device=x.device) if rows is None else rows
    if places.shape != task_ids.shape:
        raise InputError(f"found {list(places.shape)} rows for {list(task_ids.shape)} task ids")
    route(task_ids, num_tasks)  # which checks them
    return x.index_select(0, task_ids * documents + places)
