"""Accuracy and loss of every task, held as sums so that they are exact on any number of devices."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

UNLABELLED = -1  # the label of a document in a task where there is none


class TaskMetrics(Metric):
    """Accuracy and cross-entropy per task, and their averages over tasks (macro: every task counts alike).

    Where it is known which documents have a copy in the training data, accuracy on the others is reported, too.

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
    clean_correct: Tensor
    clean_count: Tensor
    clean_updates: Tensor

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        self.task_names = list(task_names)
        tasks = len(self.task_names)
        self.add_state("correct", torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros(tasks, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("clean_correct", torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("clean_count", torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")
        # A sum, too: all devices must agree on the keys of the result, whatever batches they had.
        self.add_state("clean_updates", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, task_ids: Tensor, clean: Tensor | None = None) -> None:
        """Add documents of any tasks.

        Args:
            logits: ``[R, num_classes]``.
            labels: ``[R]``; entries with -1, unknown, do not count.
            task_ids: ``[R]``.
            clean: ``[R]`` bool, whether a document has no copy in the training data; ``None`` where unknown.
        """
        known = labels != UNLABELLED
        loss = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="none")  # 0 where unknown
        correct = (logits.argmax(1) == labels).long()
        self.correct.index_add_(0, task_ids, correct)
        self.loss.index_add_(0, task_ids, loss.to(self.loss.dtype))
        self.count.index_add_(0, task_ids, known.long())
        if clean is not None:
            self.clean_correct.index_add_(0, task_ids, correct * clean)
            self.clean_count.index_add_(0, task_ids, (clean & known).long())
            self.clean_updates += 1

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``loss`` averaged over the tasks seen, and ``accuracy/TASK`` and ``loss/TASK`` for each.

        With ``accuracy_clean`` and ``accuracy_clean/TASK`` if it was known for any documents whether they are clean.
        Values are 0-d float32; NaN for a task of which there was no document.
        """
        rates = {"accuracy": (self.correct, self.count), "loss": (self.loss, self.count)}
        if self.clean_updates > 0:
            rates["accuracy_clean"] = (self.clean_correct, self.clean_count)
        result = {}
        for name, (total, count) in rates.items():
            value = (total.double() / count).float()
            result[name] = value[count > 0].mean()
            result |= {f"{name}/{task}": value[index] for index, task in enumerate(self.task_names)}
        return result
