"""Accuracy and loss of every task, held as sums so that they are exact on any number of devices."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


class TaskMetrics(Metric):
    """Accuracy and cross-entropy per task, and their averages over tasks (macro: every task counts alike).

    Args:
        task_names: Name of each task, for the keys of the result.

    Example:
        >>> metrics = TaskMetrics(["books", "music"])
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> metrics.update(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        >>> {key: round(float(value), 2) for key, value in metrics.compute().items() if "accuracy" in key}
        {'accuracy': 0.75, 'accuracy/books': 0.5, 'accuracy/music': 1.0}
    """

    full_state_update = False
    correct: Tensor
    loss: Tensor
    count: Tensor

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        self.task_names = list(task_names)
        tasks = len(self.task_names)
        self.add_state("correct", torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros(tasks, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, task_ids: Tensor) -> None:
        """Add documents of any tasks.

        Args:
            logits: ``[B, num_classes]``.
            labels: ``[B]``.
            task_ids: ``[B]``.
        """
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        self.correct.index_add_(0, task_ids, (logits.argmax(1) == labels).long())
        self.loss.index_add_(0, task_ids, loss.to(self.loss.dtype))
        self.count.index_add_(0, task_ids, torch.ones_like(task_ids))

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``loss`` averaged over the tasks seen, and ``accuracy/TASK`` and ``loss/TASK`` for each.

        Values are 0-d float32; NaN for a task of which there was no document.
        """
        result = {}
        for name, total in (("accuracy", self.correct), ("loss", self.loss)):
            value = (total.double() / self.count).float()
            result[name] = value[self.count > 0].mean()
            result |= {f"{name}/{task}": value[index] for index, task in enumerate(self.task_names)}
        return result
