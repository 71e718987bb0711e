"""Layers of ours compute by clusters once these are frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_ncmtl import NCMTL, TaskLinear
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule

MakeModel = Callable[..., NCMTL]
MakeTrainer = Callable[..., Trainer]


class Groups(Callback):
    """By how many sets of weights each cluster layer computes in each step."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        layers = pl_module.cluster_layers
        self.seen.append([len(x.frozen_clusters.first) if x.frozen_clusters else x.num_tasks for x in layers])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=1e-3)


def weights(model: NCMTL) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_from_the_freezing_on_there_is_one_set_of_weights_per_cluster(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    model, groups = make_model(), Groups()
    callback = NetworkClusteringCallback([2, 1], warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
    make_trainer(max_epochs=3, callbacks=[callback, groups]).fit(model, datamodule=datamodule)
    steps = len(datamodule.train_dataloader())
    # One cluster is a hard layer from its first step on; clusters are frozen behind the first step of the third epoch.
    assert groups.seen == [[4, 4]] + [[4, 1]] * (2 * steps) + [[2, 1]] * (steps - 1)
    assert all(layer.frozen_clusters is None for layer in model.cluster_layers)  # somebody may train on without


def test_a_shared_warm_up_ends_in_one_set_of_weights_per_cluster(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    model, groups = make_model(), Groups()
    callback = NetworkClusteringCallback([2, 1], warmup_epochs=1)
    make_trainer(max_epochs=2, callbacks=[callback, groups]).fit(model, datamodule=datamodule)
    steps = len(datamodule.train_dataloader())
    assert groups.seen == [[4, 4]] * steps + [[2, 1]] * steps
    assert all(layer.frozen_clusters is None for layer in model.cluster_layers)


def test_with_sgd_nothing_changes(
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for freezes in (True, False):
        if not freezes:
            monkeypatch.setattr(TaskLinear, "freeze_clusters", lambda self, assignment: None)
        torch.manual_seed(0)
        model, groups = make_model(optimizer=sgd), Groups()
        callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
        trainer = make_trainer(max_epochs=4, precision="64-true", callbacks=[callback, groups])
        trainer.fit(model, datamodule=datamodule)
        assert (groups.seen[-1] == [2, 3]) == freezes
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.parametrize("epochs", [2, 3])
@pytest.mark.parametrize(
    "settings", [{"warmup": "apart", "warmup_epochs": 1, "freeze_after_epochs": 2}, {"warmup_epochs": 3}], ids=str
)
def test_resume_is_exact(
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    epochs: int,
    settings: dict[str, Any],
) -> None:
    """Bitwise the same weights, from a checkpoint before the freezing and from one behind it."""
    found = []
    for path in (None, tmp_path / f"epoch={epochs - 1}.ckpt"):
        model, groups = make_model(), Groups()
        saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        callback = NetworkClusteringCallback(**settings)
        callbacks = [callback, groups, StepSeed(1), saver]
        trainer = make_trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(model, datamodule=datamodule, ckpt_path=path, weights_only=False)
        assert groups.seen[-1] == [2, 3]
        found.append(weights(model))
    assert groups.seen[0] == ([2, 3] if epochs == 3 else [4, 4])  # a shared warm-up decides before a step
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_after_an_error_tasks_train_apart_again(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    class Fails(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                assert all(layer.frozen_clusters for layer in pl_module.cluster_layers)
                raise ValueError("broken")

    model, callback = make_model(), NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
    with pytest.raises(ValueError, match="broken"):
        make_trainer(max_epochs=4, callbacks=[callback, Fails()]).fit(model, datamodule=datamodule)
    assert all(layer.frozen_clusters is None for layer in model.cluster_layers)
