"""The shared warm-up: two views of each task from disjoint halves of the data, until clusters can be told from chance.

The optimizer moves the weights of all tasks alike, by the mean of their gradients. Beside that, two halves of the data
take turns, and each makes each task differ a little from the mean: the network computes with the mean and what the half
of the batch has made of the task. So layers in front of a cluster layer learn what tasks need that differ, and what the
halves make of a task are two independent views of it (:mod:`lightning_ncmtl.clustering.evidence`).

Shapes: N tasks, D numbers per task in all layers together, of which this rank may have a slice.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.clustering._ranks import agree
from lightning_ncmtl.clustering.decision import fix_clusters
from lightning_ncmtl.clustering.evidence import Evidence, group_tasks, multiply_halves, weigh_evidence
from lightning_ncmtl.clustering.kmeans import Backend
from lightning_ncmtl.clustering.layer_state import LayerState, widen
from lightning_ncmtl.clustering.target import Target, check_mesh, list_some, merge
from lightning_ncmtl.clustering.undone import warn_if_lost
from lightning_ncmtl.errors import InputError

# A task's own step, relative to the weights; what it loses of its own way per step; and what is kept of the running
# mean squares. The first two were chosen on the embedded corpus and on Landmine (docs/evidence.md).
STEP, FADING, MEMORY = 0.03, 0.01, 0.99
# Steps between two measurements of the views, which forget in about as many
EVERY = 100
# The step, and each :data:`EVERY` steps after it, at which it is looked whether optimizers leave views alone
LOOK = 20
# Evidence is weighed at this step, and whenever there are so many times as many
FIRST, GROWTH = 100, 2**0.5
# How often in a row the same clusters must be found: in the last two thirds of the warm-up
ALIKE = 4


def read_half(half: Any) -> int:
    """Which half of the data a batch says that it is of."""
    number = half.tolist() if isinstance(half, Tensor) else half
    if number not in (0, 1):
        raise InputError(f"all of a batch must be of one half of the data, 0 or 1, found half={number!r}")
    return int(number)


class SharedWarmup:
    """What a shared warm-up keeps of some layers.

    Args:
        layers: The layers that share, by name.
        deciding: Names of those that evidence is taken from.
        max_clusters: Upper bound of the number of clusters, beside N.
        restarts: k-means++ starts.
        seed: Seed of k-means++ and of permutations.
    """

    def __init__(
        self, layers: Mapping[str, Target], deciding: Collection[str], max_clusters: int, restarts: int, seed: int
    ) -> None:
        kinds: dict[Any, dict[str, Target]] = {}
        for name, each in sorted(layers.items(), key=lambda layer: not layer[1].stacked):
            kinds.setdefault((each.stacked, each.dim, each.order), {})[name] = each
        self._views = [_Views(of_kind) for of_kind in kinds.values()]
        self._deciding = set(deciding)
        self._settings = {"max_clusters": max_clusters, "restarts": restarts, "seed": seed}
        self._products: dict[str, Tensor] = {}
        self._found: list[list[int]] = []  # the clusters of the last weighings
        self._due = float(FIRST)  # the step of the next one
        self._seen = [0, 0]  # how many steps there were of each half

    @property
    def steps(self) -> int:
        """How many there were."""
        return sum(self._seen)

    @property
    def is_over(self) -> bool:
        """Whether there are clusters, which have not changed for a long time."""
        last = self._found[-ALIKE:]
        return len(last) == ALIKE and max(last[0]) > 0 and all(clusters == last[0] for clusters in last)

    @property
    def is_sharded(self) -> bool:
        """Whether each rank has a part of the weights."""
        return any(views.is_sharded for views in self._views)

    def enter(self, half: int) -> None:
        """Let each task compute with what a half of the data has made of it: before the forward pass."""
        for views in self._views:
            views.enter(half, keep=self.steps % EVERY == LOOK)

    def learn(self, half: int | None, again: bool = False) -> None:
        """Take the tasks' gradients of a batch of a half, and give all tasks the mean of them.

        Where several optimizers step, one after the other, that is done again in the same step. From gradients of both
        halves (``None``) nothing is learned of either.
        """
        if half is not None:
            self._seen[half] += not again
        for views in self._views:
            views.learn(half)

    def leave(self) -> None:
        """After the step of the optimizer: put the average of the two views in place; now and then weigh them.

        Raises:
            InputError: If weights are not finite.
        """
        for views in self._views:
            views.leave()
        if self.steps % EVERY == 0:
            self._measure()
        if self.steps >= self._due:
            self._due = max(self._due * GROWTH, self.steps + 1)
            if (evidence := self.weigh()) is not None:
                clusters = group_tasks(evidence.products, evidence.num_clusters).to(self._views[0].halves.device)
                self._found = [*self._found[1 - ALIKE :], agree({"": clusters})[""].tolist()]

    def weigh(self) -> Evidence | None:
        """The evidence so far; ``None`` if there is none, as no layer decides, or steps of one half are missing.

        Raises:
            InputError: If weights are not finite, or tasks come in one half only.
        """
        for views in self._views:
            if self.steps >= 4 * views.halves.shape[1]:  # in fewer, tasks may have missed a half by chance
                views.check_both()
        products = self._products
        if self.steps % EVERY:  # since the last measurement
            self._measure()
            products, self._products = self._products, products
        return weigh_evidence(list(products.values()), **self._settings) if products else None

    def decide(self, states: Mapping[str, LayerState], step: int, backend: Backend) -> Evidence:
        """Fix the clusters of layers from a step on, and say why.

        Args:
            states: The layers by name.
            step: The first step with these clusters.
            backend: The k-means to use.

        Raises:
            InputError: If there is no evidence, for or against, or weights are not finite.
        """
        if (evidence := self.weigh()) is None:
            raise InputError(
                "the warm-up has seen no steps of one half of the data: make it longer, and accumulate gradients of "
                "batches of the same half only"
            )
        settings = {name: self._settings[name] for name in ("restarts", "seed")}
        fix_clusters(states, evidence, step, backend=backend, **settings)
        return evidence

    def _measure(self) -> None:
        """Later views count for more, in proportion to the step: by then the layers below have learned more."""
        products: dict[str, Tensor] = {}
        for views in self._views if all(self._seen) else ():
            products |= views.multiply(self._deciding)
        self._products = {
            name: self.steps * each + self._products.get(name, torch.zeros_like(each))
            for name, each in products.items()
        }

    def save(self) -> dict[str, Any]:
        """CPU tensors and plain values; where parameters are sharded, all ranks must call it at once."""
        return {
            "views": [views.save() for views in self._views],
            "products": {name: products.to("cpu", copy=True) for name, products in self._products.items()},
            "found": list(self._found),
            "due": self._due,
            "seen": list(self._seen),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what :meth:`save` returned, with any number of ranks."""
        for views, theirs in zip(self._views, saved["views"], strict=True):
            views.load(theirs)
        self._products, self._found = dict(saved["products"]), list(saved["found"])
        self._due, self._seen = saved["due"], list(saved["seen"])


