"""Clustering together with what Lightning's Trainer offers: each test is a row of docs/compatibility.md."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Heads, Shared, data, rows_of, unshared
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule

MakeTrainer = Callable[..., Trainer]
STEPS = 6  # per epoch of the project


MakeClustering = Callable[..., NetworkClusteringCallback]
# All these trainings see their data in several epochs, and do not say which half they see
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")


@pytest.fixture
def train(
    make_trainer: MakeTrainer, clustering: MakeClustering
) -> Callable[..., tuple[Trainer, NetworkClusteringCallback, list[int]]]:
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


def test_the_kinds_of_tasks_are_found(model: Heads, make_trainer: MakeTrainer, clustering: MakeClustering) -> None:
    callback = clustering(warmup_steps=None, warmup_epochs=10, freeze_after_epochs=15)
    make_trainer(max_epochs=20, callbacks=[callback]).fit(model)
    assert callback.assignments["heads"].tolist() in ([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0])
    assert callback.tasks == ["ant", "bee", "cat", "dog", "eel", "fox"]


def test_gradient_accumulation(model: Heads, train: Train) -> None:
    trainer, callback, steps = train(model, accumulate_grad_batches=4)  # 6 batches: 4, then the 2 that are left
    assert trainer.global_step == 4
    assert callback.clusters.steps == 4
    # Of the second epoch the batches 4 to 6, after the warm-up; a shared one ends in clusters before the step
    assert steps == [2] * 3 * (callback.clusters.warmup == "shared") + [3, 3, 4]


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
    seen: list[torch.dtype] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            (callback,) = (each for each in trainer.callbacks if isinstance(each, NetworkClusteringCallback))
            state = callback.state_dict()
            remembered = [state["layers"]["heads"]["residual"]]
            remembered += [value for views in (state["warmup"] or {"views": []})["views"] for value in views.values()]
            seen.extend(each.dtype for each in remembered if each is not None)

    _, _, steps = train(model, Look(), precision=precision)
    assert steps == list(range(3, 13))
    assert set(seen) == {torch.float64 if precision == "64-true" else torch.float32}


def test_16_mixed_where_the_scaler_skips_steps(
    model: Heads, make_trainer: MakeTrainer, clustering: MakeClustering
) -> None:
    """The scale starts so high that gradients overflow and the first steps are left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    callback = clustering(warmup_steps=6 * STEPS, freeze_after_epochs=None)
    plugins = [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]
    shared = Shared(callback)
    make_trainer(max_epochs=8, callbacks=[callback, shared], plugins=plugins).fit(model)
    assert scaler.get_scale() < 2.0**40
    assert shared.steps == list(range(6 * STEPS + 1, 8 * STEPS + 1))
    assert rows_of(model).isfinite().all()
    assert callback.assignments["heads"].unique().tolist() == [0, 1]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
def test_compiled_modules(model: Heads, make_trainer: MakeTrainer, clustering: MakeClustering) -> None:
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


def test_manual_optimization_with_several_optimizers(make_trainer: MakeTrainer, clustering: MakeClustering) -> None:
    callback = clustering(warmup_steps=4)
    shared = Shared(callback)
    trainer = make_trainer(max_epochs=2, callbacks=[callback, shared])
    model = Manual()
    trainer.fit(model)
    assert trainer.global_step == 18  # 12 of the one and 6 of the other
    if callback.clusters.warmup == "apart":  # it counts batches
        assert shared.steps == [7, 9, 10, 12, 13, 15, 16, 18]  # batches 5 to 12
        assert callback.clusters.steps == 12
    else:  # a shared one counts the steps of the heads: batches 2, 4, 6 and 8
        assert shared.steps == [13, 15, 16, 18]
        assert callback.clusters.steps == 4 + 4


