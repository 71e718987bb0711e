"""Averaged weights of a cluster are equal, whenever somebody sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Heads, rows_of, unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule

MakeTrainer = Callable[..., Trainer]


MakeClustering = Callable[..., NetworkClusteringCallback]
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")


@pytest.fixture
def model() -> Heads:
    torch.manual_seed(0)
    return Heads()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging, StochasticWeightAveraging])
def test_averaged_weights_of_a_cluster_are_equal(
    model: Heads,
    make_trainer: MakeTrainer,
    clustering: MakeClustering,
    tmp_path: Path,
    averaging: Any,
    first: bool,
) -> None:
    """In validation, in checkpoints and at the end; whichever of the two callbacks comes first."""
    ours = clustering(warmup_steps=7)  # the average holds unshared weights from the warm-up
    validated: list[int] = []

    class Validated(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if ours.assignments:
                validated.append(unshared(rows_of(pl_module), ours.assignments["heads"]))

    if averaging is StochasticWeightAveraging:
        other = averaging(swa_lrs=0.01, swa_epoch_start=1)
    else:
        other = averaging(**({"decay": 0.9} if averaging is EMAWeightAveraging else {}))
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    callbacks = [ours, other] if first else [other, ours]
    trainer = make_trainer(callbacks=[*callbacks, Validated(), last], max_epochs=4, enable_checkpointing=True)
    trainer.fit(model)
    assert unshared(rows_of(model), ours.assignments["heads"]) == 0
    assert len(validated) == 3 * 3  # three epochs of three batches after the first clustering
    assert not any(validated)
    saved = Heads()
    plain = averaging is not StochasticWeightAveraging or torch.__version__ >= "2.11"  # older ones refuse its state
    saved.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=plain)["state_dict"])
    assert unshared(rows_of(saved), ours.assignments["heads"]) == 0
    if averaging is not StochasticWeightAveraging:
        assert torch.equal(rows_of(saved), rows_of(model))


@pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging])
@pytest.mark.parametrize("warmup_steps", [3, 9])  # it is resumed behind the warm-up, and in it
def test_a_training_with_averages_resumes_exactly(
    make_trainer: MakeTrainer, clustering: MakeClustering, tmp_path: Path, averaging: Any, warmup_steps: int
) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Trainer, Heads]:
        torch.manual_seed(0)
        model = Heads()
        trainer = make_trainer(callbacks=[averaging(), clustering(warmup_steps=warmup_steps)], max_epochs=epochs)
        trainer.fit(model, ckpt_path=ckpt_path)
        return trainer, model

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "half.ckpt")

    torch.manual_seed(0)
    make_trainer(callbacks=[averaging(), clustering(warmup_steps=warmup_steps), Save()], max_epochs=1).fit(Heads())
    _, resumed = run(3, tmp_path / "half.ckpt")
    _, whole = run(3)
    assert torch.equal(rows_of(resumed), rows_of(whole))


def test_an_average_is_the_mean_over_the_cluster_of_what_it_would_be(
    model: Heads, make_trainer: MakeTrainer, clustering: MakeClustering
) -> None:
    """With one cluster from the second step on, the running mean of weights is known by hand."""
    history: list[Tensor] = []

    class History(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            history.append(rows_of(pl_module))

    callbacks = [clustering(num_clusters=1), WeightAveraging(), History()]
    make_trainer(callbacks=callbacks, max_epochs=2).fit(model)
    torch.testing.assert_close(rows_of(model)[0], torch.stack(history).mean((0, 1)))


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_our_layers_keep_their_assignment_in_an_average(
    make_model: Callable[..., Any], make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, warmup: Any
) -> None:
    callback = NetworkClusteringCallback(warmup_steps=2, warmup=warmup)
    model = make_model()
    make_trainer(callbacks=[callback, EMAWeightAveraging(decay=0.99)], max_epochs=1).fit(model, datamodule=datamodule)
    assert len(callback.assignments) == 2
    for name, assignment in callback.assignments.items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.assignment, assignment)
        assert unshared(layer.weight.detach().flatten(1), assignment) == 0
