"""The metric cosine, and the number of clusters chosen in training, after a warm-up apart."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ncmtl import ClusterLinear
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.errors import InputError

GROUP = torch.arange(12) % 3


class Planted(LightningModule):
    """Tasks whose weights go in the direction of their group, each at its own speed, with some noise."""

    def __init__(self, speed: Tensor, steps: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(steps, len(GROUP), 40, generator=generator)
        self.moves = (torch.eye(3, 40)[GROUP] + 0.02 * noise) * speed.unsqueeze(1)
        self.tasks = ClusterLinear(len(GROUP), 39, 1, num_clusters=4)
        with torch.no_grad():
            self.tasks.weight.add_(100)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        weight, bias = self.moves[self.global_step % len(self.moves)].split([39, 1], dim=1)
        return -(self.tasks.weight[:, 0] * weight).sum() - (self.tasks.bias * bias).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(1))  # type: ignore[arg-type]  # an epoch per step


def fit(callback: NetworkClusteringCallback, speed: Tensor, max_steps: int = 8, **settings: Any) -> Planted:
    torch.manual_seed(0)
    module = Planted(speed)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "training stops after 2 steps, within the warm-up")
        trainer.fit(module, ckpt_path=settings.get("ckpt_path"))
    if "save" in settings:
        trainer.save_checkpoint(settings["save"])
    return module


def groups(assignment: Tensor) -> bool:
    """Whether the clusters are the planted groups."""
    return torch.equal(assignment.unsqueeze(0) == assignment.unsqueeze(1), GROUP.unsqueeze(0) == GROUP.unsqueeze(1))


EQUAL, UNEQUAL = torch.ones(12), torch.tensor([1.0, 1.0, 1.0, 30.0, 30.0, 30.0] * 2)


def test_cosine_finds_groups_whatever_their_speed() -> None:
    found = {}
    for metric in ("euclidean", "cosine"):
        callback = NetworkClusteringCallback(3, warmup="apart", warmup_steps=2, freeze_after_epochs=None, metric=metric)
        module = fit(callback, UNEQUAL)
        found[metric] = groups(callback.assignments["tasks"])
        rows = module.tasks.weight.detach()[:, 0]
        for cluster in range(3):
            members = rows[callback.assignments["tasks"] == cluster]
            assert members.eq(members[0]).all()
    assert found == {"euclidean": False, "cosine": True}


def test_cosine_measures_from_the_start_also_after_a_resume(tmp_path: Path) -> None:
    def callback() -> NetworkClusteringCallback:
        return NetworkClusteringCallback(3, warmup="apart", warmup_steps=2, freeze_after_epochs=None, metric="cosine")

    whole = fit(callback(), UNEQUAL)
    fit(callback(), UNEQUAL, max_steps=5, save=tmp_path / "it.ckpt")
    resumed = callback()
    again = fit(resumed, UNEQUAL, ckpt_path=tmp_path / "it.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    start = resumed.state_dict()["layers"]["tasks"]["start"]
    assert start.shape == (1, 40)
    assert start[0, :39].min() > 99  # as drawn, before any step

    euclidean = NetworkClusteringCallback(3, warmup="apart", warmup_steps=2, freeze_after_epochs=None)
    fit(euclidean, UNEQUAL, max_steps=6, ckpt_path=tmp_path / "it.ckpt")
    assert euclidean.state_dict()["layers"]["tasks"]["start"] is None  # nor does it measure from there

    euclidean = NetworkClusteringCallback(3, warmup="apart", warmup_steps=2, freeze_after_epochs=None)
    fit(euclidean, EQUAL, max_steps=5, save=tmp_path / "euclidean.ckpt")
    with pytest.raises(InputError, match="the start of tasks, from which the metric cosine measures, is not known"):
        fit(callback(), EQUAL, ckpt_path=tmp_path / "euclidean.ckpt")


@pytest.mark.parametrize("number", ["auto", ["auto"]])
def test_the_planted_number_is_chosen_after_the_warm_up(number: Any, tmp_path: Path) -> None:
    callback = NetworkClusteringCallback(number, warmup="apart", warmup_steps=3, freeze_after_epochs=None)
    fit(callback, EQUAL, max_steps=2, save=tmp_path / "warm.ckpt")
    assert callback.clusters.summarize()["tasks"]["num_clusters"] is None
    assert callback.assignments == {}
    for ckpt_path in (None, tmp_path / "warm.ckpt"):
        callback = NetworkClusteringCallback(number, warmup="apart", warmup_steps=3, freeze_after_epochs=None)
        module = fit(callback, EQUAL, ckpt_path=ckpt_path, save=tmp_path / "it.ckpt")
        assert callback.clusters.summarize()["tasks"]["num_clusters"] == 3
        assert module.tasks.num_clusters == 3
        assert groups(callback.assignments["tasks"])
        assert callback.clusters.losses["tasks"][0] == 8
    resumed = NetworkClusteringCallback(number, warmup="apart", warmup_steps=3, freeze_after_epochs=None)
    assert fit(resumed, EQUAL, max_steps=9, ckpt_path=tmp_path / "it.ckpt").tasks.num_clusters == 3
    assert resumed.clusters.summarize()["tasks"]["num_clusters"] == 3
    with pytest.raises(InputError, match="the checkpoint is of another model"):
        fit(
            NetworkClusteringCallback(2, warmup="apart", warmup_steps=3),
            EQUAL,
            max_steps=9,
            ckpt_path=tmp_path / "it.ckpt",
        )


def test_bounds_of_the_choice() -> None:
    callback = NetworkClusteringCallback(
        "auto", warmup="apart", warmup_steps=2, freeze_after_epochs=None, max_clusters=2
    )
    fit(callback, EQUAL)
    assert callback.clusters.summarize()["tasks"]["num_clusters"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "manhattan"}, "unknown metric 'manhattan': choose one of euclidean, cosine"),
        ({"metric": "cosine", "shared_start": False}, "compares ways from a shared start"),
        ({"metric": "cosine", "preset": "literal"}, "compares ways from a shared start"),
        ({"max_clusters": 1}, "max_clusters must be a whole number from 2, found 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetworkClusteringCallback(3, **{"warmup": "apart", **settings})


def test_per_task_modules_have_their_number_chosen_too() -> None:
    class Heads(Planted):
        def __init__(self) -> None:
            super().__init__(EQUAL)
            del self.tasks
            self.heads = nn.ModuleList(nn.Linear(39, 1) for _ in range(12))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            rows = torch.stack([torch.cat([head.weight[0], head.bias]) for head in self.heads])
            return -(rows * self.moves[self.global_step % len(self.moves)]).sum()

    module = Heads()
    callback = NetworkClusteringCallback("auto", "heads", warmup="apart", warmup_steps=2, freeze_after_epochs=None)
    Trainer(
        accelerator="cpu",
        max_steps=8,
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module)
    assert groups(callback.assignments["heads"])
