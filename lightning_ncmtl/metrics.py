"""Accuracy and loss of every task, held as sums so that they are exact on any number of devices."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

UNLABELLED = -1  # the label of a document in a task where there is none
MAX_LOGGED_TASKS = 50  # of more tasks, a summary is logged
WORST = 10  # tasks with the lowest accuracies, of which the summary has the average


class TaskMetrics(Metric):
    """Accuracy and cross-entropy per task, and their averages over tasks (macro: every task counts alike).

    Where it is known which documents have a copy in the training data, accuracy on the others is reported, too.

    A logger is no place for a thousand values: of more than 50 tasks the result has a summary instead, and the values
    of each task are left to :attr:`per_task`, which :class:`lightning_ncmtl.callbacks.ClusterReport` writes to a file.

    Args:
        task_names: Name of each task, for the keys of the result.

    Attributes:
        task_names: As given.
        per_task: What the last :meth:`compute` found of each task, on all devices together: ``count``, ``accuracy``,
            ``loss`` and perhaps ``accuracy_clean``, each ``[N]``; NaN where there was no document. Empty before it.

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
        self.per_task: dict[str, Tensor] = {}
        for name in ("correct", "loss", "count", "clean_correct", "clean_count"):
            kind = torch.float64 if name == "loss" else torch.int64
            self.add_state(name, torch.zeros(len(self.task_names), dtype=kind), dist_reduce_fx="sum")
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

    @property
    def many(self) -> bool:
        """Whether there are too many tasks to log each of them."""
        return len(self.task_names) > MAX_LOGGED_TASKS

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``loss`` averaged over the tasks seen, and ``accuracy/TASK`` and ``loss/TASK`` for each.

        With ``accuracy_clean`` and ``accuracy_clean/TASK`` if it was known for any documents whether they are clean.
        Of more than 50 tasks, instead of a value for each: ``accuracy_worst_10`` (and ``accuracy_clean_worst_10``), the
        average over the ten tasks with the lowest. Values are 0-d float32; NaN for a task of which there was no
        document.
        """
        rates = {"accuracy": (self.correct, self.count), "loss": (self.loss, self.count)}
        if self.clean_updates > 0:
            rates["accuracy_clean"] = (self.clean_correct, self.clean_count)
        self.per_task = {"count": self.count.clone()}
        result = {}
        for name, (total, count) in rates.items():
            value = self.per_task[name] = (total.double() / count).float()
            seen = value[count > 0]
            result[name] = seen.mean()
            if not self.many:
                result |= {f"{name}/{task}": value[index] for index, task in enumerate(self.task_names)}
            elif name != "loss":
                result[f"{name}_worst_{WORST}"] = seen.sort().values[:WORST].mean()
        return result
