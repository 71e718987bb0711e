"""What systems are compared by: accuracy, or another metric of :class:`lightning_ncmtl.metrics.TaskMetrics`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_ncmtl.metrics import TaskMetrics


@dataclass(frozen=True)
class Measure:
    """A metric, macro-averaged over tasks, and how it is written. Accuracies are told in percent, others as they are.

    Args:
        name: As :class:`lightning_ncmtl.metrics.TaskMetrics` has it, such as ``AUROC``.
        higher_is_better: Whether more of it is better.
    """

    name: str = "accuracy"
    higher_is_better: bool = True

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
    def label(self) -> str:
        """Its name with its unit, for an axis."""
        return "accuracy (%)" if self.is_accuracy else self.name


ACCURACY = Measure()
CALIBRATION = Measure("CalibrationError", higher_is_better=False)


def find_measure(monitor: str | None, metrics: Iterable[str]) -> Measure:
    """What systems are compared by whose best epoch is chosen by ``monitor``.

    Args:
        monitor: What chooses the epoch, such as ``val/AUROC``.
        metrics: The metrics that a model has beside accuracy and loss.

    Returns:
        The same, if it is one of the metrics; else accuracy.

    Raises:
        InputError: If there is no such metric.

    >>> find_measure("val/AUROC", ["AUROC"]).name, find_measure("val/loss", ["AUROC"]).name
    ('AUROC', 'accuracy')
    """
    name = (monitor or "").removeprefix("val/")
    scores = TaskMetrics([], list(metrics)).scores
    return Measure(name, scores[name].higher_is_better) if name in scores else ACCURACY


def measure_of(result: Mapping[str, Any]) -> Measure:
    """What the result of a cell is compared by."""
    return Measure(**result.get("measure", {}))


def calibrated(metrics: TaskMetrics) -> TaskMetrics:
    """New metrics of the same names, which tell the expected calibration error, too."""
    return TaskMetrics(metrics.task_names, list(dict.fromkeys([*metrics.scores, CALIBRATION.name])))
