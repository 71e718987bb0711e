"""Hard parameter sharing: one encoder for all tasks, layers of their own behind it (Caruana, 1993)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.compatibility import LRSchedulerCallable, OptimizerCallable
from lightning_ncmtl.layers import TaskLinear
from lightning_ncmtl.modules._per_task import of_rows
from lightning_ncmtl.modules.base import MultiTaskModule


class HardShare(MultiTaskModule):
    """A shared encoder, and specific layers and a head for each task (the paper, 4.1).

    It is :class:`lightning_ncmtl.NCMTL` without clustering. With ``share_layers`` it is the control that the paper
    lacks: the same network with one cluster in every layer, so that the heads alone belong to the tasks.

    Args:
        encoder: The hard layers: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        num_classes: Number of classes C.
        features: Width of each layer between encoder and head (the paper, 4.1: 32, 32, 16).
        share_layers: Whether all tasks share these layers, too.
        dropout: Dropout after each of these layers.
        task_names: Name of each task, for logs; indices by default.
        task_classes: The classes of each task, out of ``0 .. num_classes - 1``; all by default.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes a scheduler of the optimizer, stepped each epoch.
        update_absent_tasks: Whether momentum and weight decay go on to change the stacked weights of tasks that are
            absent from a step, see :func:`lightning_ncmtl.absent_tasks.keep_absent_tasks`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        num_classes: int = 2,
        features: Sequence[int] = (32, 32, 16),
        share_layers: bool = False,
        dropout: float = 0.0,
        task_names: list[str] | None = None,
        task_classes: list[list[int]] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        update_absent_tasks: bool = True,
    ) -> None:
        super().__init__(num_tasks, num_classes, task_names, task_classes, optimizer, lr_scheduler)
        self.update_absent_tasks = update_absent_tasks
        self.encoder = encoder
        widths = [int(encoder.out_features), *features]  # type: ignore[arg-type]
        self.layers = nn.ModuleList(
            nn.Linear(inside, outside) if share_layers else _specific(num_tasks, inside, outside)
            for inside, outside in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = _specific(num_tasks, widths[-1], num_classes)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        x = of_rows(self.encoder(inputs), rows)
        for layer in self.layers:
            x = layer(x, task_ids) if isinstance(layer, TaskLinear) else layer(x)
            x = self.dropout(x.relu())
        logits: Tensor = self.head(x, task_ids)
        return logits


def _specific(num_tasks: int, in_features: int, out_features: int) -> TaskLinear:
    """A layer in which all tasks start with the same weights, as in NCMTL."""
    layer = TaskLinear(num_tasks, in_features, out_features)
    layer.reset_parameters(shared=True)
    return layer
