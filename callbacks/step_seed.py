"""Random numbers that do not depend on what ran before, so that a resumed training continues exactly."""

import os
from typing import Any

import torch

from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds torch before every training batch from (seed, epoch, batch, rank).

    Lightning's checkpoints hold no random state. With this callback none is needed: dropout masks are a function of
    the batch's place in training, the same after a crash and a resume, on every rank, also in the middle of an epoch.

    Args:
        seed: The seed; that of ``seed_everything`` (or 0) by default.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        torch.manual_seed(hash((seed, trainer.current_epoch, batch_idx, trainer.global_rank)))
