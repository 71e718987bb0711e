"""Checkpoints from which a training continues exactly."""

from typing import Any

import torch

from lightning_ncmtl.compatibility import LightningModule, ModelCheckpoint, Trainer
from lightning_ncmtl.metrics import TaskMetrics


class ResumableCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` that never saves between a batch and the validation or the epoch's end that follows it.

    Lightning continues from a checkpoint of that moment (``every_n_train_steps``) behind the validation and behind the
    hooks of the epoch's end: their metrics would be missing, and after the last epoch the training would not end. Such
    a checkpoint is saved a moment later, when they are done. (Where validation is due by time,
    ``val_check_interval="00:10:00"``, it saves at once.)

    Arguments are those of ``ModelCheckpoint``; but ``monitor="auto"`` is the first of the model's ``metrics``, or
    without any its accuracy, or the error where all tasks predict numbers, in validation (of models that have no
    :class:`lightning_ncmtl.metrics.TaskMetrics`, ``val/accuracy``). And ``mode`` only matters for what these do not
    have: of an accuracy more is better, of an error less.
    """

    _waiting: int | None = None  # index of the batch whose checkpoint is still to be saved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        metrics = getattr(pl_module, "metrics", None)
        known = metrics.directions if isinstance(metrics, TaskMetrics) else {"accuracy": True}
        if self.monitor == "auto":
            scores = list(metrics.scores) if isinstance(metrics, TaskMetrics) else []
            first = next(name for name in [*scores, "accuracy", "rmse"] if name in known)
            self.monitor = f"val/{first}"
        name = (self.monitor or "").split("/")
        if name[0] == "val" and name[1] in known:
            self.mode = "max" if known[name[1]] else "min"
            self.kth_value = torch.tensor(-torch.inf if known[name[1]] else torch.inf)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._waiting = batch_idx
        if not trainer.is_last_batch and not _validation_follows(trainer, batch_idx):
            self._save_waiting(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # First: it may leave it to what follows to save, with the metrics of this validation.
        self._save_waiting(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_waiting(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)

    def _save_waiting(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._waiting is not None:
            batch_idx, self._waiting = self._waiting, None
            super().on_train_batch_end(trainer, pl_module, None, None, batch_idx)


def _validation_follows(trainer: Any, batch_idx: int) -> bool:
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    if not trainer.val_check_batch:  # validation is due by time
        return False
    index = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return bool((index + 1) % trainer.val_check_batch == 0)
