"""Network clustering for any LightningModule with per-task modules."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ncmtl.clustering.layout import NumClusters
from lightning_ncmtl.clustering.network_clustering import NetworkClustering
from lightning_ncmtl.clustering.target_spec import TargetLike, read_target
from lightning_ncmtl.compatibility import (
    Callback,
    LightningModule,
    Trainer,
    attributes,
    find_averages,
    find_callbacks,
    rank_zero_warn,
)
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.whole import is_whole

_SHARDED = {"FSDPStrategy", "XLAFSDPStrategy", "DeepSpeedStrategy"}


class NetworkClusteringCallback(Callback):
    """Runs :class:`lightning_ncmtl.clustering.NetworkClustering` in a Lightning training, after each optimizer step.

    Everything else sees shared weights: the forward pass, validation, checkpoints, averaged copies of the model.

    Args:
        num_clusters: Number of clusters, one for all targets or one per target. By default that of
            the :class:`lightning_ncmtl.ClusterLinear` layers, and ``"auto"`` for others, which chooses it at the end
            of the warm-up.
        targets: Names of the per-task parts of the module, one cluster layer each, such as ``"heads"``,
            ``"heads.*.fc1"`` or ``"*_tower"``; or mappings that say more of one, such as
            ``{"name": "out", "rows_per_task": 2}``, see :class:`lightning_ncmtl.clustering.NetworkClustering`. By
            default every ``ClusterLinear``.
        warmup_epochs: Epochs before the first clustering. By default a shared warm-up ends when its clusters, if there
            are any, have not changed in two thirds of it, at the latest at half of the training; one apart lasts 2
            epochs. A number of epochs is the most. (A layer with one cluster has nothing to wait for and shares from
            the first step.)
        warmup_steps: The same in optimizer steps, instead of ``warmup_epochs``.
        freeze_after_epochs: After a warm-up apart, keep the clusters as they are after this many epochs of training
            (the paper: 4); ``None`` never. After a shared warm-up they stay anyway. Layers of this package then compute
            with one set of weights per cluster.
        groups: Controls, in which tasks share from the first step in clusters that nobody looks for: those of the data
            module's ``planted_groups`` (``"planted"``), or as large ones of tasks drawn by ``seed`` (``"random"``).
        settings: The other settings of :class:`lightning_ncmtl.clustering.NetworkClustering`: ``warmup``,
            ``specific``, ``task_names``, ``every_n_steps``, ``commitment``, ``restarts``, ``backend``, ``metric``,
            ``max_clusters``, ``seed``, ``shared_start`` and ``preset``.

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
        targets: TargetLike | list[TargetLike] | None = None,
        warmup_epochs: int | None = None,
        warmup_steps: int | None = None,
        freeze_after_epochs: int | None = 4,
        groups: Literal["planted", "random"] | None = None,
        **settings: Any,
    ) -> None:
        self.clusters = NetworkClustering(None, num_clusters, targets, warmup_steps=warmup_steps, **settings)
        if self.clusters.preset == "literal":
            warmup_epochs, warmup_steps = 0, None
        if self.clusters.warmup == "shared":  # whose clusters stay as they are
            freeze_after_epochs = None
        elif warmup_epochs is None and warmup_steps is None:
            warmup_epochs = 2
        least = 1 if self.clusters.warmup == "shared" else 0
        if warmup_epochs is not None and not is_whole(warmup_epochs, least):
            raise InputError(f"warmup_epochs must be a whole number from {least}, found {warmup_epochs!r}")
        if freeze_after_epochs is not None and not is_whole(freeze_after_epochs, 0):
            raise InputError(f"freeze_after_epochs must be a whole number from 0, found {freeze_after_epochs!r}")
        if freeze_after_epochs is not None and warmup_steps is None and freeze_after_epochs <= (warmup_epochs or 0):
            raise InputError(
                f"freeze_after_epochs {freeze_after_epochs} leaves no time to cluster after warmup_epochs "
                f"{warmup_epochs}: make it greater, or none at all (None, in YAML null)"
            )
        if groups not in (None, "planted", "random"):
            raise InputError(f"groups must be 'planted', 'random' or none, found {groups!r}")
        self.warmup_epochs = None if warmup_steps is not None else warmup_epochs
        self.warmup_steps = warmup_steps
        self.freeze_after_epochs = freeze_after_epochs
        self.groups = groups
        self._warmup_epochs = self.warmup_epochs  # by which this training goes
        self._last_step = 0
        self._fresh = self._began_fresh = True  # as far as is known by now, and was known in on_fit_start
        self._is_restored = False

    @property
    def assignments(self) -> dict[str, Tensor]:
        """The clusters found, ``{target: [N] int64}``; empty before the first clustering."""
        return self.clusters.assignments

    @property
    def state_key(self) -> str:
        """With the names of the targets, so that a trainer can have a callback for each of two sets of tasks."""
        names = [read_target(target).name for target in self.targets or ()]
        return f"NetworkClusteringCallback({', '.join(names)})" if names else "NetworkClusteringCallback"

    @property
    def targets(self) -> list[TargetLike] | None:
        """What it was told of the targets."""
        return self.clusters.targets

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; empty before training starts or is restored."""
        return list(self.clusters.tasks)

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        """No hook of Lightning's, but the first of Hugging Face's."""
        raise InputError(
            "NetworkClusteringCallback is for Lightning: a Trainer of Hugging Face takes "
            "lightning_ncmtl.hugging_face.NetworkClusteringTrainerCallback, with the same targets"
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # By name: the trainer may come from either package.
        if sharded := _SHARDED.intersection(base.__name__ for base in type(trainer.strategy).__mro__):
            raise InputError(
                f"NetworkClusteringCallback does not support {sharded.pop()}, in whose shards tasks cannot be told "
                "apart: use ModelParallelStrategy (FSDP2), the strategy 'ddp', or a single device"
            )
        self._fresh, self._is_restored = trainer.global_step == 0, False
        if self._fresh:
            self.clusters.reset()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] > 0:  # not one that a learning rate finder made to come back to
            self._fresh = False
        saved = {key for key in checkpoint.get("callbacks", {}) if key.startswith("NetworkClusteringCallback")}
        others = saved.difference(each.state_key for each in find_callbacks(trainer, NetworkClusteringCallback))
        if others and self.state_key not in saved:
            raise InputError(
                f"the checkpoint was trained with {', '.join(sorted(others))}, found {self.state_key}: name the same "
                "targets"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the targets: now all layers exist, and (unless they are sharded) a checkpoint has been restored."""
        self._began_fresh = self._fresh
        self.clusters.attach(pl_module, self._fresh)
        if self.groups is not None and self._fresh:
            self.clusters.fix(self._find_groups(trainer))

    def _find_groups(self, trainer: Trainer) -> list[int]:
        planted = getattr(attributes(trainer).datamodule, "planted_groups", None)
        if not planted:
            raise InputError(
                f"clustering.groups is {self.groups!r}, but nothing is known of groups: tell them, as in "
                "data.source.groups of FeatureTables"
            )
        numbers = {group: number for number, group in enumerate(dict.fromkeys(planted.values()))}
        found = torch.tensor([numbers[group] for group in planted.values()], device="cpu")
        if self.groups == "random":
            generator = torch.Generator().manual_seed(self.clusters.seed)
            found = found[torch.randperm(len(found), generator=generator, device="cpu")]
        return list(found.tolist())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        if self._began_fresh and not self._fresh and not self._is_restored:
            # Sharded modules are restored after on_fit_start, here from a checkpoint that knows nothing of clusters.
            self.clusters.reset()
            self.clusters.attach(pl_module, fresh=False)
        epochs, self._warmup_epochs = trainer.max_epochs, self.warmup_epochs
        if self.warmup_epochs is not None and epochs is not None and 0 <= epochs <= self.warmup_epochs:
            rank_zero_warn(f"training stops after {epochs} epochs, within the warm-up: nothing will be clustered")
        elif self.warmup_steps is not None and 0 <= trainer.max_steps <= self.warmup_steps:
            rank_zero_warn(f"training stops after {trainer.max_steps} steps, within the warm-up: nothing is clustered")
        elif self.warmup_epochs is None and self.warmup_steps is None:
            steps = trainer.estimated_stepping_batches
            if steps < 0:  # of data whose length is not known
                steps = math.inf
                if epochs is not None and epochs >= 0:
                    self._warmup_epochs = -(-epochs // 2)
            self.clusters.warmup_steps = max(steps / 2, 2)  # a step of each half

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        known = isinstance(batch, Mapping) and "half" in batch
        self.clusters.start_step(batch["half"] if known else None, self._is_warmup(trainer))
        waits = self.clusters.warmup == "shared" and not self.clusters.is_clustered
        if waits and not known and trainer.current_epoch == 1 and batch_idx == 0:
            rank_zero_warn(
                "batches do not say of which half of the data they are, as those of data.batches.halves do: an example "
                "may be in both, so that the evidence for clusters is too good"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.clusters.before_step(self._is_warmup(trainer), optimizer if len(trainer.optimizers) > 1 else None)

    def _is_warmup(self, trainer: Trainer) -> bool | None:
        return None if self._warmup_epochs is None else trainer.current_epoch < self._warmup_epochs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients are being accumulated
            return
        self._last_step = trainer.global_step
        if self.freeze_after_epochs is not None and trainer.current_epoch >= self.freeze_after_epochs:
            self.clusters.freeze()
        clusters = self.clusters
        clusters.step(self._is_warmup(trainer))
        for average in find_averages(trainer):
            clusters.share_copy(average)
        # Where a logger takes them: Lightning needs longer to log a number than we to cluster 14 tasks.
        if trainer.is_last_batch or clusters.steps % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            for name, (step, loss) in clusters.losses.items():
                if step == clusters.steps:
                    pl_module.log(f"clustering/{name}/loss", loss)
                    pl_module.log(f"clustering/{name}/changed", clusters.changes[name])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clusters.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(InputError):  # that weights are not finite: what ended the training is told
            self.clusters.release()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, see :meth:`.NetworkClustering.state_dict`."""
        return self.clusters.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_restored = True
        self.clusters.load_state_dict(state_dict)
