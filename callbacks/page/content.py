"""What the page about a run is made of: plain values, so that it can be made without a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Best:
    """The best epoch, as a checkpoint callback chose it.

    Attributes:
        monitor: The value that it was chosen by, such as ``val/accuracy``.
        value: What it was.
        step: The optimizer step of it; ``None`` where it is not known.
        epoch: The epoch of it, from 1; the same way.
    """

    monitor: str
    value: float
    step: int | None = None
    epoch: int | None = None


@dataclass(frozen=True)
class Content:
    """A run of N tasks.

    Attributes:
        title: What it was, in a few words.
        stage: ``fit``, ``validate`` or ``test``.
        directory: Where the run is.
        facts: What was trained, on what, how long: an answer for each question.
        tasks: Names of the N tasks.
        report: What ``clusters.json`` holds, see :class:`lightning_ncmtl.callbacks.ClusterReport`.
        similarities: ``[2, N, N]``, how similar the tasks are in each half of the data, where there is evidence.
        scores: For each stage (``val``, ``test``) columns of N numbers, NaN where there is none.
        averages: For each stage what was logged of all tasks together.
        headline: The column by which tasks are ranked, and whether more of it is better; ``None`` without any.
        curves: Step and value, for each value logged, such as ``val/loss``; ``train/loss`` is the mean of an epoch.
        epochs: Number of each epoch, from 1, and its last step.
        losses: Step and clustering loss, by layer.
        last_step: The step at which the training ended.
        best: The best epoch, if one was chosen.
        commands: What to do next: for each purpose the lines to type.
        note: What else is to be known of them.
        config: The settings, as text; empty if they are not known.
    """

    title: str
    stage: str
    directory: str
    tasks: Sequence[str]
    report: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)
    similarities: NDArray[np.float64] | None = None
    scores: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    averages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    headline: tuple[str, bool] | None = None
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    epochs: Sequence[tuple[int, int]] = ()
    losses: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    last_step: int = 0
    best: Best | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    config: str = ""

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """The cluster layers that have clusters, with a list ``clusters [N]`` each."""
        return {
            name: {**layer, "clusters": list(layer["assignment"].values())}
            for name, layer in self.report["layers"].items()
            if layer["assignment"]
        }

    @property
    def divided(self) -> dict[str, dict[str, Any]]:
        """Those of :attr:`layers` in which there was something to find: neither one cluster nor one for each task."""
        return {name: layer for name, layer in self.layers.items() if 1 < layer["num_clusters"] < len(self.tasks)}
