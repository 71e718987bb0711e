"""One cluster layer in training: its own weights ``W + R``, its clusters, and what a checkpoint keeps of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import ClusterLinear, PerTask

# Cluster numbers that a trace holds: a few MiB, and as much in clusters.json and checkpoints
MAX_TRACE = 500_000
_SLICED = ("residual", "start")


@dataclass
class LayerState:
    """What network clustering knows of N tasks with D numbers each, of which this rank may have a slice.

    Attributes:
        num_clusters: K; ``None`` until it is chosen.
        assignment: ``[N]``; ``None`` before the first clustering.
        residual: ``[N, D]``, where each task wanted to go; ``None`` before the first clustering and once frozen.
        start: ``[1, D]`` with which all tasks started, for the metric cosine.
        frozen_at_step: The first step with fixed clusters.
        trace: ``[step, [N cluster numbers]]`` whenever they changed.
    """

    num_clusters: int | None
    assignment: Tensor | None = None
    residual: Tensor | None = None
    start: Tensor | None = None
    frozen_at_step: int | None = None
    trace: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._target: Target | None = None  # as long as there is none, tensors are whole
        self._layer: PerTask | None = None
        self._told: Tensor | None = None  # what the layer was given as its assignment

    @property
    def target(self) -> Target:
        """The parameters, of which there must be some by now."""
        assert self._target is not None, "attach a target first"
        return self._target

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to find out, and so no reason to remember."""
        return self.frozen_at_step is not None or self.num_clusters == 1

    def is_undecided(self, num_tasks: int) -> bool:
        """Whether k-means has anything to decide."""
        return self.frozen_at_step is None and (self.num_clusters is None or 1 < self.num_clusters < num_tasks)

    def attach(self, target: Target, layer: PerTask | None) -> None:
        """Take the parameters of a module, and bring the layer of this package that holds them in line, if one does."""
        if self._target is None:
            for name in _SLICED:
                if (value := getattr(self, name)) is not None:
                    setattr(self, name, target.cut(value))
        self._target, self._layer = target, layer
        if isinstance(layer, ClusterLinear):  # not all ways to restore a layer restore what is no parameter
            layer.num_clusters = self.num_clusters or layer.num_clusters
            if self.assignment is not None:
                self._tell(self.assignment.cpu())
        if self.is_settled and self.assignment is not None:  # a checkpoint may lie before the sharing of a step
            target.share(self.assignment, self.count_clusters(self.assignment))
        self.freeze_layer()

    def move(self) -> None:
        """Bring what is known to where the parameters are."""
        for name in ("assignment", *_SLICED):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, value.to(self.target.device))

    def read_own(self) -> Tensor:
        """What each task would have by itself, ``W + R`` [N, D]: in the place of ``R``, if there is any.

        Call :meth:`move` before.
        """
        if self.residual is None:
            return widen(self.target.read())
        self.target.add_to(self.residual)
        return self.residual

    def set_start(self, name: str, known: bool, fresh: bool) -> None:
        """Remember where all tasks start, for the metric cosine.

        Raises:
            InputError: If it must be known, and the training has begun without.
        """
        if not known:
            self.start = None
        elif fresh:
            self.start = self.target.read()[:1].clone()
        elif self.start is None and self.frozen_at_step is None:
            raise InputError(
                f"the start of {name}, from which the metric cosine measures, is not known: the training did not "
                "begin with this metric. Begin anew, or choose the metric euclidean"
            )

    def is_moved_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer has the parameters of this layer."""
        mine = self.target.parameters[0][0][1]
        return any(parameter is mine for group in optimizer.param_groups for parameter in group["params"])

    def share_copy(self, copy: nn.Module, layer: ClusterLinear | None) -> None:
        """Share the weights of a copy of the module, in which ``layer`` is this one."""
        assert self.assignment is not None
        self.target.find_in(copy).share(self.assignment, self.count_clusters(self.assignment))
        if layer is not None:
            layer.assignment = self._layer.assignment if isinstance(self._layer, ClusterLinear) else self.assignment

    @property
    def must_share_gradients(self) -> bool:
        """Whether tasks have gradients of their own that they are to share: a layer may compute by clusters."""
        return self.num_clusters != len(self.target.tasks) and (
            self._layer is None or self._layer.frozen_clusters is None
        )

    def get_clusters(self) -> tuple[Tensor, int]:
        """The assignment ``[N]`` where the parameters are, and K: all in one cluster as long as there are none."""
        self.move()
        if self.assignment is None:
            return torch.zeros(len(self.target.tasks), dtype=torch.int64, device=self.target.device), 1
        return self.assignment, self.count_clusters(self.assignment)

    def find_assignment(self) -> Tensor | None:
        """A copy of the assignment, where the parameters are by now: after a training they may leave its device."""
        if self.assignment is None:
            return None
        device = self.assignment.device if self._target is None else self._target.device
        return self.assignment.to(device, copy=True)

    def has(self, assignment: Tensor) -> bool:
        """Whether this is the assignment that the layer has."""
        return assignment is self.assignment or (
            self.assignment is not None and torch.equal(assignment, self.assignment)
        )

    def count_clusters(self, assignment: Tensor) -> int:
        """K; if it was to be chosen, that of the first assignment, from now on."""
        if self.num_clusters is None:
            self.num_clusters = int(assignment.max()) + 1
            if isinstance(self._layer, ClusterLinear):
                self._layer.num_clusters = self.num_clusters
        return self.num_clusters

    def forget_choice(self) -> None:
        """Let the number of clusters be chosen anew, as in a checkpoint from before this training chose it."""
        if isinstance(self._layer, ClusterLinear):
            self._layer.num_clusters = "auto"

    def remember(self, assignment: Tensor, changed: bool, step: int) -> None:
        """Take an assignment ``[N]``."""
        self.assignment = assignment
        if changed:
            self.record(step, assignment.tolist())
            self._tell(assignment.cpu())

    def take(self, assignment: Tensor) -> None:
        """Take an assignment ``[N]`` that the host has not seen: :meth:`note` tells it later."""
        if assignment is not self.assignment:
            self._tell(assignment)  # on its device for so long, as somebody may save it
        self.assignment = assignment

    def note(self, assignment: Tensor, step: int) -> None:
        """Write down an assignment ``[N]`` that was taken in a step, now on the CPU."""
        clusters = assignment.tolist()
        if not self.trace or self.trace[-1][1] != clusters:
            self.record(step, clusters)
        self._tell(assignment.clone())

    def _tell(self, assignment: Tensor) -> None:
        """Let a layer of this package know its assignment."""
        if isinstance(self._layer, ClusterLinear):
            self._told = self._layer.assignment = assignment

    def record(self, step: int, assignment: Sequence[int]) -> None:
        """Append an assignment ``[N]``, which began at a step, to the trace.

        A long trace forgets every second entry between its first and its last. So it has gaps, of which the largest is
        at most a few times the average.
        """
        self.trace.append([step, list(assignment)])
        if len(self.trace) > max(3, MAX_TRACE // len(assignment)):
            del self.trace[1:-1:2]

    def freeze(self, step: int) -> None:
        """Fix the clusters."""
        self.frozen_at_step = step
        self.residual = None

    def freeze_layer(self) -> None:
        """Let a layer of this package, whose tasks share for good by now, compute by clusters.

        Where somebody has loaded weights in the middle of a training, it knows the clusters of those.
        """
        layer = self._layer
        if self._told is not None and isinstance(layer, ClusterLinear) and layer.assignment is not self._told:
            layer.assignment = self._told
        if layer is not None and layer.frozen_clusters is None and self.is_settled and self.assignment is not None:
            layer.freeze_clusters(self.assignment)

    def summarize(self) -> dict[str, Any]:
        """Plain values for reports; the assignment is empty if there is none."""
        return {
            "num_clusters": self.num_clusters,
            "assignment": [] if self.assignment is None else self.assignment.tolist(),
            "frozen_at_step": self.frozen_at_step,
            "trace": self.trace,
        }

    def save(self) -> dict[str, Any]:
        """CPU tensors and plain values; where parameters are sharded, all ranks must call it at once."""
        saved: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        saved["trace"] = list(self.trace)
        for name in ("assignment", *_SLICED):
            if (value := saved[name]) is not None:
                if self._target is not None and name in _SLICED:
                    value = self._target.whole(value)
                saved[name] = value.to("cpu", copy=True)  # the next steps change residuals in place
        return saved

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "LayerState":
        """What :meth:`save` returned, with any number of ranks."""
        state = cls(**{**saved, "trace": list(saved["trace"])})
        if state.residual is not None:  # it changes in place
            state.residual = state.residual.clone()
        return state


def measure_changes(states: Mapping[str, LayerState], assignments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The share of tasks that assignments move to another cluster, of each layer: 0-d float64."""
    none = next(iter(assignments.values())).new_zeros((), dtype=torch.float64)
    changes = {name: none + 1 if state.assignment is None else none for name, state in states.items()}
    before = {
        name: state.assignment
        for name, state in states.items()
        if state.assignment is not None and assignments[name] is not state.assignment
    }
    if before:
        moved = torch.stack([assignments[name] for name in before]) != torch.stack(list(before.values()))
        changes |= zip(before, moved.double().mean(1), strict=True)
    return changes


def widen(rows: Tensor) -> Tensor:
    """In float32 at least."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
