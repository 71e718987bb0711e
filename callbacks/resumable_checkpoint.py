"""Checkpoints from which a training continues exactly."""

from typing import Any

from lightning_ncmtl._lightning import LightningModule, ModelCheckpoint, Trainer


class ResumableCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` that never saves between a batch and the validation or the epoch's end that follows it.

    Lightning continues from a checkpoint of that moment (``every_n_train_steps``) behind the validation and behind the
    hooks of the epoch's end: their metrics would be missing, and after the last epoch the training would not end. Such
    a checkpoint is saved a moment later, when they are done. Arguments are those of ``ModelCheckpoint``.
    It is for trainers of ``pytorch_lightning`` (of ``lightning.pytorch`` where that is alone).
    """

    _waiting: int | None = None  # index of the batch whose checkpoint is still to be saved

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._waiting = batch_idx
        if not trainer.is_last_batch and not _validation_follows(trainer, batch_idx):
            self._save_waiting(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.is_last_batch:
            self._save_waiting(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._save_waiting(trainer, pl_module)

    def _save_waiting(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._waiting is not None:
            super().on_train_batch_end(trainer, pl_module, None, None, self._waiting)
            self._waiting = None


def _validation_follows(trainer: Any, batch_idx: int) -> bool:
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    index = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return bool((index + 1) % trainer.val_check_batch == 0)
