"""What systems are compared by: accuracy, or another metric of :class:`lightning_ncmtl.metrics.TaskMetrics`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_ncmtl.metrics import TaskMetrics


@dataclass(frozen=True)
class Measure:
    """A metric, macro-averaged over tasks, and how it is written. Accuracies are told in percent, others as they are.

    Args:
        name: As :class:`lightning_ncmtl.metrics.TaskMetrics` has it, such as ``AUROC``.
        higher_is_better: Whether more of it is better.
        monitored: Whether the best epoch is evaluated, which something chose on validation documents; else the last.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    monitored: bool = field(default=True, compare=False)  # systems of both kinds may be compared

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a mean over documents, each right or wrong."""
        return self.name == "accuracy"

    @property
    def scale(self) -> int:
        """What values are multiplied by to be shown."""
        return 100 if self.is_accuracy else 1

    @property
    def digits(self) -> int:
        """How many there are behind the point of a value that is shown."""
        return 1 if self.is_accuracy else 3

    @property
    def epoch(self) -> str:
        """What its values are called."""
        return "best epoch" if self.monitored else "last epoch"

    @property
    def label(self) -> str:
        """Its name with its unit, for an axis."""
        return "accuracy (%)" if self.is_accuracy else self.name


ACCURACY = Measure()
CALIBRATION = Measure("CalibrationError", higher_is_better=False)


def find_measure(monitor: str | None, metrics: Iterable[str], classes: bool = True) -> Measure:
    """What systems are compared by whose best epoch is chosen by ``monitor``.

    Args:
        monitor: What chooses the epoch, such as ``val/AUROC``; ``auto`` for the first metric, ``None`` for the last
            epoch.
        metrics: The metrics that a model has beside accuracy or error, and loss.
        classes: Whether any task has classes; else all predict numbers.

    Returns:
        The same, if it is one of the metrics; the first of these, if nothing is monitored; else accuracy, or ``rmse``
        where there are only numbers.

    Raises:
        InputError: If there is no such metric.

    >>> find_measure("val/AUROC", ["AUROC"]).name, find_measure("val/loss", ["AUROC"]).name
    ('AUROC', 'accuracy')
    >>> find_measure(None, ["R2Score"]).name, find_measure("val/R2Score_pooled", ["R2Score"]).name
    ('R2Score', 'R2Score_pooled')
    """
    found = TaskMetrics([], list(metrics))
    otherwise = "accuracy" if classes else "rmse"
    first = next(iter(found.scores), otherwise)
    name = first if monitor in (None, "auto") else str(monitor).removeprefix("val/")
    name = name if name in found.directions.keys() - {"loss", "accuracy_clean"} else otherwise
    return Measure(name, found.directions[name], monitor is not None)


def measure_of(result: Mapping[str, Any]) -> Measure:
    """What the result of a cell is compared by."""
    return Measure(**result.get("measure", {}))


def calibrated(metrics: TaskMetrics) -> TaskMetrics:
    """New metrics of the same names, which tell the expected calibration error, too, where there are classes."""
    classes = len(metrics.regression_tasks) < len(metrics.task_names)
    names = dict.fromkeys([*metrics.scores, *([CALIBRATION.name] if classes else [])])
    return TaskMetrics(metrics.task_names, list(names), metrics.regression_tasks)
