"""Network clustering in any training loop: the sharing step on all cluster layers of a module, and its state."""

from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_ncmtl.clustering._ranks import say, warn
from lightning_ncmtl.clustering.decision import fix_given
from lightning_ncmtl.clustering.evidence import Evidence
from lightning_ncmtl.clustering.kmeans import Backend, Metric
from lightning_ncmtl.clustering.late import Late
from lightning_ncmtl.clustering.layer_state import LayerState
from lightning_ncmtl.clustering.layer_step import share_gradients, share_layers
from lightning_ncmtl.clustering.layout import NumClusters, find_layout
from lightning_ncmtl.clustering.places import Places
from lightning_ncmtl.clustering.settings import WARMUP_STEPS, check_kmeans, check_settings
from lightning_ncmtl.clustering.start import check_alike, start_alike, start_apart
from lightning_ncmtl.clustering.target_spec import TargetLike, check_targets, plain, read_targets
from lightning_ncmtl.clustering.targets import reshard
from lightning_ncmtl.clustering.undone import warn_if_back
from lightning_ncmtl.clustering.warmup import SharedWarmup, read_half
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import PerTask, cluster_layers, per_task_layers


class NetworkClustering:
    """Groups tasks with similar weights into clusters that share them, layer by layer, while a module trains.

    Call :meth:`start_step` before each forward pass, :meth:`before_step` before each step of the optimizer, and
    :meth:`step` after it. Under Lightning, :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` does all this.

    It departs from the paper, whose algorithm groups tasks by their random start and never changes again: clusters come
    with evidence from two halves of the data, at the end of a warm-up that all tasks share
    (:mod:`lightning_ncmtl.clustering.warmup`). ``preset="literal"`` is the paper's.

    Where ``torch.distributed`` is initialised, all ranks must step together: rank 0 decides for all.

    Args:
        module: The module; ``None`` to :meth:`attach` one later. Give it before the weights of a checkpoint are loaded,
            which the shared start would overwrite.
        num_clusters: Number of clusters, one for all targets or one per target. By default that of
            the :class:`lightning_ncmtl.ClusterLinear` layers, and ``"auto"`` for others, which chooses it at the end
            of the warm-up: by evidence, from one (there is none) to one per task; after a warm-up apart by the
            silhouette, at least 2 (see :func:`lightning_ncmtl.clustering.choose_num_clusters`).
        targets: Names of the per-task parts of the module, one cluster layer each: a ``ModuleList`` or ``ModuleDict``
            with one child per task (``"heads"``), a part of each child (``"heads.*.fc1"``), modules whose names fit
            a pattern (``"*_tower"``, or ``"**.lora_?.*"``, what tasks have in all layers), or a parameter or module
            whose parameters have the task as their first dimension. Mappings say more: ``{"name": "out",
            "rows_per_task": 2}``, with ``"layout": "interleaved"`` where the first rows of all tasks come before the
            second ones; ``{"name": "table", "dim": 1}``; ``{"ctr": "click_net", "cvr": "buy_net"}``, a part of the
            module for each task, or a list of parts (:class:`lightning_ncmtl.clustering.target_spec.TargetSpec`). By
            default every ``ClusterLinear``.
        task_names: Names of the tasks; by default the keys of the ``ModuleDict``, or indices.
        warmup_steps: Steps before the first clustering: as many as the shared part of the network needs to become
            useful. Of a shared warm-up that is the most (by default 1000); it ends when its clusters, if there are any,
            have not changed in two thirds of it. (A layer with one cluster shares from the first step.)
        warmup: ``"shared"``: the optimizer moves all tasks alike, a memory keeps where each wants to go, and the
            clusters found at the end of the warm-up stay; ``every_n_steps``, ``commitment`` and ``metric`` are not for
            it. ``"apart"``: tasks train apart (by default 200 steps), then k-means groups them by their weights after
            each step until they are frozen; it does without :meth:`start_step` and :meth:`before_step`.
        specific: Names of per-task parts that share in a shared warm-up and no longer, such as heads. By default all
            other layers of this package with weights per task.
        every_n_steps: Run k-means every this many steps (the paper: 1). Sharing runs after each.
        commitment: Fraction in [0, 1] of its distance to the centre that a task gives up per step.
        restarts: k-means++ starts of the first clustering.
        backend: The k-means to use, see :func:`lightning_ncmtl.kmeans`.
        metric: What makes tasks similar: near weights (``"euclidean"``, the paper), or the same direction of the way
            from the shared start (``"cosine"``), however far each went: tasks with more data go farther.
        max_clusters: Upper bound for ``"auto"``.
        seed: Seed of k-means++.
        shared_start: At the start of a fresh training (not of a resumed one), give all tasks of a target the weights
            of the first, so that they differ only by what they learn.
        preset: ``"literal"`` for the paper word for word, whatever the other settings: independent random start of
            every task (heads included), no warm-up or memory, one k-means++ start anew at each clustering.

    Attributes:
        tasks: Names of the tasks; empty before there is a module or a state.
        steps: How often :meth:`step` was called.
        evidence: What a shared warm-up found out, at its end.
        losses: The last step of sharing of each target and its clustering loss, ``{target: (step, 0-d)}``.
        changes: The share of its tasks that changed cluster in that step, ``{target: 0-d}``.

    Raises:
        InputError: If a setting is out of range, or a target cannot be clustered.

    Example:
        >>> model = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(4, 1) for _ in range(6))})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clusters = NetworkClustering(model, num_clusters=2, targets="heads", warmup_steps=2)
        >>> for _ in range(3):
        ...     clusters.start_step()
        ...     optimizer.zero_grad()
        ...     sum(i % 2 * head.weight.sum() for i, head in enumerate(model["heads"])).backward()
        ...     clusters.before_step()
        ...     optimizer.step()
        ...     clusters.step()
        >>> (clusters.assignments["heads"] == clusters.assignments["heads"][0]).tolist()
        [True, False, True, False, True, False]
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        num_clusters: NumClusters = None,
        targets: TargetLike | list[TargetLike] | None = None,
        *,
        task_names: list[str] | None = None,
        warmup_steps: int | None = None,
        warmup: Literal["shared", "apart"] = "shared",
        specific: TargetLike | list[TargetLike] | None = None,
        every_n_steps: int = 1,
        commitment: float = 0.01,
        restarts: int = 20,
        backend: Backend = "auto",
        metric: Metric = "euclidean",
        max_clusters: int = 20,
        seed: int = 0,
        shared_start: bool = True,
        preset: Literal["literal"] | None = None,
    ) -> None:
        if preset == "literal":
            warmup_steps, warmup, commitment, restarts, shared_start = 0, "apart", 1.0, 1, False
        self.num_clusters: NumClusters = plain(num_clusters)
        self.targets, self.specific = read_targets(targets), read_targets(specific)
        self.task_names: list[str] | None = plain(task_names)
        self.warmup: Literal["shared", "apart"] = warmup
        self.warmup_steps: float = WARMUP_STEPS.get(warmup, 0) if warmup_steps is None else warmup_steps
        self.every_n_steps, self.commitment, self.metric = every_n_steps, commitment, metric
        self.restarts, self.backend, self.max_clusters, self.seed = restarts, backend, max_clusters, seed
        self.shared_start, self.preset = shared_start, preset
        check_settings(self)
        self.reset()
        if module is not None:
            self.attach(module)

    def reset(self) -> None:
        """Forget the module and all that was found out."""
        self.tasks: list[str] = []
        self.steps = 0
        self.losses: dict[str, tuple[int, Tensor]] = {}
        self.changes: dict[str, Tensor] = {}
        self._module: nn.Module | None = None
        self._places: Places | None = None
        self._states: dict[str, LayerState] = {}
        self.evidence: Evidence | None = None
        self._warmup: SharedWarmup | None = None  # as long as it lasts
        self._saved_warmup: dict[str, Any] | None = None
        self._half: int | None = None  # of a step that start_step began
        self._begun: set[int] = set()  # the halves of all batches since the last step
        self._has_learned: bool | None = None  # in this step; None if before_step was not called
        self._layers: list[PerTask] = []  # targets that are layers of this package
        self._late: Late | None = None  # of the last step, on a GPU
        self._written: dict[str, tuple[Tensor, Tensor]] = {}  # at the first clustering, in the step before
        self._just_started: list[str] = []  # targets whose weights the shared start has overwritten

    @property
    def assignments(self) -> dict[str, Tensor]:
        """The clusters found, ``{target: [N] int64}``, where the weights are; empty before the first clustering."""
        self._catch_up()
        found = {name: state.find_assignment() for name, state in self._states.items()}
        return {name: assignment for name, assignment in found.items() if assignment is not None}

    @property
    def is_clustered(self) -> bool:
        """Whether there are clusters yet; unlike :attr:`assignments`, no GPU is asked which."""
        return any(state.assignment is not None for state in self._states.values())

    def summarize(self) -> dict[str, dict[str, Any]]:
        """Per target ``num_clusters``, ``assignment`` (empty if none), ``frozen_at_step``, ``trace``: plain values."""
        self._catch_up()
        return {name: state.summarize() for name, state in self._states.items()}

    def attach(self, module: nn.Module, fresh: bool = True) -> None:
        """Find the targets in a module and bring it in line with the state, if one was loaded.

        Args:
            module: The module, whose layers must exist by now.
            fresh: Whether its training begins now, with a shared start. A state that was loaded says otherwise.

        Raises:
            InputError: If a target cannot be clustered, or the state is that of another module.
        """
        self._catch_up()
        targets, tasks, clusters, specific = find_layout(
            module, self.targets, self.num_clusters, self.task_names, self.specific if self.warmup == "shared" else []
        )
        if self._states and self.tasks != tasks:  # a cluster number belongs to the place of a task
            raise InputError(f"the checkpoint has the tasks {', '.join(self.tasks)}; the module {', '.join(tasks)}")
        deciding = [name for name, k in clusters.items() if k not in (1, len(tasks))]
        if deciding:
            check_kmeans(self.backend, targets.values())
        saved = {name: state.num_clusters for name, state in self._states.items()}
        clusters = {name: saved.get(name) if k is None else k for name, k in clusters.items()}
        if saved and saved != clusters:
            raise InputError(f"the checkpoint is of another model: it has the clusters {saved}, this model {clusters}")
        stacked = per_task_layers(module)
        for layer in stacked.values():
            layer.freeze_clusters(None)
        self._module, self.tasks = module, tasks
        self._places = Places(module, (targets | specific).values())
        self._layers = [stacked[name] for name in targets if name in stacked]
        self._states = self._states or {name: LayerState(k) for name, k in clusters.items()}
        for name, state in self._states.items():
            state.attach(targets[name], stacked.get(name))
        self._warmup = None
        if self.shared_start and not fresh and not saved:
            check_alike(targets, self.warmup == "shared")
        if self.warmup == "shared" and deciding and not self.is_clustered:
            sharing = {name: target for name, target in (targets | specific).items() if clusters.get(name) != 1}
            self._warmup = SharedWarmup(sharing, deciding, self.max_clusters, self.restarts, self.seed)
            if self._saved_warmup is not None:
                self._warmup.load(self._saved_warmup)
        for name, target in targets.items() if not saved else ():
            number = "as many clusters as will be found" if clusters[name] is None else f"{clusters[name]} clusters"
            say(
                f"{name}: {number} of {len(tasks)} tasks with {target.size:,} parameters each: {target.describe(tasks)}"
            )
        if fresh and not saved:
            if self.preset == "literal":
                start_apart(module, self.seed)
            if self.shared_start:
                self._just_started = start_alike(targets | specific, tasks[0])
        for name, state in self._states.items():
            state.set_start(name, known=self.metric == "cosine", fresh=fresh and not saved)

    @torch.no_grad()
    def fix(self, groups: list[int]) -> None:
        """Give all targets these clusters for good, instead of looking for any. Call it between attach and the start.

        Args:
            groups: ``[N]``, the number of the cluster of each task, from 0.

        Raises:
            InputError: If that is not one for each task, or does not fit the settings.
        """
        self._check_module()
        if self.warmup != "shared":
            raise InputError(f"given clusters are for warmup='shared', found {self.warmup!r}")
        fix_given(self._states, groups, self.steps + 1)
        self._warmup = None

    @torch.no_grad()
    def start_step(self, half: int | None = None, warmup: bool | None = None) -> None:
        """Before the forward pass of a step.

        In a shared warm-up each task computes with what one half of the data has made of it.

        Args:
            half: 0 or 1, of which half of the data the batch is (``batch["half"]``), the same on all ranks. By default
                steps alternate, which makes halves disjoint only as long as no example is seen twice: else the evidence
                is too good. Of several batches whose gradients add up call it for each; those of both halves tell
                nothing.
            warmup: As in :meth:`step`.

        Raises:
            InputError: If a half is neither, or there is no module yet.
        """
        self._half = None
        if self._warmup is not None and self._module is not None and self._warmup.is_sharded:
            reshard(self._module)
        if (shared := self._go_on(warmup)) is not None:
            self._half = self.steps % 2 if half is None else read_half(half)
            self._begun.add(self._half)
            shared.enter(self._half)

    @torch.no_grad()
    def before_step(self, warmup: bool | None = None, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Between ``backward`` and the step of the optimizer: tasks that share get the mean of their gradients.

        So they truly have one set of weights, as if there was only one.

        Args:
            warmup: As in :meth:`step`.
            optimizer: The one that steps, where there are several: only the one of the targets matters.
        """
        if optimizer is not None and not any(state.is_moved_by(optimizer) for state in self._states.values()):
            self._has_learned = self._has_learned or False
            return
        if (shared := self._go_on(warmup)) is not None and self._half is not None:
            shared.learn(self._half if len(self._begun) < 2 else None, again=bool(self._has_learned))
            self._has_learned = True
        if self.warmup == "shared":
            due = (shared is None or state.num_clusters == 1 for state in self._states.values())
            share_gradients(dict(compress(self._states.items(), due)))

    @torch.no_grad()
    def step(self, warmup: bool | None = None) -> None:
        """The sharing step of all targets, after a step of the optimizer.

        Args:
            warmup: Whether this step is one of the warm-up; by default the first ``warmup_steps`` are.

        Raises:
            InputError: If there is no module yet; if the module has other parameters in the place of those of a target
                by now; or if weights are not finite: before they spread to their cluster. (On a GPU, for which the host
                does not wait, that is raised in the next step, or when somebody asks what was found.)
        """
        shared = self._go_on(warmup)
        assert self._places is not None  # as there is a module
        self._places.check()
        self._catch_up()
        self._just_started, self._begun = [], set()
        if shared is not None:
            if self._has_learned is None:
                raise InputError(
                    "a shared warm-up needs the gradients of each step: call start_step() before the forward pass and "
                    "before_step() before that of the optimizer, or choose warmup='apart'"
                )
            if self._has_learned:  # else it was the step of another optimizer
                self._half = None
                self.steps += 1
                shared.leave()
            self._has_learned = None
            return
        self.steps += 1
        if warmup is None or self.warmup == "shared":
            warmup = self.warmup == "apart" and self.steps <= self.warmup_steps
        # A layer with one cluster is a hard layer: there is nothing to find out, so it shares from the first step. One
        # with a cluster per task has nothing to share, once it was said.
        states = {
            name: state
            for name, state in self._states.items()
            if state.num_clusters == 1
            or (not warmup and (state.assignment is None or state.num_clusters != len(self.tasks)))
        }
        if not states:
            return
        warn_if_back({name: self._states[name].target for name in self._written}, self._written)
        first = {name: state.target.read() for name, state in states.items() if state.assignment is None}
        literal = self.preset == "literal"
        losses, self.changes, self._late = share_layers(
            states,
            self.tasks,
            self.steps,
            self.commitment,
            at_once=self.steps % self.every_n_steps == 0,
            metric=self.metric,
            max_clusters=self.max_clusters,
            warm_start=not literal,
            restarts=self.restarts,
            seed=self.seed + self.steps if literal else self.seed,
            backend=self.backend,
        )
        self.losses |= {name: (self.steps, loss) for name, loss in losses.items()}
        self._written = {name: (before, states[name].target.read()) for name, before in first.items()}

    def freeze(self) -> None:
        """Keep the clusters that there are from the next step on: layers of this package then compute with K sets."""
        self._catch_up()
        for name, state in self._states.items():
            if state.frozen_at_step is None and state.assignment is not None:
                if state.trace[0][0] == self.steps and state.is_undecided(len(self.tasks)):
                    warn(
                        f"{name} is frozen right after its first clustering: freeze clusters later, some time beyond "
                        "the warm-up, so that tasks can still move"
                    )
                state.freeze(self.steps + 1)

    def release(self) -> None:
        """Let layers of this package compute by tasks again: training on without clustering trains tasks apart."""
        for layer in self._layers:
            layer.freeze_clusters(None)
        self._catch_up()

    @torch.no_grad()
    def share_copy(self, copy: nn.Module) -> None:
        """Give the tasks of each cluster the mean of their weights in a copy of the module, such as an average.

        An average holds weights from before tasks came together. A second time it changes nothing.
        """
        layers = cluster_layers(copy)
        for name, state in self._states.items():
            if state.assignment is not None:
                state.share_copy(copy, layers.get(name))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly; CPU tensors and plain values.

        Where parameters are sharded, all ranks must call it at once: it gathers the residuals, whole for each.
        """
        self._catch_up()
        return {
            "layers": {name: state.save() for name, state in self._states.items()},
            "tasks": self.tasks,
            "targets": self.targets,
            "steps": self.steps,
            "kind": self.warmup,
            "evidence": None if self.evidence is None else self.evidence._asdict(),
            "warmup": None if self._warmup is None else self._warmup.save(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. Load the weights of the module first.

        Raises:
            InputError: If the state is that of another module or kind of warm-up, or the module's weights were not
                loaded.
        """
        if (kind := state_dict["kind"]) != self.warmup:
            raise InputError(f"the checkpoint was trained with warmup={kind!r}, found {self.warmup!r}: choose the same")
        check_targets(state_dict.get("targets"), self.targets)
        before, self._late = self._states, None
        self._states = {name: LayerState.load(state) for name, state in state_dict["layers"].items()}
        for name, state in before.items():
            if name in self._states and self._states[name].num_clusters is None:
                state.forget_choice()
        self.tasks, self.steps = list(state_dict["tasks"]), state_dict["steps"]
        evidence, self._saved_warmup = state_dict["evidence"], state_dict["warmup"]
        self.evidence = None if evidence is None else Evidence(**evidence)
        if self._module is None:
            return
        self.attach(self._module, fresh=False)
        for name in set(self._just_started).intersection(self._states) if self.steps else ():
            if self._states[name].num_clusters != 1 and self._states[name].target.is_alike():
                raise InputError(
                    f"the tasks of {name} all have the weights of the shared start: make NetworkClustering first, then "
                    "load the module's weights, then the state of the clusters"
                )

    def _catch_up(self) -> None:
        """Take note of what the last step of sharing has found on a GPU."""
        late, self._late = self._late, None
        if late is not None:
            late.tell(self._states, self.tasks)

    def _check_module(self) -> None:
        if self._module is None:
            raise InputError("there is nothing to cluster yet: give NetworkClustering a module, or attach one")

    def _go_on(self, warmup: bool | None) -> SharedWarmup | None:
        """The shared warm-up, if the step that begins or goes on is one of it; at its end it fixes the clusters."""
        self._check_module()
        shared = self._warmup
        if shared is None or (not shared.is_over and (self.steps < self.warmup_steps if warmup is None else warmup)):
            return shared
        self.evidence, self._warmup = shared.decide(self._states, self.steps + 1, self.backend), None
        return None
