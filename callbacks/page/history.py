"""What a training logs, kept over its epochs, whatever its loggers are."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

_STAGES = {"train": "train", "training": "train", "val": "val"}
_STAGES |= {"valid": "val", "validation": "val", "test": "test"}
_MOST_NAMES = 50  # of a training that logs hundreds of values, the first ones
_MOST_POINTS = 2000  # of each; then every second one goes


class History:
    """The mean training loss of each epoch, and the values whose names begin with ``val`` or ``train``.

    Attributes:
        curves: Step and value by name, such as ``val/loss`` of what was logged as ``val/loss`` or ``val_loss``.
        epochs: Number of each epoch, from 1, and its last step.
    """

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.epochs: list[tuple[int, int]] = []
        self._loss: Tensor | float = 0.0  # a sum, which need not leave its device before the epoch ends
        self._batches = 0

    def add_loss(self, outputs: Any, accumulated: int) -> None:
        """Take what a training step returned, whose loss Lightning divides by the batches that are accumulated."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._loss = self._loss + loss.detach().float().squeeze() * accumulated
            self._batches += 1

    def end_epoch(self, epoch: int, step: int) -> None:
        """Take the mean training loss of an epoch, whose number is counted from 1."""
        self.epochs.append((epoch, step))
        if self._batches:
            self._add("train/loss", step, float(self._loss) / self._batches)
        self._loss, self._batches = 0.0, 0

    def add_logged(self, logged: Mapping[str, Any], stage: str, step: int, tasks: Collection[str]) -> None:
        """Take what was logged of a stage, ``train`` or ``val``, but not of single tasks."""
        for key, value in logged.items():
            kind, name = split_name(key)
            # The training loss is the last batch's, or what add_loss has already
            skipped = name.endswith("_step") or (kind, name) == ("train", "loss")
            if kind == stage and not skipped and not set(name.split("/")).intersection(tasks) and is_number(value):
                self._add(f"{stage}/{name}", step, float(value))

    def _add(self, name: str, step: int, value: float) -> None:
        if name not in self.curves and len(self.curves) >= _MOST_NAMES and not name.endswith("/loss"):
            return
        points = self.curves.setdefault(name, [])
        if points and points[-1][0] == step:
            points.pop()
        points.append((step, value))
        if len(points) > _MOST_POINTS:
            del points[1::2]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, to go on from."""
        return {
            "curves": {name: list(points) for name, points in self.curves.items()},
            "epochs": list(self.epochs),
            "loss": float(self._loss),
            "batches": self._batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.curves = {name: list(points) for name, points in state["curves"].items()}
        self.epochs, self._loss, self._batches = list(state["epochs"]), state["loss"], state["batches"]


def split_name(key: str) -> tuple[str, str]:
    """The stage that a name begins with, empty if there is none, and the rest.

    >>> split_name("val_acc"), split_name("train/loss_epoch"), split_name("lr")
    (('val', 'acc'), ('train', 'loss'), ('', 'lr'))
    """
    for separator in "/_":
        stage, found, rest = key.partition(separator)
        if found and rest and stage.lower() in _STAGES:
            return _STAGES[stage.lower()], rest.removesuffix("_epoch")
    return "", key


def is_number(value: Any) -> bool:
    """Whether a value that was logged is one number."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