class _Views:
    """The two views of the tasks of some layers, read and written at once: many layers need few kernels.

    Attributes:
        halves: ``[2, N, D]``, by how much each half of the data makes each task differ from the mean of all tasks.
        squares: ``[D]``, running mean squares of the tasks' gradients; NaN before there were any.
    """

    def __init__(self, layers: Mapping[str, Target]) -> None:
        targets = list(layers.values())
        self._names = list(layers)
        self._widths = [target.read().shape[1] for target in targets]  # of this rank's slices
        self._sizes = torch.tensor([float(target.size) for target in targets], device="cpu")
        self._target = merge(targets)
        check_mesh(self._target)
        self.is_sharded = self._target.group is not None
        rows = widen(self._target.read())
        self.halves = rows.new_zeros(2, *rows.shape)
        self.squares = torch.full_like(rows[0], torch.nan)
        self._unit = rows[0]  # [D], the length of a task's own step: that of the batch's enter()
        self._entered: Tensor | None = None  # [N, D], what enter() has made of the tasks, if that is to be looked at
        self._is_lost = False

    def enter(self, half: int, keep: bool) -> None:
        center = widen(self._target.read()).mean(0)
        self.halves = self.halves.to(center.device)
        self._target.write(center + self.halves[half])
        self._entered = self.halves[half].clone() if keep and not self._is_lost else None
        squares = torch.stack(torch._foreach_norm(center.split(self._widths))).square_()
        self._sizes = self._sizes.to(squares)
        lengths = STEP * (self._target.total(squares) / self._sizes).sqrt_()
        self._unit = torch.cat([each.expand(width) for each, width in zip(lengths, self._widths, strict=True)])

    def learn(self, half: int | None) -> None:
        """Give all tasks the mean of their gradients, and let each make a step of its own along the rest.

        Each number of it is divided by its root mean square over time, so that the step is of :data:`STEP` of the
        layer's root mean square weight. What a task has gone by itself fades by :data:`FADING` a step.
        """
        target = self._target.gradients()
        gradients = target.read()
        mean = gradients.mean(0)
        target.write(mean.expand_as(gradients))
        if half is None:
            return
        gradients, mean = widen(gradients), widen(mean)
        # A gradient scaler leaves out a step with infinite ones, and so do we: the memory of this step is no gradient.
        is_finite = self._target.total(gradients.sum()).isfinite()
        gradients, mean = gradients.where(is_finite, 0), mean.where(is_finite, 0)
        squares = torch.linalg.vector_norm(gradients, dim=0).square_() / len(gradients)
        before = self.squares.to(squares.device)
        squares = squares.where(is_finite, before)
        self.squares = torch.lerp(before.where(~before.isnan(), squares), squares, 1 - MEMORY)
        step = self._unit * self.squares.rsqrt().nan_to_num_(posinf=0)
        self.halves[half].addcmul_(gradients.neg_().add_(mean), step).mul_(1 - FADING)

    def leave(self) -> None:
        rows = widen(self._target.read())
        center = rows.mean(0)
        if self._entered is not None:
            self._is_lost = warn_if_lost(self._target, rows - center, self._entered - self._entered.mean(0))
            self._entered = None
        self._target.write(center + self.halves.mean(0))

    def multiply(self, names: Collection[str]) -> dict[str, Tensor]:
        """Inner products ``[2N, 2N]`` of the views of some layers, on the CPU."""
        if broken := self._target.find_broken():
            raise InputError(
                f"{self._target.name} have weights that are not finite (NaN or infinity) in the warm-up, of "
                f"{len(broken)} tasks: a lower learning rate or gradient clipping may help"
            )
        parts = dict(zip(self._names, self.halves.split(self._widths, dim=2), strict=True))
        group = self._target.group
        return {name: multiply_halves(part[0], part[1], group).cpu() for name, part in parts.items() if name in names}

    def check_both(self) -> None:
        """Refuse batches of one task each that take turns with the halves, so that each task is in one of them.

        Tasks without a gradient in any step of a half have one and the same view there. The halves would agree on these
        tasks, against those of the other half, whatever the data.
        """
        found = [self.halves.sum(2, dtype=torch.float64), torch.linalg.vector_norm(self.halves, dim=2).double()]
        absent = []
        for views in self._target.total(torch.stack(found, 2)).cpu():
            _, kinds, counts = views.unique(dim=0, return_inverse=True, return_counts=True)
            absent.append({task for task, kind in enumerate(kinds.tolist()) if counts[kind] > 1})
        if all(absent) and not absent[0] & absent[1] and 2 * sum(map(len, absent)) >= len(self.halves[0]):
            names = [list_some([self._target.tasks[task] for task in sorted(tasks)]) for tasks in absent]
            raise InputError(
                f"the tasks {names[1]} come only in steps of the first half of the data, {names[0]} only in those of "
                "the second, which would look like clusters: let each step have examples of all tasks (gradients can "
                "be accumulated), or say 'half' in the batch, so that each task comes in both"
            )

    def save(self) -> dict[str, Tensor]:
        kept = {"halves": self.halves, "squares": self.squares}
        return {name: self._target.whole(value).to("cpu", copy=True) for name, value in kept.items()}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        self.halves, self.squares = (self._target.cut(saved[name]).clone() for name in ("halves", "squares"))
