"""What the clustering callback remembers of one cluster layer, and its own weights ``W + R``."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.clustering import Target


@dataclass
class LayerState:
    """One cluster layer in training: N tasks with D numbers each, of which this rank may have a slice.

    Attributes:
        num_clusters: K; ``None`` until it is chosen.
        assignment: ``[N]``; ``None`` before the first clustering.
        residual: ``[N, D]``, where each task wanted to go; ``None`` before the first clustering and once frozen.
        start: ``[1, D]`` with which all tasks started, for the metric cosine.
        frozen_at_step: When the clusters were fixed.
        trace: ``[step, [N cluster numbers]]`` whenever they changed.
    """

    num_clusters: int | None
    assignment: Tensor | None = None
    residual: Tensor | None = None
    start: Tensor | None = None
    frozen_at_step: int | None = None
    trace: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._whole = False  # restored and not used since: with D numbers of all ranks

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to find out, and so no reason to remember."""
        return self.frozen_at_step is not None or self.num_clusters == 1

    def is_undecided(self, num_tasks: int) -> bool:
        """Whether k-means has anything to decide."""
        return self.frozen_at_step is None and (self.num_clusters is None or 1 < self.num_clusters < num_tasks)

    def own(self, target: Target) -> Tensor:
        """What each task would have by itself, ``W + R`` [N, D]: at the place of ``R``, if there is any."""
        if self._whole:
            self._whole = False
            self.residual = None if self.residual is None else target.cut(self.residual)
            self.start = None if self.start is None else target.cut(self.start)
        if self.assignment is not None:
            self.assignment = self.assignment.to(target.device)
        if self.start is not None:
            self.start = self.start.to(target.device)
        if self.residual is None:
            return target.read().to(torch.promote_types(target.dtype, torch.float32))
        self.residual = self.residual.to(target.device)
        target.add_to(self.residual)
        return self.residual

    def has(self, assignment: Tensor) -> bool:
        """Whether this is the assignment that the layer has."""
        return assignment is self.assignment or (
            self.assignment is not None and torch.equal(assignment, self.assignment)
        )

    def changed(self, assignment: Tensor) -> Tensor:
        """The share of tasks that an assignment moves to another cluster, 0-d float64."""
        if self.assignment is None or assignment is self.assignment:
            return torch.full((), float(self.assignment is None), dtype=torch.float64, device=assignment.device)
        return (assignment != self.assignment).double().mean()

    def freeze(self, step: int) -> None:
        """Fix the clusters."""
        self.frozen_at_step = step
        self.residual = None

    def save(self, target: Target | None) -> dict[str, Any]:
        """CPU tensors and plain values; all ranks of a target at once, if there is one (before training: none)."""
        saved = {**vars(self), "trace": list(self.trace)}
        del saved["_whole"]
        for key in ("residual", "start"):
            if saved[key] is not None and not self._whole and target is not None:
                saved[key] = target.whole(saved[key])
        for key in ("assignment", "residual", "start"):
            # A copy: the next steps change residuals in place.
            saved[key] = None if saved[key] is None else saved[key].to("cpu", copy=True)
        return saved

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "LayerState":
        """What :meth:`save` returned, with any number of ranks."""
        state = cls(**{**saved, "trace": list(saved["trace"])})
        state.residual = None if state.residual is None else state.residual.clone()  # it changes in place
        state._whole = True
        return state
