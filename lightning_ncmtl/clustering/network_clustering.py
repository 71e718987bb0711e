"""Network clustering in any training loop: the sharing step on all cluster layers of a module, and its state."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_ncmtl.clustering._direct import means
from lightning_ncmtl.clustering._ranks import agree, get_rank, say, trains_alone, warn
from lightning_ncmtl.clustering.kmeans import Backend, Metric, check_backend
from lightning_ncmtl.clustering.layer_state import LayerState
from lightning_ncmtl.clustering.layout import NumClusters, find_layout
from lightning_ncmtl.clustering.sharing import Shared, assign_tasks, share
from lightning_ncmtl.clustering.start import start_alike, start_apart
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import PerTask, cluster_layers, plain_name


class NetworkClustering:
    """Groups tasks with similar weights into clusters that share them, layer by layer, while a module trains.

    Call :meth:`step` after each step of the optimizer. It runs the sharing step of
    :mod:`lightning_ncmtl.clustering.sharing` on each target, so that everything else sees shared weights. In a training
    with Lightning, :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` does all this.

    It departs from the paper, whose algorithm groups tasks by their random start and never changes again: there is a
    shared start, a warm-up and a memory of where each task wanted to go. ``preset="literal"`` is the paper's.

    Where ``torch.distributed`` is initialised, all ranks must step together: rank 0 decides for all.

    Args:
        module: The module; ``None`` to :meth:`attach` one later. Give it before the weights of a checkpoint are loaded,
            which the shared start would overwrite.
        num_clusters: Number of clusters, one for all targets or one per target. By default that of
            the :class:`lightning_ncmtl.ClusterLinear` layers. ``"auto"`` chooses it at the end of the warm-up, by the
            silhouette: at least 2, see :func:`lightning_ncmtl.clustering.choose_num_clusters`.
        targets: Names of the per-task parts of the module, one cluster layer each: a ``ModuleList`` or ``ModuleDict``
            with one child per task (``"heads"``), a part of each child (``"heads.*.fc1"``), or a parameter or module
            whose parameters have the task as their first dimension. By default every ``ClusterLinear``.
        task_names: Names of the tasks, for messages; by default the keys of the ``ModuleDict``, or indices.
        warmup_steps: Steps in which tasks train apart, before the first clustering: as many as the shared part of the
            network needs to become useful. (A layer with one cluster shares from the first step.)
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
            every task (heads included), no warm-up, no memory, one k-means++ start anew at each clustering.

    Attributes:
        tasks: Names of the tasks; empty before there is a module or a state.
        steps: How often :meth:`step` was called.
        losses: The last step of sharing of each target and its clustering loss, ``{target: (step, 0-d)}``.
        changes: The share of its tasks that changed cluster in that step, ``{target: 0-d}``.

    Raises:
        InputError: If a setting is out of range, or a target cannot be clustered.

    Example:
        >>> model = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(4, 1) for _ in range(6))})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clusters = NetworkClustering(model, num_clusters=2, targets="heads", warmup_steps=1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     sum(i % 2 * head.weight.sum() for i, head in enumerate(model["heads"])).backward()
        ...     optimizer.step()
        ...     clusters.step()
        >>> found = clusters.assignments["heads"]
        >>> bool((found == found[0])[::2].all()), bool(found[0] == found[1])
        (True, False)
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        num_clusters: NumClusters = None,
        targets: str | list[str] | None = None,
        *,
        task_names: list[str] | None = None,
        warmup_steps: int = 200,
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
            warmup_steps, commitment, restarts, shared_start = 0, 1.0, 1, False
        names = task_names is None or (isinstance(task_names, list) and all(isinstance(n, str) for n in task_names))
        for is_right, message in (
            (preset in ("literal", None), f"unknown preset {preset!r}: choose 'literal' or none"),
            (warmup_steps >= 0, f"warmup_steps must be at least 0, found {warmup_steps}"),
            (every_n_steps >= 1, f"every_n_steps must be at least 1, found {every_n_steps}"),
            (restarts >= 1, f"restarts must be at least 1, found {restarts}"),
            (0 <= commitment <= 1, f"commitment must be between 0 and 1, found {commitment}"),
            (metric in get_args(Metric), f"unknown metric {metric!r}: choose one of {', '.join(get_args(Metric))}"),
            (metric != "cosine" or shared_start, "the metric cosine compares ways from a shared start: allow for one"),
            (max_clusters >= 2, f"max_clusters must be at least 2, found {max_clusters}"),
            (names, f"task_names must be a list of strings, found {task_names!r}"),
        ):
            if not is_right:
                raise InputError(message)
        self.num_clusters = num_clusters
        self.targets = [targets] if isinstance(targets, str) else targets
        self.task_names = task_names
        self.warmup_steps = warmup_steps
        self.every_n_steps = every_n_steps
        self.commitment = commitment
        self.restarts = restarts
        self.backend = backend
        self.metric = metric
        self.max_clusters = max_clusters
        self.seed = seed
        self.shared_start = shared_start
        self.preset = preset
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
        self._states: dict[str, LayerState] = {}
        self._layers: list[PerTask] = []  # targets that are layers of this package
        self._just_started: list[str] = []  # targets whose weights the shared start has overwritten

    @property
    def assignments(self) -> dict[str, Tensor]:
        """The clusters found, ``{target: [N] int64}``; empty before the first clustering."""
        return {name: state.assignment for name, state in self._states.items() if state.assignment is not None}

    def summarize(self) -> dict[str, dict[str, Any]]:
        """Per target ``num_clusters``, ``assignment`` (empty if none), ``frozen_at_step``, ``trace``: plain values."""
        return {name: state.summarize() for name, state in self._states.items()}

    def attach(self, module: nn.Module, fresh: bool = True) -> None:
        """Find the targets in a module and bring it in line with the state, if one was loaded.

        Args:
            module: The module, whose layers must exist by now.
            fresh: Whether its training begins now, with a shared start. A state that was loaded says otherwise.

        Raises:
            InputError: If a target cannot be clustered, or the state is that of another module.
        """
        targets, tasks, clusters = find_layout(module, self.targets, self.num_clusters, self.task_names)
        if self._states and self.tasks != tasks:  # a cluster number belongs to the place of a task
            raise InputError(f"the checkpoint has the tasks {', '.join(self.tasks)}; the module {', '.join(tasks)}")
        if any(k is None or 1 < k < len(tasks) for k in clusters.values()):
            check_backend(self.backend)
        if self.backend == "faiss" and any(target.group is not None for target in targets.values()):
            raise InputError("FAISS needs whole weights, found sharded ones: choose the backend 'gram'")
        saved = {name: state.num_clusters for name, state in self._states.items()}
        clusters = {name: saved.get(name) if k is None else k for name, k in clusters.items()}
        if saved and saved != clusters:
            raise InputError(f"the checkpoint is of another model: it has the clusters {saved}, this model {clusters}")
        stacked = {plain_name(path): layer for path, layer in module.named_modules() if isinstance(layer, PerTask)}
        for layer in stacked.values():
            layer.freeze_clusters(None)
        self._module, self.tasks = module, tasks
        self._layers = [stacked[name] for name in targets if name in stacked]
        self._states = self._states or {name: LayerState(k) for name, k in clusters.items()}
        for name, state in self._states.items():
            state.attach(targets[name], stacked.get(name))
        if not saved:
            for name, target in targets.items():
                number = clusters[name] or "as yet unknown"
                say(f"{name}: {len(tasks)} tasks with {target.size:,} parameters each, {number} clusters")
        if fresh and not saved:
            if self.preset == "literal":
                start_apart(module, self.seed)
            if self.shared_start:
                self._just_started = start_alike(targets, tasks[0])
            if self.metric == "cosine":
                for name, target in targets.items():
                    self._states[name].start = target.read()[:1].clone()
        for name, state in self._states.items():
            if self.metric == "euclidean":
                state.start = None
            elif state.start is None and state.frozen_at_step is None:
                raise InputError(
                    f"the start of {name}, from which the metric cosine measures, is not known: the training did not "
                    "begin with this metric. Begin anew, or choose the metric euclidean"
                )

    @torch.no_grad()
    def step(self, warmup: bool | None = None) -> None:
        """The sharing step of all targets, after a step of the optimizer.

        Args:
            warmup: Whether tasks still train apart; by default in the first ``warmup_steps`` steps.

        Raises:
            InputError: If there is no module yet, or if weights are not finite: before they spread to their cluster.
        """
        if self._module is None:
            raise InputError("there is nothing to cluster yet: give NetworkClustering a module, or attach one")
        self._just_started = []
        self.steps += 1
        if warmup is None:
            warmup = self.steps <= self.warmup_steps
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
        own = {name: state.read_own() for name, state in states.items()}
        # Mostly the clusters stay, and then so do their means. A GPU is not asked whether they do.
        centers = {
            name: means(own[name], state.assignment, state.num_clusters)
            for name, state in states.items()
            if state.assignment is not None and state.num_clusters is not None and own[name].is_cpu
        }
        assignments = self._assign(states, own, centers)
        shared: dict[str, Shared] = {}
        for name, state in states.items():
            if state.num_clusters is None:
                say(f"{name}: {int(assignments[name].max()) + 1} clusters chosen")
            k = state.count_clusters(assignments[name])
            if name not in centers or not state.has(assignments[name]):
                centers[name] = means(own[name], assignments[name], k)
            commitment = 1.0 if state.is_settled else self.commitment
            shared[name] = share(own[name], assignments[name], centers[name], commitment, state.target.dtype)
            state.residual = shared[name].residuals if commitment < 1 else None
        losses = {name: states[name].target.total(result.loss) for name, result in shared.items()}
        self.changes = {name: state.measure_change(assignments[name]) for name, state in states.items()}
        # One look at the device for all targets
        seen = torch.stack([*losses.values(), *self.changes.values()]).tolist()
        for name, loss, change in zip(states, seen[: len(states)], seen[len(states) :], strict=True):
            if not math.isfinite(loss):  # on all ranks, with the same weights
                broken = ", ".join(self.tasks[task] for task in states[name].target.find_broken())
                raise InputError(
                    f"{name} has weights that are not finite (NaN or infinity) after step {self.steps}, of the tasks "
                    f"{broken}: a lower learning rate or gradient clipping may help"
                )
            states[name].remember(assignments[name], bool(change), self.steps)
        for name, state in states.items():
            state.target.write(shared[name].weights)
            state.freeze_layer()
            self.losses[name] = (self.steps, losses[name])

    def freeze(self) -> None:
        """Keep the clusters that there are from the next step on: layers of this package then compute with K sets."""
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

    @torch.no_grad()
    def share_copy(self, copy: nn.Module) -> None:
        """Give the tasks of each cluster the mean of their weights in a copy of the module, such as an average.

        An average holds weights from the warm-up and from before tasks came together. The mean over the cluster is what
        the average of shared weights would be; a second time it changes nothing.
        """
        layers = cluster_layers(copy)
        for name, assignment in self.assignments.items():
            self._states[name].target.find_in(copy).share(assignment)
            if name in layers:
                layers[name].assignment = assignment.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly; CPU tensors and plain values.

        Where parameters are sharded, all ranks must call it at once: it gathers the residuals, whole for each.
        """
        layers = {name: state.save() for name, state in self._states.items()}
        return {"layers": layers, "tasks": self.tasks, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. Load the weights of the module first.

        Raises:
            InputError: If the state is that of another module, or the module's weights were not loaded.
        """
        self._states = {name: LayerState.load(state) for name, state in state_dict["layers"].items()}
        self.tasks, self.steps = list(state_dict["tasks"]), state_dict["steps"]
        if self._module is None:
            return
        self.attach(self._module, fresh=False)
        for name in self._just_started if self.steps else ():
            if self._states[name].num_clusters != 1 and self._states[name].target.is_alike():
                raise InputError(
                    f"the tasks of {name} all have the weights of the shared start: make NetworkClustering first, then "
                    "load the module's weights, then the state of the clusters"
                )

    def _assign(
        self, states: dict[str, LayerState], own: dict[str, Tensor], centers: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The assignments of this step, on the device."""
        at_once, literal = self.steps % self.every_n_steps == 0, self.preset == "literal"
        due = {
            name: state
            for name, state in states.items()
            if state.assignment is None or (at_once and state.is_undecided(len(self.tasks)))
        }
        found = {name: own[name].new_empty(len(own[name]), dtype=torch.int64) for name in due}
        for group in dict.fromkeys(state.target.group for state in due.values()):
            # Where each rank has a slice of the weights, rank 0 needs the others to decide.
            if trains_alone() or get_rank() == 0 or group is not None:
                mine = {name: state for name, state in due.items() if state.target.group == group}
                new = assign_tasks(
                    [own[name] for name in mine],
                    [state.num_clusters for state in mine.values()],
                    [state.assignment for state in mine.values()],
                    centers=[centers.get(name) for name in mine],
                    metric=self.metric,
                    origins=[state.start for state in mine.values()],
                    max_clusters=self.max_clusters,
                    warm_start=not literal,
                    restarts=self.restarts,
                    seed=self.seed + self.steps if literal else self.seed,
                    backend=self.backend,
                    group=group,
                )
                found.update(zip(mine, new, strict=True))
        found = agree(found)
        return {name: found.get(name, state.assignment) for name, state in states.items()}  # type: ignore[misc]
