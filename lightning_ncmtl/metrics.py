"""Accuracy or error, loss and other metrics of every task, exact on any number of devices."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, classification, regression
from torchmetrics.functional import classification as functional
from torchmetrics.utilities import dim_zero_cat

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.losses import entry_losses, is_known

MAX_LOGGED_TASKS = 50  # of more tasks, a summary is logged
_EXAMPLE = torch.tensor([0.2, 0.8]), torch.tensor([0, 1])
_VALUES = torch.tensor([0.0, 1.0])
WORST = 10  # tasks with the lowest accuracies, of which the summary has the average


class _Score(NamedTuple):
    """A metric of classes, or of numbers."""

    higher_is_better: bool
    binary: Callable[..., Tensor] | None = None
    multiclass: Callable[..., Tensor] | None = None
    number: Callable[[], Any] | None = None
    pooled: bool = False


class TaskMetrics(Metric):
    """Accuracy and loss per task, and their averages over tasks (macro: every task counts alike).

    Of tasks that predict numbers there is the root of the mean squared error, ``rmse``, in the user's units instead of
    accuracy.

    And others by name, of a task's probabilities over its classes: binary ones of a task with two (the second of them
    is the positive one), else averages over the classes; or of the numbers that a task predicts. They need the outputs
    of all documents, which are kept until :meth:`compute`. A task is skipped in them, and counted, unless it has
    documents of each of its classes, or two different numbers. Metrics of numbers are told *pooled*, too: of the
    documents of all tasks together, standardised, so that units do not matter (of tasks with few documents, metrics
    such as ``R2Score`` say little). Those that depend on where zero is, such as errors in percent, are not.

    Where it is known which documents have a copy in the training data, accuracy on the others is reported, too.

    A logger is no place for a thousand values: of more than 50 tasks the result has a summary instead, and the values
    of each task are left to ``per_task``, which :class:`lightning_ncmtl.callbacks.ClusterReport` writes to a file.

    Args:
        task_names: Name of each task, for the keys of the result.
        metrics: Names of metrics of ``torchmetrics.classification`` that give one number, such as ``AUROC`` or
            ``AveragePrecision``, or of ``torchmetrics.regression``, such as ``R2Score``.
        regression_tasks: The tasks that predict numbers.

    Attributes:
        task_names: As given.
        per_task: What the last :meth:`compute` found of each task, on all devices together: ``count``, ``accuracy``,
            ``rmse``, ``loss``, perhaps ``accuracy_clean``, and each of the metrics, each ``[N]``; NaN where there was
            no document, or the task was skipped. Empty before it. Accuracy and error only where any task has it.
        overall: What the last :meth:`compute` found beside these and their averages, 0-d: ``skipped``, and pooled ones.

    Raises:
        InputError: If there is no such metric, or no task that has it.

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
    values: list[Tensor]
    squares: Tensor

    def __init__(
        self, task_names: Sequence[str], metrics: Sequence[str] = (), regression_tasks: Iterable[int] = ()
    ) -> None:
        super().__init__()
        self.task_names = list(task_names)
        self.regression_tasks = sorted(set(regression_tasks))
        self.scores = {name: _find_score(name) for name in metrics}
        for name, score in self.scores.items():
            if self.task_names and not self._tasks_of(score.number is not None):
                raise InputError(
                    f"model.metrics has {name!r}, which is a metric of {'numbers' if score.number else 'classes'}, and "
                    "no task predicts any"
                )
        self.per_task: dict[str, Tensor] = {}
        self.overall: dict[str, Tensor] = {}
        self.units: tuple[Tensor, Tensor] | None = None  # mean and scale of the numbers of each task
        for name in ("correct", "loss", "count", "clean_correct", "clean_count", "squares"):
            kind = torch.float64 if name in ("loss", "squares") else torch.int64
            self.add_state(name, torch.zeros(len(self.task_names), dtype=kind), dist_reduce_fx="sum")
        # A sum, too: all devices must agree on the keys of the result, whatever batches they had.
        self.add_state("clean_updates", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("logits", "labels", "task_ids", "values") if self.scores else ():
            self.add_state(name, [], dist_reduce_fx="cat")

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Forget what was added. States made under ``trainer.validate`` could not be added to in ``trainer.fit``."""
        super().reset()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> Any:
        """States move with a module, but stay of their type: in the 16 bits of some, sums would soon stand still."""

        def move(values: Tensor) -> Tensor:
            moved = fn(values)
            return moved if moved.dtype == values.dtype else values.to(moved.device)

        return super()._apply(move, *args)

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        task_ids: Tensor,
        clean: Tensor | None = None,
        values: Tensor | None = None,
        units: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Add documents of any tasks.

        Args:
            logits: ``[R, num_classes]``; with one more column where tasks predict numbers, which has these.
            labels: ``[R]``; entries with -1, unknown, do not count.
            task_ids: ``[R]``.
            clean: ``[R]`` bool, whether a document has no copy in the training data; ``None`` where unknown.
            values: ``[R]``, the numbers, NaN where unknown; needed where tasks predict numbers.
            units: Mean and standard deviation ``[N]`` of the numbers of each task, by which losses and what is pooled
                are standardised; 0 and 1 by default.
        """
        self.units = units
        loss, known = entry_losses(logits.float(), labels, values, None if units is None else units[1][task_ids])
        if values is not None:
            numbers = ~values.isnan()
            errors = torch.where(numbers, logits[:, -1] - values, 0)
            self.squares.index_put_((task_ids,), errors.to(self.squares.dtype).square(), accumulate=True)
        correct = (logits.argmax(1) == labels).long()
        self.correct.index_add_(0, task_ids, correct)
        # Unlike index_add_, it sums in the same order every time on CUDA, too
        self.loss.index_put_((task_ids,), loss.to(self.loss.dtype), accumulate=True)
        self.count.index_add_(0, task_ids, known.long())
        if self.scores:
            self.logits.append(logits.float())
            # Copies: what workers of a loader made is memory that they share, of which there is a limited number
            self.labels.append(labels.clone())
            self.task_ids.append(task_ids.clone())
            if self.regression_tasks:
                assert values is not None, "tasks that predict numbers need values"
                self.values.append(values.to(torch.float32, copy=True))
        if clean is not None:
            self.clean_correct.index_add_(0, task_ids, correct * clean)
            self.clean_count.index_add_(0, task_ids, (clean & known).long())
            self.clean_updates += 1

    @property
    def directions(self) -> dict[str, bool]:
        """Of each value that averages or pools tasks, whether more of it is better."""
        known = {"loss": False}
        if self._tasks_of(False) or not self.task_names:
            known |= {"accuracy": True, "accuracy_clean": True}
        if self._tasks_of(True) or not self.task_names:
            known["rmse"] = False
        for name, score in self.scores.items():
            known |= dict.fromkeys([name, *([f"{name}_pooled"] if score.pooled else [])], score.higher_is_better)
        return known

    @property
    def many(self) -> bool:
        """Whether there are too many tasks to log each of them."""
        return len(self.task_names) > MAX_LOGGED_TASKS

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``loss`` averaged over the tasks seen, and ``accuracy/TASK`` and ``loss/TASK`` for each.

        Accuracy is of tasks with classes; of those that predict numbers, ``rmse`` and ``rmse/TASK`` are.
        With ``accuracy_clean`` and ``accuracy_clean/TASK`` if it was known for any documents whether they are clean;
        and with each of the metrics, such as ``AUROC`` and ``AUROC/TASK``, of numbers also pooled (``R2Score_pooled``),
        and the number of tasks ``skipped`` in these. Of more than 50 tasks, instead of a value for each:
        ``accuracy_worst_10`` (and ``accuracy_clean_worst_10``, ``AUROC_worst_10``), the average over the ten tasks with
        the lowest. Values are 0-d float32; NaN for a task of which there was no document.
        """
        classes, numbers = self._tasks_of(False), self._tasks_of(True)
        rates: dict[str, Tensor] = {}
        if classes or not numbers:
            rates["accuracy"] = self._only(self.correct.double() / self.count, classes)
        if numbers:
            rates["rmse"] = self._only((self.squares / self.count).sqrt(), numbers)
        rates["loss"] = self.loss / self.count
        if self.clean_updates > 0 and "accuracy" in rates:
            rates["accuracy_clean"] = self._only(self.clean_correct.double() / self.clean_count, classes)
        values = {name: rate.float() for name, rate in rates.items()}
        result: dict[str, Tensor] = {}
        if self.scores:
            scored, found, pooled = self._score()
            values |= found
            self.overall = {"skipped": (~scored).sum().float(), **pooled}
            result |= self.overall
        self.per_task = {"count": self.count.clone(), **values}
        for name, value in values.items():
            tasks = self._tasks_of(name == "rmse" or (name in self.scores and self.scores[name].number is not None))
            seen = value[~value.isnan()]
            result[name] = seen.mean()
            if not self.many:
                shown = range(len(self.task_names)) if name == "loss" else tasks
                result |= {f"{name}/{self.task_names[task]}": value[task] for task in shown}
            elif self.scores[name].higher_is_better if name in self.scores else name not in ("loss", "rmse"):
                result[f"{name}_worst_{WORST}"] = seen.sort().values[:WORST].mean()
        return result

    def _tasks_of(self, numbers: bool) -> list[int]:
        """The tasks that predict numbers, or those that do not."""
        chosen = set(self.regression_tasks)
        return [task for task in range(len(self.task_names)) if (task in chosen) == numbers]

    def _only(self, values: Tensor, tasks: list[int]) -> Tensor:
        """The values of some tasks; NaN in the place of others."""
        result = torch.full_like(values, torch.nan)
        result[tasks] = values[tasks]
        return result

    def _score(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Which tasks ``[N]`` can be scored, the metrics ``[N]`` of these, and metrics of all numbers pooled."""
        scored = torch.zeros(len(self.task_names), dtype=torch.bool)
        found = {name: torch.full((len(self.task_names),), torch.nan) for name in self.scores}
        names = ["logits", "labels", "task_ids", *(["values"] if self.regression_tasks else [])]
        states = [getattr(self, name) if len(self.logits) else [self.count[:0]] for name in names]
        entries = [dim_zero_cat(state).cpu() for state in states]
        known = is_known(entries[1], *entries[3:])
        logits, labels, tasks, *values = (entry[known] for entry in entries)
        order = tasks.argsort(stable=True)
        counts = tasks.bincount(minlength=len(scored)).tolist()
        groups = [state[order].split(counts) for state in (logits, *(values or [labels]))]
        classes = labels[order].split(counts)
        for task, (rows, targets) in enumerate(zip(*groups, strict=True)):
            kind = task in self.regression_tasks
            scores = {name: score for name, score in self.scores.items() if (score.number is not None) == kind}
            result = _score_numbers(scores, rows, targets) if kind else _score_classes(scores, rows, classes[task])
            # Correlations with numbers that are all predicted the same are NaN
            scored[task] = result is not None and not any(value.isnan() for value in result.values())
            for name, value in (result or {}).items():
                found[name][task] = value
        device = self.count.device
        pooled = {}
        if values and len(logits):
            known = ~values[0].isnan()
            mean, scale = (torch.zeros(1), torch.ones(1)) if self.units is None else self.units
            mean, scale = (unit.cpu().double().expand(len(scored))[tasks[known]] for unit in (mean, scale))
            rows, targets = ((column[known].double() - mean) / scale for column in (logits[:, -1], values[0]))
            numbers = {f"{name}_pooled": score for name, score in self.scores.items() if score.pooled}
            pooled = _score_numbers(numbers, rows.unsqueeze(1), targets) or {}
        return (
            scored.to(device),
            {name: value.to(device) for name, value in found.items()},
            {name: value.float().to(device) for name, value in pooled.items()},
        )


def _score_classes(scores: dict[str, _Score], rows: Tensor, labels: Tensor) -> dict[str, Tensor] | None:
    """Metrics of the logits ``[M, C]`` of a task; ``None`` unless there are all of its classes."""
    present = labels.unique()
    if len(present) < 2 or len(present) < (rows[0] != -torch.inf).sum():
        return None
    # In float64, or rows that are nearly sure would be equal
    probabilities, targets = rows[:, present].double().softmax(1), torch.searchsorted(present, labels)
    result = {}
    for name, score in scores.items():
        assert score.binary is not None
        assert score.multiclass is not None
        if len(present) == 2:
            result[name] = score.binary(probabilities[:, 1].contiguous(), targets)
        else:
            # Some give one number for each class, and a whole one where they do not know
            result[name] = score.multiclass(probabilities, targets, num_classes=len(present)).double().mean()
    return result


def _score_numbers(scores: dict[str, _Score], rows: Tensor, values: Tensor) -> dict[str, Tensor] | None:
    """Metrics of the numbers in the last column of ``[M, C]``; ``None`` unless there are two different values."""
    if len(values.unique()) < 2:
        return None
    made = {name: score.number() for name, score in scores.items() if score.number is not None}
    return {
        name: metric.set_dtype(torch.float64)(rows[:, -1].double(), values.double()) for name, metric in made.items()
    }


def _matthews(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Of two classes. Where one is always predicted, it is 0, and torchmetrics has other numbers (its issue 3355).

    Of three, of which one is never there, it computes the same, but for that.
    """
    return functional.multiclass_matthews_corrcoef((probabilities > 0.5).long(), targets, num_classes=3)


def _find_score(name: str) -> _Score:
    kind = getattr(classification, f"Binary{name}", None)
    functions = {each.replace("_", ""): getattr(functional, each) for each in dir(functional)}
    binary, multiclass = (functions.get(f"{prefix}{name.lower()}") for prefix in ("binary", "multiclass"))
    binary = _matthews if name == "MatthewsCorrCoef" else binary
    number = getattr(regression, name, None)
    score = None
    try:  # torchmetrics does not tell of each whether more is better: what is right and what is wrong does
        if kind and binary and multiclass:
            right, wrong = (binary(_EXAMPLE[0], targets) for targets in (_EXAMPLE[1], 1 - _EXAMPLE[1]))
            score = _Score(bool(right > wrong), binary, multiclass)
        elif number is not None:
            right, wrong, moved = (
                number()(_EXAMPLE[0] + zero, targets + zero)
                for targets, zero in ((_VALUES, 0), (1 - _VALUES, 0), (_VALUES, 1))
            )
            # Told of standardised numbers, too, if it does not matter where zero is
            score = _Score(bool(right > wrong), number=number, pooled=torch.allclose(moved, right))
    except Exception:  # of many kinds: it needs more settings, or other inputs
        score = None
    if score is None or not isinstance(right, Tensor) or right.ndim:
        raise InputError(
            f"model.metrics has {name!r}: take those of torchmetrics.classification or torchmetrics.regression that "
            "give one number without more settings, such as AUROC, AveragePrecision, MatthewsCorrCoef or R2Score"
        )
    return score
