"""Network clustering for any LightningModule with per-task modules."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ncmtl.callbacks._averages import Averages
from lightning_ncmtl.callbacks._decision import decide, why_not_finite
from lightning_ncmtl.callbacks._layer_state import LayerState
from lightning_ncmtl.callbacks._num_clusters import NumClusters, clusters_per_target
from lightning_ncmtl.callbacks._settings import check_settings
from lightning_ncmtl.callbacks._start import start_alike, start_apart
from lightning_ncmtl.callbacks._trace import record
from lightning_ncmtl.clustering import Target, check_backend, find_targets, means, share
from lightning_ncmtl.clustering.kmeans import Backend, Metric
from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer, rank_zero_info, rank_zero_warn
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import PerTask, cluster_layers, plain_name

_SHARDED = {"FSDPStrategy", "XLAFSDPStrategy", "DeepSpeedStrategy"}


class NetworkClusteringCallback(Callback):
    """Groups tasks with similar weights into clusters that share them, layer by layer, while a model trains.

    After each optimizer step it runs the sharing step of :mod:`lightning_ncmtl.clustering.sharing` on each target.
    Everything else sees shared weights: the forward pass, validation, checkpoints, averaged copies of the model.

    It departs from the paper, whose algorithm groups tasks by their random start and never changes again: there is a
    shared start, a warm-up and a memory of where each task wanted to go. ``preset="literal"`` is the paper's.

    Args:
        num_clusters: Number of clusters, one for all targets or one per target. By default that of
            the :class:`lightning_ncmtl.ClusterLinear` layers. ``"auto"`` chooses it at the end of the warm-up, by the
            silhouette: at least 2, see :func:`lightning_ncmtl.clustering.choose_num_clusters`.
        targets: Names of the per-task parts of the module, one cluster layer each: a ``ModuleList`` or ``ModuleDict``
            with one child per task (``"heads"``), a part of each child (``"heads.*.fc1"``), or a parameter or module
            whose parameters have the task as their first dimension. By default every ``ClusterLinear``.
        task_names: Names of the tasks, for reports and messages; by default the keys of the ``ModuleDict``, or
            indices.
        warmup_epochs: Epochs in which tasks train apart, before the first clustering. (A layer with one cluster has
            nothing to wait for and shares from the first step.)
        warmup_steps: The same in optimizer steps; overrides ``warmup_epochs``.
        every_n_steps: Run k-means every this many optimizer steps (the paper: 1). Sharing runs after each.
        freeze_after_epochs: Keep the clusters as they are after this many epochs of training (the paper: 4); ``None``
            never. Layers of ours then compute with one set of weights per cluster.
        commitment: Fraction in [0, 1] of its distance to the centre that a task gives up per step.
        restarts: k-means++ starts of the first clustering.
        backend: The k-means to use, see :func:`lightning_ncmtl.kmeans`.
        metric: What makes tasks similar: near weights (``"euclidean"``, the paper), or the same direction of the way
            from the shared start (``"cosine"``), however far each went: tasks with more data go farther.
        max_clusters: Upper bound for ``"auto"``.
        seed: Seed of k-means++.
        shared_start: At the start of a fresh training (not of a resumed one), give all tasks of a target the weights
            of the first, so that they differ only by what they learn.
        preset: ``"literal"`` for the paper word for word: independent random start of every task (heads included), no
            warm-up, no memory (``commitment=1``), one k-means++ start anew at each clustering. It overrides the
            settings of these.

    Attributes:
        assignments: The clusters found, ``{target: [N] int64}``; empty before the first clustering.
        losses: The last step of sharing and its clustering loss, ``{target: (step, 0-d)}``.

    Raises:
        InputError: At construction or before training starts, if a setting is out of range, a target cannot be
            clustered (see :func:`lightning_ncmtl.clustering.find_targets`) or the strategy is not supported. During
            training, if weights are no longer finite.

    Logs, where the trainer's ``log_every_n_steps`` asks for it and at the end of an epoch, ``clustering/TARGET/loss``,
    the paper's clustering loss, and ``clustering/TARGET/changed``, the share of tasks that changed cluster.
    """

    def __init__(
        self,
        num_clusters: NumClusters = None,
        targets: str | list[str] | None = None,
        task_names: list[str] | None = None,
        warmup_epochs: int = 2,
        warmup_steps: int | None = None,
        every_n_steps: int = 1,
        freeze_after_epochs: int | None = 4,
        commitment: float = 0.01,
        restarts: int = 10,
        backend: Backend = "auto",
        metric: Metric = "euclidean",
        max_clusters: int = 20,
        seed: int = 0,
        shared_start: bool = True,
        preset: Literal["literal"] | None = None,
    ) -> None:
        if preset == "literal":
            warmup_epochs, warmup_steps, commitment, restarts, shared_start = 0, None, 1.0, 1, False
        check_settings(
            preset=preset,
            every_n_steps=every_n_steps,
            restarts=restarts,
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
            freeze_after_epochs=freeze_after_epochs,
            commitment=commitment,
            metric=metric,
            shared_start=shared_start,
            max_clusters=max_clusters,
            task_names=task_names,
        )
        self.num_clusters = num_clusters
        self.targets = [targets] if isinstance(targets, str) else targets
        self.task_names = task_names
        self.warmup_epochs = warmup_epochs
        self.warmup_steps = warmup_steps
        self.every_n_steps = every_n_steps
        self.freeze_after_epochs = freeze_after_epochs
        self.commitment = commitment
        self.restarts = restarts
        self.backend = backend
        self.metric = metric
        self.max_clusters = max_clusters
        self.seed = seed
        self.shared_start = shared_start
        self.preset = preset
        self._targets: dict[str, Target] = {}
        self._averages = Averages({})
        self._layers: dict[str, PerTask] = {}  # those of the targets that are layers of ours
        self._states: dict[str, LayerState] = {}
        self._tasks: list[str] = []
        self.losses: dict[str, tuple[int, Tensor]] = {}
        self._steps = 0  # batches after which an optimizer stepped: its steps, unless there are several optimizers
        self._last_step = 0
        self._fresh = True
        self._restored = False  # since training was set up

    @property
    def assignments(self) -> dict[str, Tensor]:
        return {name: s.assignment for name, s in self._states.items() if s.assignment is not None}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; empty before training starts or is restored."""
        return list(self._tasks)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per target ``num_clusters``, ``assignment`` (empty if none), ``frozen_at_step``, ``trace``: plain values."""
        return {
            name: {
                "num_clusters": state.num_clusters,
                "assignment": [] if state.assignment is None else state.assignment.tolist(),
                "frozen_at_step": state.frozen_at_step,
                "trace": state.trace,
            }
            for name, state in self._states.items()
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # By name: the trainer may come from either package.
        if sharded := _SHARDED.intersection(base.__name__ for base in type(trainer.strategy).__mro__):
            raise InputError(
                f"NetworkClusteringCallback does not support {sharded.pop()}, in whose shards tasks cannot be told "
                "apart: use ModelParallelStrategy (FSDP2), the strategy 'ddp', or a single device"
            )
        self._fresh = trainer.global_step == 0
        if self._fresh:
            self._states, self._steps, self.losses = {}, 0, {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] > 0:  # not one that a learning rate finder made to come back to
            self._fresh = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the targets: now all layers exist, and a checkpoint has been restored."""
        self._restored = False
        names = self.targets
        if names is None:
            names = list(cluster_layers(pl_module))
        if len(set(names)) < len(names):
            raise InputError(f"targets must differ, found {names}")
        if not names and hasattr(pl_module, "_compact_clusters"):
            raise InputError("the model is compact, its tasks share for good: train it without this callback")
        if not names:
            raise InputError(
                f"{type(pl_module).__name__} has no ClusterLinear layer for NetworkClusteringCallback: name its "
                "per-task modules in targets"
            )
        targets = find_targets(pl_module, names)
        stacked = {plain_name(path): layer for path, layer in pl_module.named_modules() if isinstance(layer, PerTask)}
        self._unfreeze_layers(stacked.values())
        self._layers = {name: stacked[name] for name in names if name in stacked}
        self._targets = dict(zip(names, targets, strict=True))
        self._averages = Averages(self._targets)
        theirs = self._tasks if self._states else None
        self._set_tasks(targets)
        if theirs is not None and theirs != self._tasks:  # a cluster number belongs to the place of a task
            raise InputError(f"the checkpoint has the tasks {', '.join(theirs)}; the module {', '.join(self._tasks)}")
        clusters = clusters_per_target(self.num_clusters, list(self._targets), pl_module, len(self._tasks))
        if any(k is None or 1 < k < len(self._tasks) for k in clusters.values()):
            check_backend(self.backend)
        if self.backend == "faiss" and any(target.group is not None for target in targets):
            raise InputError("FAISS needs whole weights, found sharded ones: choose the backend 'gram'")
        for name, k in clusters.items():
            if k is None and name in self._states:
                clusters[name] = self._states[name].num_clusters
        for name, layer in cluster_layers(pl_module).items():
            layer.num_clusters = clusters.get(name) or layer.num_clusters
        if self._states:
            saved = {name: state.num_clusters for name, state in self._states.items()}
            if saved != clusters:
                raise InputError(
                    f"the checkpoint is of another model: it has the clusters {saved}, this model {clusters}"
                )
            for name, layer in cluster_layers(pl_module).items():  # not all strategies restore what is no parameter
                layer.assignment = self.assignments.get(name, layer.assignment).cpu()
            for name, state in self._states.items():
                if self.metric != "cosine":
                    state.start = None
                if state.settled and state.assignment is not None:  # a checkpoint may lie before the sharing of a step
                    self._targets[name].share(state.assignment)
                self._freeze_layer(name)
            return
        self._states = {name: LayerState(k) for name, k in clusters.items()}
        for name, target in self._targets.items():
            rank_zero_info(
                f"{name}: {len(self._tasks)} tasks with {target.size:,} parameters each, "
                f"{clusters[name] or 'as yet unknown'} clusters"
            )
        if self._fresh:
            if self.preset == "literal":
                start_apart(pl_module, self.seed)
            if self.shared_start:
                start_alike(self._targets, self._tasks[0])
            if self.metric == "cosine":
                for name, target in self._targets.items():
                    self._states[name].start = target.read()[:1].clone()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored:  # strategies that shard restore a checkpoint after on_fit_start
            self.on_fit_start(trainer, pl_module)
        for name, state in self._states.items():
            if self.metric == "cosine" and state.start is None and state.frozen_at_step is None:
                raise InputError(
                    f"the start of {name}, from which the metric cosine measures, is not known: the training did not "
                    "begin with this metric. Begin anew, or choose the metric euclidean"
                )
        self._last_step = trainer.global_step
        epochs = trainer.max_epochs
        if self.warmup_steps is None and epochs is not None and 0 <= epochs <= self.warmup_epochs:
            rank_zero_warn(f"training stops after {epochs} epochs, within the warm-up: nothing will be clustered")
        elif self.warmup_steps is not None and 0 <= trainer.max_steps <= self.warmup_steps:
            rank_zero_warn(f"training stops after {trainer.max_steps} steps, within the warm-up: nothing is clustered")

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (step := trainer.global_step) == self._last_step:  # gradients are being accumulated
            return
        previous, self._last_step = self._last_step, step
        self._steps += 1
        # A layer with one cluster is a hard layer: there is nothing to find out, so it shares from the first step. One
        # with a cluster per task has nothing to share, once it was said.
        warmup = self._in_warmup(trainer)
        names = [
            name
            for name, state in self._states.items()
            if state.num_clusters == 1
            or (not warmup and (state.assignment is None or state.num_clusters != len(self._tasks)))
        ]
        self._freeze_if_due(trainer, previous)
        if names:
            self._share(trainer, pl_module, names, step)
        self._averages.share(trainer, self.assignments)

    def _share(self, trainer: Trainer, pl_module: LightningModule, names: list[str], step: int) -> None:
        """The sharing step of some targets."""
        states = {name: self._states[name] for name in names}
        own = {name: state.own(self._targets[name]) for name, state in states.items()}
        # Mostly the clusters stay, and then so do their means. A GPU is not asked whether they do.
        centers = {
            name: means(own[name], state.assignment, state.num_clusters)
            for name, state in states.items()
            if state.assignment is not None and state.num_clusters is not None and own[name].is_cpu
        }
        assignments = self._assign(trainer, states, own, centers)
        shared = {}
        for name, assignment in assignments.items():
            state = states[name]
            k = self._choose(pl_module, name, assignment) if state.num_clusters is None else state.num_clusters
            if name not in centers or not state.has(assignment):
                centers[name] = means(own[name], assignment, k)
            commitment = 1.0 if state.settled else self.commitment
            shared[name] = share(own[name], assignment, centers[name], commitment, self._targets[name].dtype)
            state.residual = shared[name].residuals if commitment < 1 else None
        # One look at the device for all targets
        losses = {name: self._targets[name].total(result.loss) for name, result in shared.items()}
        changed = {name: states[name].changed(assignment) for name, assignment in assignments.items()}
        seen = torch.stack([*losses.values(), *changed.values()]).tolist()
        for name, loss, change in zip(names, seen[: len(names)], seen[len(names) :], strict=True):
            if not math.isfinite(loss):
                # Training stops before a broken task spreads to its cluster; on all ranks, with the same weights.
                raise InputError(why_not_finite(self._targets[name], self._tasks, step))
            self._remember(pl_module, name, assignments[name], change, step)
        for name in names:
            self._targets[name].write(shared[name].weights)
            self._freeze_layer(name)
            self.losses[name] = (step, losses[name])
            # Where a logger takes them: Lightning needs longer to log a number than we to cluster 14 tasks.
            every = max(trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
            if trainer.is_last_batch or self._steps % every == 0:
                pl_module.log(f"clustering/{name}/loss", losses[name])
                pl_module.log(f"clustering/{name}/changed", changed[name])

    def _assign(
        self, trainer: Trainer, states: dict[str, LayerState], own: dict[str, Tensor], centers: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The assignments of this step, on the device."""
        at_once, literal = self._steps % self.every_n_steps == 0, self.preset == "literal"
        due = {
            name: state
            for name, state in states.items()
            if state.assignment is None or (at_once and state.is_undecided(len(self._tasks)))
        }
        found = decide(
            trainer,
            due,
            self._targets,
            own,
            centers,
            max_clusters=self.max_clusters,
            warm_start=not literal,
            restarts=self.restarts,
            seed=self.seed + self._last_step if literal else self.seed,
            backend=self.backend,
        )
        return {
            name: found[name] if state.assignment is None else found.get(name, state.assignment)
            for name, state in states.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly; CPU tensors and plain values.

        Where parameters are sharded, all ranks must call it at once: it gathers the residuals, whole for each.
        """
        layers = {name: state.save(self._targets.get(name)) for name, state in self._states.items()}
        return {"layers": layers, "tasks": self._tasks, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = {name: LayerState.load(state) for name, state in state_dict["layers"].items()}
        self._tasks, self._steps = state_dict["tasks"], state_dict["steps"]
        self._restored = True

    def _set_tasks(self, targets: list[Target]) -> None:
        found = next((target.tasks for target in targets if target.named), targets[0].tasks)
        self._tasks = list(found if self.task_names is None else self.task_names)
        if len(self._tasks) != len(found) or len(set(self._tasks)) < len(found):
            raise InputError(f"task_names must be {len(found)} different names, one per task, found {self.task_names}")

    def _in_warmup(self, trainer: Trainer) -> bool:
        if self.warmup_steps is not None:
            return self._steps <= self.warmup_steps
        return trainer.current_epoch < self.warmup_epochs

    def _freeze_if_due(self, trainer: Trainer, previous_step: int) -> None:
        if self.freeze_after_epochs is None or trainer.current_epoch < self.freeze_after_epochs:
            return
        for name, state in self._states.items():
            if state.frozen_at_step is None and state.assignment is not None:
                if state.trace[0][0] == previous_step and state.is_undecided(len(self._tasks)):
                    rank_zero_warn(
                        f"{name} is frozen right after its first clustering, since {trainer.current_epoch} epochs are "
                        f"over: choose a freeze_after_epochs beyond the warm-up, found {self.freeze_after_epochs}"
                    )
                state.freeze(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfreeze_layers(self._layers.values())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unfreeze_layers(self._layers.values())

    @staticmethod
    def _unfreeze_layers(layers: Iterable[PerTask]) -> None:
        """Who trains on without this callback trains tasks apart."""
        for layer in layers:
            layer.freeze_clusters(None)

    def _freeze_layer(self, name: str) -> None:
        """Let a layer of ours, whose tasks share for good, compute by clusters; its weights must be shared by now."""
        state, layer = self._states[name], self._layers.get(name)
        if layer is not None and layer.frozen_clusters is None and state.settled and state.assignment is not None:
            layer.freeze_clusters(state.assignment)

    def _choose(self, pl_module: LightningModule, name: str, assignment: Tensor) -> int:
        """Keep the number of clusters that was chosen with the first assignment."""
        self._states[name].num_clusters = k = int(assignment.max()) + 1
        if (layer := cluster_layers(pl_module).get(name)) is not None:
            layer.num_clusters = k
        rank_zero_info(f"{name}: {k} clusters chosen")
        return k

    def _remember(self, pl_module: LightningModule, name: str, assignment: Tensor, changed: float, step: int) -> None:
        state = self._states[name]
        if changed:
            record(state.trace, step, assignment.tolist())
            if (layer := cluster_layers(pl_module).get(name)) is not None:
                layer.assignment = assignment.cpu()
        state.assignment = assignment
