"""Accuracy, loss and other metrics of every task, exact on any number of devices."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, classification
from torchmetrics.functional import classification as functional
from torchmetrics.utilities import dim_zero_cat

from lightning_ncmtl.errors import InputError

UNLABELLED = -1  # the label of a document in a task where there is none
MAX_LOGGED_TASKS = 50  # of more tasks, a summary is logged
WORST = 10  # tasks with the lowest accuracies, of which the summary has the average


class _Score(NamedTuple):
    binary: Callable[..., Tensor]
    multiclass: Callable[..., Tensor]
    higher_is_better: bool


class TaskMetrics(Metric):
    """Accuracy and cross-entropy per task, and their averages over tasks (macro: every task counts alike).

    And others by name, of a task's probabilities over its classes: binary ones of a task with two (the second of them
    is the positive one), else averages over the classes. They need the scores of all documents, which are kept until
    :meth:`compute`. A task is skipped in them, and counted, unless it has documents of each of its classes.

    Where it is known which documents have a copy in the training data, accuracy on the others is reported, too.

    A logger is no place for a thousand values: of more than 50 tasks the result has a summary instead, and the values
    of each task are left to :attr:`per_task`, which :class:`lightning_ncmtl.callbacks.ClusterReport` writes to a file.

    Args:
        task_names: Name of each task, for the keys of the result.
        metrics: Names of metrics of ``torchmetrics.classification`` that give one number, such as ``AUROC`` or
            ``AveragePrecision``.

    Attributes:
        task_names: As given.
        per_task: What the last :meth:`compute` found of each task, on all devices together: ``count``, ``accuracy``,
            ``loss``, perhaps ``accuracy_clean``, and each of the metrics, each ``[N]``; NaN where there was no
            document, or the task was skipped. Empty before it.

    Raises:
        InputError: If there is no such metric.

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
    logits: list[Tensor]
    labels: list[Tensor]
    task_ids: list[Tensor]

    def __init__(self, task_names: Sequence[str], metrics: Sequence[str] = ()) -> None:
        super().__init__()
        self.task_names = list(task_names)
        self.scores = {name: _find_score(name) for name in metrics}
        self.per_task: dict[str, Tensor] = {}
        for name in ("correct", "loss", "count", "clean_correct", "clean_count"):
            kind = torch.float64 if name == "loss" else torch.int64
            self.add_state(name, torch.zeros(len(self.task_names), dtype=kind), dist_reduce_fx="sum")
        # A sum, too: all devices must agree on the keys of the result, whatever batches they had.
        self.add_state("clean_updates", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("logits", "labels", "task_ids") if self.scores else ():
            self.add_state(name, [], dist_reduce_fx="cat")

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
        if self.scores:
            self.logits.append(logits[known].float())
            self.labels.append(labels[known])
            self.task_ids.append(task_ids[known])
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

        With ``accuracy_clean`` and ``accuracy_clean/TASK`` if it was known for any documents whether they are clean;
        and with each of the metrics, such as ``AUROC`` and ``AUROC/TASK``, and the number of tasks ``skipped`` in
        these. Of more than 50 tasks, instead of a value for each: ``accuracy_worst_10`` (and
        ``accuracy_clean_worst_10``, ``AUROC_worst_10``), the average over the ten tasks with the lowest. Values are 0-d
        float32; NaN for a task of which there was no document.
        """
        rates = {"accuracy": (self.correct, self.count), "loss": (self.loss, self.count)}
        if self.clean_updates > 0:
            rates["accuracy_clean"] = (self.clean_correct, self.clean_count)
        values = {name: (total.double() / count).float() for name, (total, count) in rates.items()}
        seen = {name: values[name][count > 0] for name, (_, count) in rates.items()}
        result = {}
        if self.scores:
            scored, found = self._score()
            values |= found
            seen |= {name: value[scored] for name, value in found.items()}
            result["skipped"] = (~scored).sum().float()
        self.per_task = {"count": self.count.clone(), **values}
        for name, value in values.items():
            result[name] = seen[name].mean()
            if not self.many:
                result |= {f"{name}/{task}": value[index] for index, task in enumerate(self.task_names)}
            elif self.scores[name].higher_is_better if name in self.scores else name != "loss":
                result[f"{name}_worst_{WORST}"] = seen[name].sort().values[:WORST].mean()
        return result

    def _score(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Which tasks ``[N]`` have documents of all classes, and the metrics ``[N]`` of these."""
        scored = torch.zeros(len(self.task_names), dtype=torch.bool)
        values = {name: torch.full((len(self.task_names),), torch.nan) for name in self.scores}
        states = (self.logits, self.labels, self.task_ids) if len(self.logits) else ([self.count[:0]],) * 3
        logits, labels, tasks = (dim_zero_cat(state).cpu() for state in states)
        order = tasks.argsort(stable=True)
        counts = tasks.bincount(minlength=len(scored)).tolist()
        groups = zip(logits[order].split(counts), labels[order].split(counts), strict=True)
        for task, (rows, targets) in enumerate(groups):
            present = targets.unique()
            if len(present) < 2 or len(present) < (rows[0] != -torch.inf).sum():
                continue
            scored[task] = True
            # In float64, or rows that are nearly sure would be equal
            probabilities = rows[:, present].double().softmax(1)
            targets = torch.searchsorted(present, targets)
            for name, score in self.scores.items():
                if len(present) == 2:
                    values[name][task] = score.binary(probabilities[:, 1].contiguous(), targets)
                else:
                    values[name][task] = score.multiclass(probabilities, targets, num_classes=len(present))
        device = self.count.device
        return scored.to(device), {name: value.to(device) for name, value in values.items()}


def _find_score(name: str) -> _Score:
    kind = getattr(classification, f"Binary{name}", None)
    functions = {each.replace("_", ""): getattr(functional, each) for each in dir(functional)}
    binary, multiclass = (functions.get(f"{prefix}{name.lower()}") for prefix in ("binary", "multiclass"))
    try:
        value = binary(torch.tensor([0.2, 0.8]), torch.tensor([0, 1])) if kind and binary and multiclass else None
    except (TypeError, ValueError):  # it needs more settings
        value = None
    if not isinstance(value, Tensor) or value.ndim or kind is None or binary is None or multiclass is None:
        raise InputError(
            f"model.metrics has {name!r}: take those of torchmetrics.classification that give one number without more "
            "settings, such as AUROC, AveragePrecision, F1Score or MatthewsCorrCoef"
        )
    return _Score(binary, multiclass, bool(kind.higher_is_better))
