"""Clustering together with what Lightning's Trainer offers: each test is a row of docs/compatibility.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Heads, Shared, rows_of, unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.tuner import Tuner
from torch import Tensor

from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule

MakeTrainer = Callable[..., Trainer]
STEPS = 6  # per epoch of the project


def clustering(**settings: Any) -> NetworkClusteringCallback:
    return NetworkClusteringCallback(**{"num_clusters": 2, "targets": "heads", "warmup_steps": 2, **settings})


@pytest.fixture
def train(make_trainer: MakeTrainer) -> Callable[..., tuple[Trainer, NetworkClusteringCallback, list[int]]]:
    """Train, checking after each step; gives the trainer, the callback and the steps that were checked."""

    def run(
        model: LightningModule, *callbacks: Callback, **settings: Any
    ) -> tuple[Trainer, NetworkClusteringCallback, list[int]]:
        ours = clustering()
        shared = Shared(ours)
        trainer = make_trainer(callbacks=[ours, *callbacks, shared], **{"max_epochs": 2, **settings})
        trainer.fit(model)
        assert unshared(rows_of(model), ours.assignments["heads"]) == 0
        return trainer, ours, shared.steps

    return run


Train = Callable[..., tuple[Trainer, NetworkClusteringCallback, list[int]]]


@pytest.fixture
def model() -> Heads:
    torch.manual_seed(0)
    return Heads()


def test_the_kinds_of_tasks_are_found(model: Heads, make_trainer: MakeTrainer) -> None:
    callback = clustering(warmup_steps=None, warmup_epochs=10, freeze_after_epochs=15)
    make_trainer(max_epochs=20, callbacks=[callback]).fit(model)
    assert callback.assignments["heads"].tolist() in ([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0])
    assert callback.tasks == ["ant", "bee", "cat", "dog", "eel", "fox"]


def test_gradient_accumulation(model: Heads, train: Train) -> None:
    trainer, _, steps = train(model, accumulate_grad_batches=4)  # 6 batches: 4, then the 2 that are left
    assert trainer.global_step == 4
    assert steps == [3, 3, 4]  # of the second epoch the batches 4 to 6, after the warm-up


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradient_clipping(model: Heads, train: Train, algorithm: str) -> None:
    """With SGD and lr 1 the weights move by the clipped gradient: what is shared afterwards is its average."""
    model.optimizer, model.lr = torch.optim.SGD, 1.0
    moves: list[float] = []

    class Moves(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            self.before = rows_of(pl_module)

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            difference = rows_of(pl_module) - self.before
            moves.append(float(difference.norm() if algorithm == "norm" else difference.abs().max()))

    train(model, Moves(), gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    assert max(moves[3:]) <= 1e-3 * 1.01  # a mean of moves is no longer than they
    assert max(moves[3:]) > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(model: Heads, train: Train, precision: Any) -> None:
    _, callback, steps = train(model, precision=precision)
    assert steps == list(range(3, 13))
    residual = callback.state_dict()["layers"]["heads"]["residual"]
    assert residual.dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_16_mixed_where_the_scaler_skips_steps(model: Heads, train: Train) -> None:
    """The scale starts so high that gradients overflow and the first steps are left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    _, _, steps = train(model, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)], max_epochs=8)
    assert scaler.get_scale() < 2.0**40
    assert steps == list(range(3, 8 * STEPS + 1))
    assert rows_of(model).isfinite().all()


@pytest.mark.filterwarnings("ignore:batches do not say of which half")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_of_a_shared_warmup(make_trainer: MakeTrainer, precision: Any) -> None:
    model, callback = Heads(), NetworkClusteringCallback(2, "heads", warmup_epochs=3, warmup="shared")
    seen: list[torch.dtype] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if (halves := callback.state_dict()["layers"]["heads"]["halves"]) is not None:
                seen.append(halves.dtype)

    make_trainer(max_epochs=4, callbacks=[callback, Look()], precision=precision).fit(model)
    assert set(seen) == {torch.float64 if precision == "64-true" else torch.float32}
    assert unshared(rows_of(model), callback.assignments["heads"]) == 0


@pytest.mark.filterwarnings("ignore:batches do not say of which half")
def test_a_shared_warmup_where_the_scaler_skips_steps(make_trainer: MakeTrainer) -> None:
    model, callback = Heads(), NetworkClusteringCallback(2, "heads", warmup_epochs=6, warmup="shared")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    plugins = [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]
    make_trainer(max_epochs=8, callbacks=[callback], plugins=plugins).fit(model)
    assert scaler.get_scale() < 2.0**40
    assert rows_of(model).isfinite().all()
    assert callback.assignments["heads"].unique().tolist() == [0, 1]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
