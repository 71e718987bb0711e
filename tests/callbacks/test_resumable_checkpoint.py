from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback, ResumableCheckpoint, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Synthetic


class Seen(Callback):
    """What every validation and every epoch's end saw."""

    def __init__(self) -> None:
        self.validations: list[tuple[int, float]] = []
        self.epochs: list[tuple[int, int]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append((trainer.global_step, trainer.current_epoch))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    "settings", [{}, {"val_check_interval": 3}, {"check_val_every_n_epoch": None, "val_check_interval": 5}]
)
def test_every_checkpoint_continues_exactly(
    settings: dict[str, Any],
    source: Synthetic,
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    """One after each step: nothing is lost and nothing done twice, also at the last batch of the last epoch."""

    def run(ckpt_path: Path | None = None, *callbacks: Callback) -> tuple[NCMTL, dict[str, Any], Seen]:
        model, seen = make_model(dropout=0.2), Seen()
        clustering = NetworkClusteringCallback(warmup_epochs=1, freeze_after_epochs=None)
        trainer = make_trainer(
            max_epochs=2,
            callbacks=[clustering, StepSeed(), seen, *callbacks],
            enable_checkpointing=bool(callbacks),
            num_sanity_val_steps=0,
            **settings,
        )
        data = MultiDomainDataModule(source, batch_size=16, validation_size=11, vocab_size=400, min_frequency=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return model, clustering.state_dict()["layers"], seen

    saving = ResumableCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    model, clusters, seen = run(None, saving)
    files = {int(file.stem.removeprefix("step=")): file for file in tmp_path.glob("*.ckpt")}
    assert sorted(files) == list(range(1, 17))
    for step, file in files.items():
        resumed, theirs, found = run(file)
        for name, value in model.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (step, name)
        torch.testing.assert_close(theirs, clusters, rtol=0, atol=0)
        assert found.validations == [row for row in seen.validations if row[0] > step], step
        assert found.epochs == [row for row in seen.epochs if row[0] > step], step