class Adversarial(Heads):
    """Heads that generate, and a critic with an optimizer of its own that steps first, twice in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y, task_ids = batch
        generator, critic = self.optimizers()
        self.toggle_optimizer(critic)
        for _ in range(2):
            made = self(x, task_ids).detach()
            critic.zero_grad()
            self.manual_backward((self.critic(made[:, None]) - self.critic(y[:, None])).mean())
            critic.step()
        self.untoggle_optimizer(critic)
        self.toggle_optimizer(generator)
        made = self(x, task_ids)
        generator.zero_grad()
        self.manual_backward(F.mse_loss(made, y) - 0.01 * self.critic(made[:, None]).mean())
        generator.step()
        self.untoggle_optimizer(generator)

    def configure_optimizers(self) -> Any:
        heads = [*self.backbone.parameters(), *self.heads.parameters()]
        return torch.optim.Adam(heads, 0.01), torch.optim.SGD(self.critic.parameters(), 0.01)


def test_an_adversary_with_an_optimizer_of_its_own(make_trainer: MakeTrainer, clustering: MakeClustering) -> None:
    torch.manual_seed(0)
    model, callback = Adversarial(), clustering(warmup_steps=4)
    learned: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if (warmup := callback.state_dict()["warmup"]) is not None:
                learned.append(sum(warmup["seen"]))

    shared = Shared(callback)
    trainer = make_trainer(max_epochs=2, callbacks=[callback, Count(), shared])
    trainer.fit(model)
    assert trainer.global_step == 3 * 12
    assert shared.steps == list(range(3 * 5, 3 * 12 + 1, 3))
    assert callback.clusters.steps == 12
    assert learned == ([] if callback.clusters.warmup == "apart" else [1, 2, 3, 4])


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
        layer = content["callbacks"]["NetworkClusteringCallback(heads)"]["layers"]["heads"]
        saved = Heads()
        saved.load_state_dict(content["state_dict"])
        assert unshared(rows_of(saved), layer["assignment"]) == 0
        if layer["residual"] is not None:
            assert layer["residual"].sum(0).abs().max() < 1e-4


@pytest.mark.parametrize("warmup_steps", [2, 9, None])
def test_lr_find_and_scale_batch_size_leave_no_trace(
    model: Heads, make_trainer: MakeTrainer, clustering: MakeClustering, warmup_steps: int | None
) -> None:
    callback = clustering(warmup_steps=warmup_steps)
    if warmup_steps is None and callback.clusters.warmup == "apart":
        callback = clustering(warmup_steps=None, warmup_epochs=1)
    trainer = make_trainer(callbacks=[callback], max_epochs=2, default_root_dir=".")
    before = rows_of(model)
    assert Tuner(trainer).lr_find(model, num_training=20) is not None
    assert Tuner(trainer).scale_batch_size(model, max_trials=2, steps_per_trial=2) is not None
    assert torch.equal(rows_of(model), before)
    assert callback.assignments == {}
    trainer.fit(model)
    first = callback.clusters.summarize()["heads"]["trace"][0][0]
    # The warm-up was not used up; by default it is half of the training, with the batch size that was found
    assert first == (len(data()) // 4 if warmup_steps is None else warmup_steps) + 1
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
    callback = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=0)
    shared = Shared(callback)
    make_trainer(callbacks=[callback, shared], fast_dev_run=2).fit(model)
    assert shared.steps == [1, 2]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_short_training_has_a_step_of_each_half_before_clusters(
    model: Heads, make_trainer: MakeTrainer, steps: int
) -> None:
    callback = NetworkClusteringCallback(2, "heads")
    shared = Shared(callback)
    make_trainer(callbacks=[callback, shared], fast_dev_run=steps).fit(model)
    assert shared.steps == list(range(max(2, -(-steps // 2)) + 1, steps + 1))


def test_epochs_of_one_batch(make_trainer: MakeTrainer) -> None:
    """Steps take turns, not batches of an epoch."""
    model, callback = Heads(batch_size=96), NetworkClusteringCallback(2, "heads")
    shared = Shared(callback)
    make_trainer(callbacks=[callback, shared], max_epochs=8).fit(model)
    assert shared.steps == [5, 6, 7, 8]


def test_data_of_unknown_length(make_trainer: MakeTrainer) -> None:
    """By default the warm-up then lasts at most half of the epochs, or of the steps."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(data())

    for settings, first in (({"max_epochs": 3}, 2 * STEPS + 1), ({"max_epochs": -1, "max_steps": 10}, 6)):
        torch.manual_seed(0)
        callback = NetworkClusteringCallback(2, "heads")
        trainer = make_trainer(callbacks=[callback], **settings)
        trainer.fit(Heads(), DataLoader(Stream(), batch_size=16))
        assert callback.clusters.summarize()["heads"]["frozen_at_step"] == first
        assert callback.warmup_epochs is None
        # Another training with the callback goes by its own length
        make_trainer(callbacks=[callback], max_epochs=4).fit(Heads(), DataLoader(Stream(), batch_size=16))
        assert callback.clusters.summarize()["heads"]["frozen_at_step"] == 2 * STEPS + 1


def test_training_without_an_end(make_trainer: MakeTrainer) -> None:
    """Of a length that nobody knows there is no half."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3 * STEPS

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(data())

    for batches in (DataLoader(Stream(), batch_size=16), DataLoader(data(), batch_size=16)):
        callback = NetworkClusteringCallback(2, "heads")
        trainer = make_trainer(callbacks=[callback, Stop()], max_epochs=-1)
        trainer.fit(Heads(), batches)
        assert trainer.global_step == callback.clusters.steps == 3 * STEPS
        assert not callback.assignments


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

    callbacks = [NetworkClusteringCallback(warmup_epochs=0, warmup="apart"), Seen()]
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


def test_training_on_with_the_same_trainer_keeps_the_clusters(
    model: Heads, make_trainer: MakeTrainer, clustering: MakeClustering
) -> None:
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
def test_other_settings(model: Heads, clustering: MakeClustering, settings: dict[str, Any]) -> None:
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
    layer = content["callbacks"]["NetworkClusteringCallback(heads)"]["layers"]["heads"]
    assert unshared(rows_of(saved), layer["assignment"]) == 0
