"""Which outputs the tasks of a model have."""

import torch
from torch import Tensor

from lightning_ncmtl.errors import InputError


def output_mask(
    num_tasks: int, num_classes: int, task_classes: list[list[int]] | None, regression_tasks: list[int]
) -> Tensor | None:
    """Which outputs ``[num_tasks, num_outputs]`` tasks have, 1 or 0; ``None`` if all have all.

    Args:
        num_tasks: Number of tasks N.
        num_classes: Number of classes C; tasks that predict numbers have a column behind them.
        task_classes: The classes of each task; all by default.
        regression_tasks: The tasks that predict numbers.

    Raises:
        InputError: If a task has no output, or one that there is not.
    """
    if odd := [task for task in regression_tasks if not 0 <= task < num_tasks]:
        raise InputError(f"regression_tasks must be some of the tasks 0 .. {num_tasks - 1}, found {odd[0]}")
    if num_classes < 1 and len(set(regression_tasks)) < num_tasks:
        raise InputError(f"tasks that do not predict numbers need classes, found num_classes={num_classes}")
    if task_classes is None:
        task_classes = [list(range(num_classes))] * num_tasks
    if len(task_classes) != num_tasks:
        raise InputError(f"task_classes must list those of each of the {num_tasks} tasks, found {len(task_classes)}")
    mask = torch.zeros(num_tasks, num_classes + bool(regression_tasks))
    for task, classes in enumerate(task_classes):
        if task in regression_tasks:
            mask[task, -1] = 1
            continue
        if not classes or not all(0 <= each < num_classes for each in classes):
            raise InputError(
                f"task_classes must list one class or more of 0 .. {num_classes - 1} for each task, found "
                f"{list(classes)} for task {task}"
            )
        mask[task, classes] = 1
    return None if mask.all() else mask
