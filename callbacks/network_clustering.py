"""Network clustering for any LightningModule with cluster layers."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lightning_ncmtl.clustering import assign_tasks, check_backend, share
from lightning_ncmtl.clustering.kmeans import Backend
from lightning_ncmtl.clustering.sharing import own_weights
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import ClusterLinear, TaskLinear


@dataclass
class _LayerState:
    """What the callback remembers of one cluster layer."""

    assignment: Tensor | None = None  # [N], None before the first clustering
    residual: Tensor | None = None  # [N, D], None before the first clustering and once frozen
    frozen_at_step: int | None = None
    trace: list[list[Any]] = field(default_factory=list)  # [step, [N cluster numbers]] whenever they change


class NetworkClusteringCallback(Callback):
    """Groups tasks with similar weights into clusters that share them, layer by layer, while a model trains.

    The layers must be there when the trainer calls ``setup`` (made in the module's ``__init__``).

    After each optimizer step it runs the sharing step of :mod:`lightning_ncmtl.clustering.sharing` on every
    :class:`lightning_ncmtl.ClusterLinear` of the module. Everything else sees shared weights.

    It departs from the paper, whose algorithm groups tasks by their random start and never changes again: there is a
    shared start, a warm-up and a memory of where each task wanted to go. ``preset="literal"`` is the paper's.

    Args:
        num_clusters: Number of clusters, one for all layers or one per layer; by default each layer's own.
        warmup_epochs: Epochs in which tasks train apart, before the first clustering. (A layer with one cluster has
            nothing to wait for and shares from the first step.)
        warmup_steps: The same in optimizer steps; overrides ``warmup_epochs``.
        every_n_steps: Run k-means every this many optimizer steps (the paper: 1). Sharing runs after each.
        freeze_after_epochs: Keep the clusters as they are after this many epochs of training (the paper: 4); ``None``
            never.
        commitment: Fraction in [0, 1] of its distance to the centre that a task gives up per step.
        restarts: k-means++ starts of the first clustering.
        backend: The k-means to use, see :func:`lightning_ncmtl.kmeans`.
        seed: Seed of k-means++.
        preset: ``"literal"`` for the paper word for word: independent random start of every task (heads included), no
            warm-up, no memory (``commitment=1``), one k-means++ start anew at each clustering. It overrides the
            settings of these.

    Attributes:
        assignments: The clusters found, ``{layer name: [N] int64}``; empty before the first clustering.

    Raises:
        InputError: At construction or setup, if a setting is out of range or the module has no cluster layer.

    Logs ``clustering/LAYER/loss``, the paper's clustering loss, and ``clustering/LAYER/changed``, the share of tasks
    that changed cluster.
    """

    def __init__(
        self,
        num_clusters: int | list[int] | None = None,
        warmup_epochs: int = 2,
        warmup_steps: int | None = None,
        every_n_steps: int = 1,
        freeze_after_epochs: int | None = 4,
        commitment: float = 0.01,
        restarts: int = 10,
        backend: Backend = "auto",
        seed: int = 0,
        preset: Literal["literal"] | None = None,
    ) -> None:
        if preset == "literal":
            warmup_epochs, warmup_steps, commitment, restarts = 0, None, 1.0, 1
        elif preset is not None:
            raise InputError(f"unknown preset {preset!r}: choose 'literal' or none")
        if every_n_steps < 1 or restarts < 1 or warmup_epochs < 0 or (warmup_steps or 0) < 0:
            raise InputError(
                f"every_n_steps and restarts must be at least 1 and the warm-up at least 0, found {every_n_steps=}, "
                f"{restarts=}, {warmup_epochs=}, {warmup_steps=}"
            )
        if not 0 <= commitment <= 1:
            raise InputError(f"commitment must be between 0 and 1, found {commitment}")
        if freeze_after_epochs is not None and warmup_steps is None and freeze_after_epochs <= warmup_epochs:
            raise InputError(
                f"freeze_after_epochs {freeze_after_epochs} leaves no time to cluster after warmup_epochs "
                f"{warmup_epochs}: make it greater, or null"
            )
        self.num_clusters = num_clusters
        self.warmup_epochs = warmup_epochs
        self.warmup_steps = warmup_steps
        self.every_n_steps = every_n_steps
        self.freeze_after_epochs = freeze_after_epochs
        self.commitment = commitment
        self.restarts = restarts
        self.backend = backend
        self.seed = seed
        self.preset = preset
        self._layers: dict[str, ClusterLinear] = {}
        self._states: dict[str, _LayerState] = {}
        self._last_step = 0

    @property
    def assignments(self) -> dict[str, Tensor]:
        return {name: s.assignment for name, s in self._states.items() if s.assignment is not None}

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per layer ``num_clusters``, ``assignment`` (empty if none), ``frozen_at_step``, ``trace``: plain values."""
        return {
            name: {
                "num_clusters": self._layers[name].num_clusters,
                "assignment": [] if state.assignment is None else state.assignment.tolist(),
                "frozen_at_step": state.frozen_at_step,
                "trace": state.trace,
            }
            for name, state in self._states.items()
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._layers = {n: m for n, m in pl_module.named_modules() if isinstance(m, ClusterLinear)}
        if not self._layers:
            raise InputError(f"{type(pl_module).__name__} has no ClusterLinear layer for NetworkClusteringCallback")
        for layer, clusters in zip(self._layers.values(), self._clusters_per_layer(), strict=True):
            layer.num_clusters = clusters
        if stage == "fit" or self._states.keys() != self._layers.keys():
            self._states = {name: _LayerState() for name in self._layers}
        if stage != "fit":
            return
        if any(1 < layer.num_clusters < layer.num_tasks for layer in self._layers.values()):
            check_backend(self.backend)
        if self.preset == "literal":  # a checkpoint is restored later and wins
            generator = torch.Generator().manual_seed(self.seed)
            for module in pl_module.modules():
                if isinstance(module, TaskLinear):
                    module.reset_parameters(generator=generator)
        # The callback keeps this buffer equal on all ranks. DDP would broadcast it at every forward pass, and hang
        # where ranks evaluate different numbers of batches.
        ignored = {f"{name}.assignment" for name in self._layers}
        ignored |= set(getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()))
        pl_module._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        step = trainer.global_step
        if step == self._last_step:  # gradients are being accumulated
            return
        self._last_step = step
        # A layer with one cluster is a hard layer: there is nothing to find out, so it shares from the first step.
        warmup = self._in_warmup(trainer)
        layers = {name: layer for name, layer in self._layers.items() if not warmup or layer.num_clusters == 1}
        if not layers:
            return
        self._freeze_if_due(trainer)
        rows = {name: _flatten(layer) for name, layer in layers.items()}
        _check_finite(rows, step)
        changed = self._assign(trainer, rows, step)
        for name, layer in layers.items():
            state = self._states[name]
            assert state.assignment is not None
            settled = state.frozen_at_step is not None or layer.num_clusters == 1  # no reason to remember
            commitment = 1.0 if settled else self.commitment
            assignment = state.assignment.to(rows[name].device)
            shared = share(rows[name], self._residual(state, rows[name]), assignment, layer.num_clusters, commitment)
            _unflatten(layer, shared.weights)
            if commitment < 1:
                state.residual = shared.residuals
            pl_module.log(f"clustering/{name}/loss", shared.loss)
            pl_module.log(f"clustering/{name}/changed", changed[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly; CPU tensors and plain values."""
        layers = {
            name: {
                "num_clusters": self._layers[name].num_clusters,
                "assignment": None if state.assignment is None else state.assignment.cpu(),
                "residual": None if state.residual is None else state.residual.cpu(),
                "frozen_at_step": state.frozen_at_step,
                "trace": state.trace,
            }
            for name, state in self._states.items()
        }
        return {"layers": layers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        theirs = {name: state["num_clusters"] for name, state in state_dict["layers"].items()}
        ours = {name: layer.num_clusters for name, layer in self._layers.items()}
        if theirs != ours:
            raise InputError(f"the checkpoint is of another model: it has the clusters {theirs}, this model {ours}")
        self._states = {
            name: _LayerState(**{key: value for key, value in state.items() if key != "num_clusters"})
            for name, state in state_dict["layers"].items()
        }

    def _clusters_per_layer(self) -> list[int]:
        layers = self._layers.values()
        if self.num_clusters is None:
            return [layer.num_clusters for layer in layers]
        wanted = self.num_clusters if isinstance(self.num_clusters, list) else [self.num_clusters] * len(layers)
        if len(wanted) != len(layers):
            raise InputError(f"num_clusters {wanted} must have one value for each of the {len(layers)} cluster layers")
        for clusters, (name, layer) in zip(wanted, self._layers.items(), strict=True):
            if not 1 <= clusters <= layer.num_tasks:
                raise InputError(f"num_clusters of {name} must be in 1 .. {layer.num_tasks} tasks, found {clusters}")
        return wanted

    def _in_warmup(self, trainer: Trainer) -> bool:
        if self.warmup_steps is not None:
            return trainer.global_step <= self.warmup_steps
        return trainer.current_epoch < self.warmup_epochs

    def _freeze_if_due(self, trainer: Trainer) -> None:
        if self.freeze_after_epochs is None or trainer.current_epoch < self.freeze_after_epochs:
            return
        for state in self._states.values():
            if state.frozen_at_step is None and state.assignment is not None:
                state.frozen_at_step = trainer.global_step
                state.residual = None

    def _assign(self, trainer: Trainer, rows: dict[str, Tensor], step: int) -> dict[str, float]:
        """Update the assignments; returns the share of tasks that changed cluster, per layer.

        Rank 0 decides for all, so that ranks cannot disagree by a rounding error.
        """
        due = {}
        for name in rows:
            state, layer = self._states[name], self._layers[name]
            undecided = state.frozen_at_step is None and 1 < layer.num_clusters < layer.num_tasks
            if state.assignment is None or (undecided and step % self.every_n_steps == 0):
                due[name] = state
        found = {name: self._cluster(rows[name], name, step) for name in due} if trainer.is_global_zero else {}
        if trainer.world_size > 1 and due:
            lists = trainer.strategy.broadcast({name: assignment.tolist() for name, assignment in found.items()})
            found = {name: torch.tensor(values, device=rows[name].device) for name, values in lists.items()}
        changed = dict.fromkeys(rows, 0.0)
        for name, state in due.items():
            new, old = found[name], state.assignment
            changed[name] = 1.0 if old is None else float((new != old.to(new.device)).double().mean())
            if changed[name]:
                state.trace.append([step, new.tolist()])
            state.assignment = new
            self._layers[name].assignment.copy_(new)
        return changed

    def _cluster(self, rows: Tensor, name: str, step: int) -> Tensor:
        state = self._states[name]
        literal = self.preset == "literal"
        return assign_tasks(
            own_weights(rows, self._residual(state, rows)),
            self._layers[name].num_clusters,
            None if state.assignment is None else state.assignment.to(rows.device),
            warm_start=not literal,
            restarts=self.restarts,
            seed=self.seed + step if literal else self.seed,
            backend=self.backend,
        )

    @staticmethod
    def _residual(state: _LayerState, rows: Tensor) -> Tensor:
        if state.residual is None:
            return torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
        return state.residual.to(rows.device)


def _flatten(layer: ClusterLinear) -> Tensor:
    """All parameters of a layer, ``[N, D]``."""
    return torch.cat([parameter.flatten(1) for parameter in layer.parameters()], dim=1)


def _unflatten(layer: ClusterLinear, rows: Tensor) -> None:
    """Write ``[N, D]`` back to a layer's parameters."""
    start = 0
    for parameter in layer.parameters():
        width = parameter[0].numel()
        parameter.copy_(rows[:, start : start + width].view_as(parameter))
        start += width


def _check_finite(rows: dict[str, Tensor], step: int) -> None:
    """Stop before k-means spreads a broken task to its cluster; on all ranks, which hold the same weights."""
    for name, row in rows.items():
        if not row.isfinite().all():
            tasks = (~row.isfinite().all(1)).nonzero().flatten().tolist()
            raise InputError(f"{name} has weights that are not finite (NaN or infinity): tasks {tasks}, step {step}")