def test_compiled_modules(model: Heads, make_trainer: MakeTrainer) -> None:
    """A compiled part and a compiled whole give the clusters and weights of the plain module."""

    def run(prepare: Callable[[Heads], Any]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        plain = Heads()
        callback = clustering()
        make_trainer(max_epochs=1, callbacks=[callback, Shared(callback)]).fit(prepare(plain))
        return callback.assignments["heads"], rows_of(plain)

    def compile_part(plain: Heads) -> Heads:
        plain.heads["bee"] = torch.compile(plain.heads["bee"], backend="aot_eager")  # type: ignore[assignment]
        return plain

    expected = run(lambda plain: plain)
    for prepare in (compile_part, lambda plain: torch.compile(plain, backend="aot_eager")):
        assignment, rows = run(prepare)
        assert torch.equal(assignment, expected[0])
        torch.testing.assert_close(rows, expected[1])


class Manual(Heads):
    """Two optimizers, of which that of the heads steps only in every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        backbone, heads = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        backbone.step()
        backbone.zero_grad()
        if batch_idx % 2:
            heads.step()
            heads.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.backbone.parameters(), 0.01), torch.optim.Adam(self.heads.parameters(), 0.01)


def test_manual_optimization_with_several_optimizers(make_trainer: MakeTrainer) -> None:
    callback = clustering(warmup_steps=4)
    shared = Shared(callback)
    trainer = make_trainer(max_epochs=2, callbacks=[callback, shared])
    model = Manual()
    trainer.fit(model)
    assert trainer.global_step == 18  # 12 of the one and 6 of the other
    assert shared.steps == [7, 9, 10, 12, 13, 15, 16, 18]  # batches 5 to 12: warm-up counts batches
    assert callback.state_dict()["steps"] == 12


def test_lr_scheduler(train: Train) -> None:
    class Scheduled(Heads):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}]

    trainer, _, _ = train(Scheduled())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 ** (2 * STEPS // 2))


def test_early_stopping(model: Heads, train: Train) -> None:
    trainer, _, steps = train(model, EarlyStopping("val/loss", patience=0, min_delta=1e9), max_epochs=9)
    assert trainer.current_epoch == 2
    assert steps[-1] == 2 * STEPS


def test_model_checkpoints_hold_shared_weights(model: Heads, train: Train, tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path / "every", "{step}", every_n_train_steps=4, save_top_k=-1)
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", save_top_k=2, save_last=True)
    train(model, every, best, max_epochs=4, enable_checkpointing=True)
    files = sorted(tmp_path.glob("*/*.ckpt"))
    assert [file.name for file in files if file.parent.name == "every"] == sorted(
        f"step={step}.ckpt" for step in range(4, 25, 4)
    )
    assert len(files) == 6 + 2 + 1
    for file in files:
        content = torch.load(file, weights_only=True)
        layer = content["callbacks"]["NetworkClusteringCallback"]["layers"]["heads"]
        saved = Heads()
        saved.load_state_dict(content["state_dict"])
        assert unshared(rows_of(saved), layer["assignment"]) == 0
        assert layer["residual"].sum(0).abs().max() < 1e-4


def test_lr_find_and_scale_batch_size_leave_no_trace(model: Heads, make_trainer: MakeTrainer) -> None:
    callback = clustering()
    trainer = make_trainer(callbacks=[callback], max_epochs=2, default_root_dir=".")
    before = rows_of(model)
    assert Tuner(trainer).lr_find(model, num_training=20) is not None
    assert Tuner(trainer).scale_batch_size(model, max_trials=2, steps_per_trial=2) is not None
    assert torch.equal(rows_of(model), before)
    assert callback.assignments == {}
    trainer.fit(model)
    assert callback.clusters.summarize()["heads"]["trace"][0][0] == 3  # the warm-up was not used up
    assert unshared(rows_of(model), callback.assignments["heads"]) == 0


def test_learning_rate_finder_before_the_training(model: Heads, train: Train) -> None:
    starts: list[int] = []

    class Start(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            starts.append(len(rows_of(pl_module).unique(dim=0)))

    _, callback, steps = train(model, LearningRateFinder(num_training_steps=10), Start())
    assert starts == [1]  # it does not keep tasks from their shared start
    assert steps == list(range(3, 13))
    assert callback.clusters.summarize()["heads"]["trace"][0][0] == 3


def test_fast_dev_run(model: Heads, make_trainer: MakeTrainer) -> None:
    callback = clustering(warmup_steps=0)
    shared = Shared(callback)
    make_trainer(callbacks=[callback, shared], fast_dev_run=2).fit(model)
    assert shared.steps == [1, 2]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches(model: Heads, train: Train) -> None:
    _, _, steps = train(model, overfit_batches=2, max_epochs=4)
    assert steps == list(range(3, 9))


def test_overfit_batches_of_the_data_module(
    make_model: Callable[..., Any], make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    seen: list[tuple[str, list[int]]] = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any) -> None:
            seen.append(("train", batch["index"].tolist()))

        def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
            seen.append(("validation", batch["index"].tolist()))

    callbacks = [NetworkClusteringCallback(warmup_epochs=0), Seen()]
    trainer = make_trainer(callbacks=callbacks, overfit_batches=2, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(make_model(), datamodule=datamodule)
    for stage in ("train", "validation"):
        batches = [batch for where, batch in seen if where == stage]
        assert len(batches) == 6
        assert batches[:2] == batches[2:4] == batches[4:]
        assert batches[0] != batches[1]


def test_validation_in_the_middle_of_an_epoch_sees_shared_weights(model: Heads, train: Train) -> None:
    validated: list[int] = []

    class Validated(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.global_step > 2:
                validated.append(len(rows_of(pl_module).unique(dim=0)))

    train(model, Validated(), val_check_interval=2)
    assert validated == [2] * 5  # steps 4, 6, ..., 12


def test_limits(model: Heads, train: Train) -> None:
    _, _, steps = train(model, limit_train_batches=3, limit_val_batches=1, max_epochs=3)
    assert steps == list(range(3, 10))
    _, _, steps = train(Heads(), limit_train_batches=0.5, max_epochs=3)
    assert steps == list(range(3, 10))


def test_training_on_with_the_same_trainer_keeps_the_clusters(model: Heads, make_trainer: MakeTrainer) -> None:
    callback = clustering()
    trainer = make_trainer(callbacks=[callback], max_epochs=2)
    trainer.fit(model)
    trace = list(callback.clusters.summarize()["heads"]["trace"])
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model)
    assert trainer.global_step == 3 * STEPS
    assert callback.clusters.summarize()["heads"]["trace"][: len(trace)] == trace
    assert callback.state_dict()["steps"] == 3 * STEPS


@pytest.mark.parametrize(
    "settings",
    [
        {"barebones": True},
        {"profiler": "simple"},
        {"precision": "16-true"},
        {"deterministic": True},
        {"detect_anomaly": True},
        {"reload_dataloaders_every_n_epochs": 1},
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
        {"inference_mode": False},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)` but `Trainer\\(barebones=True\\)`")
def test_other_settings(model: Heads, settings: dict[str, Any]) -> None:
    model.optimizer = torch.optim.SGD  # Adam's epsilon is zero in 16-true
    callback = clustering()
    shared = Shared(callback)
    quiet = {} if "barebones" in settings else {"logger": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[callback, shared], **quiet, **settings)
    trainer.fit(model)
    torch.use_deterministic_algorithms(False)
    assert shared.steps == list(range(3, 13))


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")  # OnExceptionCheckpoint makes Lightning look for "last"
def test_other_callbacks(model: Heads, train: Train, tmp_path: Path) -> None:
    """Finding a batch size first; other windows of accumulation later; a crash that leaves a checkpoint."""
    schedule = GradientAccumulationScheduler({0: 1, 1: 2})
    trainer, _, _ = train(model, BatchSizeFinder(max_trials=2, steps_per_trial=2, init_val=8), schedule)
    assert model.batch_size == 16
    assert trainer.global_step == 6 + 3

    class Crash(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("lightning strikes")

    with pytest.raises(RuntimeError, match="lightning strikes"):
        train(Heads(), OnExceptionCheckpoint(tmp_path), Crash(), enable_checkpointing=True)
    content = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)
    saved = Heads()
    saved.load_state_dict(content["state_dict"])
    layer = content["callbacks"]["NetworkClusteringCallback"]["layers"]["heads"]
    assert unshared(rows_of(saved), layer["assignment"]) == 0
