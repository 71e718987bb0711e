"""Trainings with Lightning on the device: every precision, repeated and resumed bitwise, and what is left of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import CPU, DEVICE, GPU, TRAINER, no_waits, same_groups
from projects import Heads, Stacked, rows_of, unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ncmtl import ASPMTL, NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN

MakeTrainer = Callable[..., Trainer]
MakeModel = Callable[..., NCMTL]
KINDS = [0, 1] * 3  # of the tasks of tests/support/projects.py
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")


@pytest.fixture
def fit(make_trainer: MakeTrainer) -> Callable[..., tuple[LightningModule, NetworkClusteringCallback]]:
    """Train six tasks of two kinds; clusters share from the warm-up's end to the end."""

    def run(
        project: type[Heads] = Heads,
        targets: str | list[str] = "heads",
        callbacks: tuple[Callback, ...] = (),
        clustering: dict[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[LightningModule, NetworkClusteringCallback]:
        torch.manual_seed(0)
        model = project()
        given = {"warmup": "apart", "warmup_epochs": 8, "freeze_after_epochs": 11, **(clustering or {})}
        callback = NetworkClusteringCallback(**{"num_clusters": 2, "targets": targets, **given})
        trainer = make_trainer(**{**TRAINER, "max_epochs": 13, "callbacks": [callback, *callbacks], **settings})
        trainer.fit(model)
        assert trainer.strategy.root_device == DEVICE
        return model, callback

    return run


Fit = Callable[..., tuple[LightningModule, NetworkClusteringCallback]]


def assert_kinds_found(model: nn.Module, callback: NetworkClusteringCallback) -> None:
    found = callback.assignments["heads"]
    assert same_groups(found.tolist(), KINDS)
    assert unshared(rows_of(model).cpu(), found.cpu()) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clustering": {"metric": "cosine"}},
        {"clustering": {"num_clusters": "auto"}},
        {"clustering": {"every_n_steps": 3, "freeze_after_epochs": None}},
        {"clustering": {"warmup": "shared", "warmup_epochs": 10}},
        {
            "accumulate_grad_batches": 2,
            "max_epochs": 26,
            "clustering": {"warmup_epochs": 16, "freeze_after_epochs": 22},
        },
        {"gradient_clip_val": 0.5},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"benchmark": True},
        {"detect_anomaly": True},
        {"inference_mode": False},
    ],
    ids=str,
)
def test_the_kinds_of_tasks_are_found(fit: Fit, settings: dict[str, Any]) -> None:
    assert_kinds_found(*fit(**settings))


@pytest.mark.parametrize("targets", [["heads.*.0", "heads.*.2"], ["experts", "binary"]])
@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_several_targets(fit: Fit, targets: list[str], warmup: str) -> None:
    project = Heads if targets[0].startswith("heads") else Stacked
    _, callback = fit(project, targets, clustering={"warmup": warmup})
    assert list(callback.assignments) == targets


@pytest.mark.parametrize("preset", ["literal"])
def test_the_paper_word_for_word(fit: Fit, preset: str) -> None:
    _, callback = fit(clustering={"preset": preset})
    assert len(set(callback.assignments["heads"].tolist())) == 2


def test_fp16_with_a_scaler(fit: Fit) -> None:
    """Whose first steps are skipped, as their gradients overflow; then weights move."""
    if not GPU:
        pytest.skip("16-mixed is for GPUs")
    scales: list[float] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            scales.append(trainer.precision_plugin.scaler.get_scale())  # type: ignore[attr-defined]

    model, callback = fit(precision="16-mixed", callbacks=(Look(),))
    assert_kinds_found(model, callback)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert scales[-1] > 1


