from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.clustering import assign_tasks
from lightning_ncmtl.clustering.kmeans import means
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError


class Rows(Callback):
    """Keeps the weights of the first cluster layer after every step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        layer = pl_module.cluster_layers[0]
        self.steps.append(torch.cat([layer.weight.detach().flatten(1), layer.bias.detach()], 1).clone())


def test_it_equals_the_formulas(
    make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    model, before, after = make_model(), Rows(), Rows()
    callback = NetworkClusteringCallback(warmup_epochs=1, warmup="shared", freeze_after_epochs=None)
    make_trainer(max_epochs=2, callbacks=[before, callback, after]).fit(model, datamodule=datamodule)
    steps = len(datamodule.train_dataloader())
    residual = torch.zeros_like(before.steps[0])
    for own, found in zip(before.steps[:steps], after.steps, strict=False):
        own = own + residual
        torch.testing.assert_close(found, own.mean(0, keepdim=True).expand_as(own))
        assert found.eq(found[0]).all()
        residual = own - own.mean(0)
    # The first clustering is of the weights that tasks wanted, and takes nobody there.
    first = before.steps[steps]
    clusters = model.cluster_layers[0].num_clusters
    assignment = assign_tasks(first + residual, clusters, restarts=10)
    assert callback.summary()["cluster_layers.0"]["trace"][0] == [steps + 1, assignment.tolist()]
    torch.testing.assert_close(after.steps[steps], means(first, assignment, clusters)[assignment])
    assert residual.norm() > 3 * (first - first.mean(0)).norm()  # so that it would have been seen


@pytest.mark.filterwarnings("ignore:training stops after 1 epochs")
def test_the_memory_of_the_warmup_is_in_checkpoints(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"warmup_epochs": 2, "warmup": "shared", "freeze_after_epochs": None}
    torch.manual_seed(0)
    whole = make_model()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    make_trainer(max_epochs=3, callbacks=[StepSeed(), NetworkClusteringCallback(**settings)]).fit(
        whole, datamodule=datamodule
    )
    part = make_model()
    part.load_state_dict(start)
    trainer = make_trainer(max_epochs=1, callbacks=[StepSeed(), NetworkClusteringCallback(**settings)])
    trainer.fit(part, datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again, callback = make_model(), NetworkClusteringCallback(**settings)
    trainer = make_trainer(max_epochs=3, callbacks=[StepSeed(), callback])
    trainer.fit(again, datamodule=datamodule, ckpt_path=tmp_path / "one.ckpt")
    assert callback.assignments
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_another_word_is_refused() -> None:
    with pytest.raises(InputError, match="warmup must be 'apart' or 'shared', found 'alone'"):
        NetworkClusteringCallback(warmup="alone")  # type: ignore[arg-type]


def test_literal_has_none() -> None:
    assert NetworkClusteringCallback(warmup="shared", preset="literal").warmup == "apart"
