from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from data import make_data
from projects import Heads, HeadsMixin, rows_of, unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback, ResumableCheckpoint, StepSeed
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
    "settings",
    [
        {},
        {"val_check_interval": 3},
        {"check_val_every_n_epoch": None, "val_check_interval": 5},
        {"limit_train_batches": 3},
        {"overfit_batches": 3},
    ],
)
@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_every_checkpoint_continues_exactly(
    warmup: Any,
    settings: dict[str, Any],
    source: Synthetic,
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    """One after each step: nothing is lost and nothing done twice, also at the last batch of the last epoch."""

    def run(ckpt_path: Path | None = None, *callbacks: Callback) -> tuple[NCMTL, dict[str, Any], Seen]:
        model, seen = make_model(dropout=0.2), Seen()
        clustering = NetworkClusteringCallback(warmup=warmup, warmup_epochs=1, freeze_after_epochs=None)
        trainer = make_trainer(
            max_epochs=2,
            callbacks=[clustering, StepSeed(), seen, *callbacks],
            enable_checkpointing=bool(callbacks),
            num_sanity_val_steps=0,
            **settings,
        )
        data = make_data(source, batch_size=16, validation_size=11, vocab_size=400, min_frequency=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return model, clustering.state_dict()["layers"], seen

    saving = ResumableCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    model, clusters, seen = run(None, saving)
    files = {int(file.stem.removeprefix("step=")): file for file in tmp_path.glob("*.ckpt")}
    assert sorted(files) == list(range(1, 7 if 3 in settings.values() and "val_check_interval" not in settings else 17))
    for step, file in files.items():
        resumed, theirs, found = run(file)
        for name, value in model.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (step, name)
        torch.testing.assert_close(theirs, clusters, rtol=0, atol=0)
        assert found.validations == [row for row in seen.validations if row[0] > step], step
        # Behind a validation it is saved before the hooks of the epoch's end, and else among them.
        assert found.epochs == [
            row for row in seen.epochs if row[0] > step or (row[0] == step and "val_check_interval" not in settings)
        ], step


@pytest.mark.parametrize("monitor", [None, "val/loss"])
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 3}, {"check_val_every_n_epoch": 1}])
def test_no_checkpoint_is_lost(
    settings: dict[str, Any], monitor: str | None, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """It saves after the steps after which Lightning's own would."""
    saved = []
    for cls in (ModelCheckpoint, ResumableCheckpoint):
        folder = tmp_path / cls.__name__
        saving = cls(folder, "{step}", every_n_train_steps=3, save_top_k=-1, monitor=monitor)
        trainer = make_trainer(max_epochs=2, callbacks=[saving], enable_checkpointing=True, **settings)
        trainer.fit(Heads())
        saved.append({int(file.stem.removeprefix("step=")) for file in folder.glob("*.ckpt")})
    assert saved[1] >= saved[0]
    # Nothing can be monitored before the first validation, which with most settings is after 6 steps.
    assert saved[1] == ({6, 9, 12} if monitor and "val_check_interval" not in settings else {3, 6, 9, 12})


def test_validation_by_time(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    saving = ResumableCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    make_trainer(max_epochs=1, callbacks=[saving], enable_checkpointing=True, val_check_interval="00:00:10:00").fit(
        Heads()
    )
    assert sorted(file.stem for file in tmp_path.glob("*.ckpt")) == ["step=3", "step=6"]


@pytest.mark.parametrize("first", [True, False])
def test_it_comes_last_under_both_packages(first: bool, tmp_path: Path) -> None:
    """Behind the clustering, so that it saves shared weights, whatever the order that was given."""

    class Other(HeadsMixin, lightning.pytorch.LightningModule):
        pass

    clustering = NetworkClusteringCallback(2, "heads", warmup_steps=2)
    saving = ResumableCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    lightning.pytorch.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[saving, clustering] if first else [clustering, saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Other())
    files = {int(file.stem.removeprefix("step=")): file for file in tmp_path.glob("*.ckpt")}
    assert sorted(files) == list(range(1, 13))
    for step, file in files.items():
        content = torch.load(file, weights_only=True)
        model = Heads()
        model.load_state_dict(content["state_dict"])
        assignment = content["callbacks"]["NetworkClusteringCallback(heads)"]["layers"]["heads"]["assignment"]
        assert (assignment is not None) == (step > 2)
        assert assignment is None or unshared(rows_of(model), assignment) == 0


@pytest.mark.parametrize(
    ("settings", "monitor", "expected"),
    [
        ({}, "auto", ("val/accuracy", "max")),
        ({"metrics": ["AUROC", "F1Score"]}, "auto", ("val/AUROC", "max")),
        ({"metrics": ["CalibrationError", "AUROC"]}, "auto", ("val/CalibrationError", "min")),
        ({"num_classes": 0, "regression_tasks": [0, 1]}, "auto", ("val/rmse", "min")),
        ({"num_classes": 0, "regression_tasks": [0, 1], "metrics": ["R2Score"]}, "auto", ("val/R2Score", "max")),
        ({"regression_tasks": [1]}, "auto", ("val/accuracy", "max")),
        ({}, "val/loss", ("val/loss", "min")),
        ({}, "val/accuracy/1", ("val/accuracy/1", "max")),
        ({}, "val/own", ("val/own", "max")),
        ({}, None, (None, "max")),
    ],
)
def test_what_is_monitored_follows_from_the_metrics(
    settings: dict[str, Any], monitor: str | None, expected: tuple[str | None, str], tmp_path: Path
) -> None:
    checkpoint = ResumableCheckpoint(tmp_path, monitor=monitor, mode="max")
    trainer = Trainer(logger=False, accelerator="cpu", callbacks=[checkpoint], default_root_dir=tmp_path)
    model = NCMTL(torch.nn.Linear(2, 3), 2, **settings)
    checkpoint.setup(trainer, model, "fit")
    assert (checkpoint.monitor, checkpoint.mode) == expected
    assert checkpoint.kth_value == (-torch.inf if expected[1] == "max" else torch.inf)


def test_other_models_are_monitored_by_the_accuracy_that_they_log(tmp_path: Path) -> None:
    checkpoint = ResumableCheckpoint(tmp_path, monitor="auto")
    trainer = Trainer(logger=False, accelerator="cpu", callbacks=[checkpoint], default_root_dir=tmp_path)
    checkpoint.setup(trainer, LightningModule(), "fit")
    assert (checkpoint.monitor, checkpoint.mode) == ("val/accuracy", "max")