def test_a_step_that_the_scaler_skips_changes_nothing(fit: Fit) -> None:
    """Gradients that are not finite, in the middle of the training."""
    if not GPU:
        pytest.skip("16-mixed is for GPUs")

    class Overflow(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.global_step == 55:
                for weight in pl_module.parameters():
                    if weight.grad is not None:
                        weight.grad.fill_(torch.inf)

    assert_kinds_found(*fit(precision="16-mixed", callbacks=(Overflow(),)))


def test_deterministic_kernels(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before the first clustering to the end."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        assert_kinds_found(*fit(deterministic=True))
        assert_kinds_found(*fit(deterministic=True, clustering={"warmup": "shared", "warmup_epochs": 10}))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_ncmtl_with_deterministic_kernels(
    warmup: str,
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    callback = NetworkClusteringCallback(warmup=warmup, warmup_epochs=1, freeze_after_epochs=2)
    trainer = make_trainer(**TRAINER, deterministic=True, max_epochs=3, callbacks=[callback])
    try:
        trainer.fit(make_model(), datamodule=datamodule)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(callback.assignments) == 2


@pytest.mark.parametrize(
    "average", [lambda: EMAWeightAveraging(decay=0.9), lambda: StochasticWeightAveraging(0.01, swa_epoch_start=2)]
)
def test_averages_of_weights_share(fit: Fit, average: Callable[[], Callback]) -> None:
    model, callback = fit(callbacks=(average(),))
    assert unshared(rows_of(model).cpu(), callback.assignments["heads"].cpu()) == 0


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_the_hooks_wait_for_nothing(
    warmup: str, make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    """Neither before the first clustering nor, some steps after it, with the weights' average and numbers to log."""
    watched: list[int] = []

    class Watched(NetworkClusteringCallback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # type: ignore[override]
            if trainer.current_epoch in (0, 3) and trainer.global_step % 10 > 2 and not trainer.is_last_batch:
                with no_waits():
                    super().on_train_batch_end(trainer, *args)
                watched.append(trainer.current_epoch)
            else:
                super().on_train_batch_end(trainer, *args)

    settings = {"max_epochs": 4, "log_every_n_steps": 1, "logger": True}
    callbacks = [Watched(warmup=warmup, warmup_epochs=2, freeze_after_epochs=None), EMAWeightAveraging(decay=0.9)]
    make_trainer(**TRAINER, **settings, callbacks=callbacks).fit(make_model(), datamodule=datamodule)
    assert {0, 3} <= set(watched)


def run(
    folder: Path,
    epochs: int,
    model: NCMTL,
    make_trainer: MakeTrainer,
    data: MultiDomainDataModule,
    warmup: str,
    resume: Path | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    callback = NetworkClusteringCallback(warmup=warmup, warmup_epochs=2, freeze_after_epochs=4)
    trainer = make_trainer(
        **TRAINER, max_epochs=epochs, enable_checkpointing=True, callbacks=[callback, StepSeed(1), saved]
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model.state_dict(), callback.assignments


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("resumed", [None, 0, 2, 4])
@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_repeated_and_resumed_bitwise(
    tmp_path: Path,
    warmup: str,
    resumed: int | None,
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
) -> None:
    """From the beginning, and from checkpoints of the warm-up, of moving clusters and of frozen ones."""
    common = (make_trainer, datamodule, warmup)
    expected = run(tmp_path / "whole", 6, make_model(dropout=0.2), *common)
    start = None if resumed is None else tmp_path / f"whole/epoch={resumed}.ckpt"
    found = run(tmp_path / "again", 6, make_model(dropout=0.2), *common, start)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_what_is_kept_is_on_the_device_and_then_where_the_model_is(
    warmup: str, make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    seen: set[torch.device] = set()

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.current_epoch > 1:  # after the first clustering
                assert callback.assignments
                seen.update(found.device for found in callback.assignments.values())
                for layer in pl_module.cluster_layers:  # type: ignore[union-attr]
                    if layer.frozen_clusters is not None:
                        seen.update(values.device for values in layer.frozen_clusters[:3])

    callback = NetworkClusteringCallback(warmup=warmup, warmup_epochs=1, freeze_after_epochs=3)
    model = make_model()
    trainer = make_trainer(**TRAINER, max_epochs=5, callbacks=[callback, Look()])
    trainer.fit(model, datamodule=datamodule)
    assert seen == {DEVICE}
    place = next(model.parameters()).device  # Lightning brings the model back to the CPU
    assert {found.device for found in callback.assignments.values()} == {place} == {CPU}
    batch = next(iter(datamodule.val_dataloader()))
    assert model.eval()(batch["inputs"], batch["task_ids"]).device == CPU
    trainer.validate(model, datamodule=datamodule)  # on the device again


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("system", [NCMTL, SingleTask, SoftShare, HardShare, ASPMTL, MMoE, PLE, CrossStitch])
def test_all_systems_train(
    system: Callable[..., Any], precision: str, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    if precision == "16-mixed" and not GPU:
        pytest.skip("16-mixed is for GPUs")
    torch.manual_seed(0)
    model = system(HAN(400, 8, 4, num_layers=1), 4)
    clip = {} if precision == "16-mixed" and system is SingleTask else {"gradient_clip_val": 1.0}
    make_trainer(**TRAINER, max_epochs=1, precision=precision, **clip).fit(model, datamodule=datamodule)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_three_hundred_tasks(make_trainer: MakeTrainer) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "inputs": torch.randn(256, 8, generator=generator),
            "task_ids": torch.randint(0, 300, (256,), generator=generator),
            "labels": torch.randint(0, 2, (256,), generator=generator),
            "index": torch.arange(256),
        }
        for _ in range(12)
    ]
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = NCMTL(nn.Linear(8, 8), 300, cluster_features=(8,), num_clusters=(10,))
    callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=1)
    make_trainer(**TRAINER, max_epochs=3, callbacks=[callback]).fit(model, loader, loader)
    assert len(set(callback.assignments["cluster_layers.0"].tolist())) == 10


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_clusters_of_ncmtl_with_faiss(
    warmup: str, make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    faiss = pytest.importorskip("faiss")
    if GPU and not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("FAISS is a build for CPUs")
    callback = NetworkClusteringCallback(warmup=warmup, warmup_epochs=1, freeze_after_epochs=3, backend="faiss")
    make_trainer(**TRAINER, max_epochs=4, callbacks=[callback]).fit(make_model(), datamodule=datamodule)
    assert {len(set(found.tolist())) for found in callback.assignments.values()} == {2, 3}
