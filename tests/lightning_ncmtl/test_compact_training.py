"""A compact model, trained on: one row of weights, of gradients and of optimizer state for each cluster."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import HeadsMixin, data
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl import NCMTL, ClusterLinear, TaskModule, compact
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import CompactLayer

MakeTrainer = Callable[..., Trainer]
CLUSTERS = torch.tensor([0, 1, 1, 0, 1, 1])


class Layers(HeadsMixin, LightningModule):
    """One cluster layer, one per-task module and one stacked parameter."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        del self.heads
        self.layer = ClusterLinear(6, 8, 5, num_clusters=2)
        self.block = TaskModule(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5)), 6)
        self.out = nn.Parameter(torch.randn(5).expand(6, 5).clone())

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.block(self.layer(self.backbone(x).relu(), task_ids).tanh(), task_ids)
        return (x * self.out[task_ids]).sum(1)


def both(**settings: Any) -> tuple[Layers, Layers]:
    """A model whose tasks have equal weights, and the same with those of two clusters."""
    torch.manual_seed(0)
    model = Layers(**settings)
    return model, compact(model, {"layer": CLUSTERS, "block": CLUSTERS, "out": CLUSTERS})


def stacks(model: nn.Module) -> list[nn.Parameter]:
    """All but the backbone, in the same order whether compact or not."""
    named = {name: p for name, p in model.named_parameters() if not name.startswith("backbone")}
    order = {"layer": 0, "block": 1, "out": 2, "parametrizations": 2}
    return [named[name] for name in sorted(named, key=lambda name: (order[name.split(".")[0]], name))]


def test_a_step_by_hand() -> None:
    """A cluster has the sum of its tasks' gradients. As the mean of tasks that step apart, it moves 1/n as far."""
    model, small = both()
    batch = data(rows=12)[:]
    before = [p.detach().clone() for p in stacks(small)]
    of_backbone = []
    for each in (model, small):
        each.training_step(list(batch), 0).backward()
        of_backbone.append(each.backbone.weight.grad)
        torch.optim.SGD(each.parameters(), lr=0.1).step()
    torch.testing.assert_close(of_backbone[0], of_backbone[1])
    sizes = torch.tensor([2, 4])
    assert len(before) == 7
    for p, compacted, start in zip(stacks(model), stacks(small), before, strict=True):
        gradient = torch.zeros_like(compacted).index_add_(0, CLUSTERS, p.grad)  # type: ignore[arg-type]
        torch.testing.assert_close(compacted.grad, gradient)
        torch.testing.assert_close(compacted.detach(), start - 0.1 * gradient)
        size = sizes.view(2, *[1] * (p.ndim - 1))
        mean = torch.zeros_like(compacted).index_add_(0, CLUSTERS, p.detach()) / size  # as the callback takes it
        torch.testing.assert_close((mean - start) * size, compacted.detach() - start, rtol=1e-3, atol=1e-6)


def test_the_optimizer_has_a_row_for_each_cluster(make_trainer: MakeTrainer) -> None:
    model, small = both(optimizer=torch.optim.AdamW)
    sizes = []
    for each in (model, small):
        trainer = make_trainer(max_epochs=1)
        trainer.fit(each)
        (optimizer,) = trainer.optimizers
        state = [optimizer.state[p] for p in stacks(each)]
        sizes.append(sum(values.numel() for row in state for values in row.values() if values.ndim))
    assert sizes[0] == 2 * 6 * (5 * 8 + 5 + 2 * 5 + 5 * 5 + 5 + 5)  # two averages of all weights
    assert sizes[1] * 6 == sizes[0] * 2


def test_ncmtl_trains_on(
    make_model: Callable[..., NCMTL], make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, tmp_path: Path
) -> None:
    """From compaction, and from a checkpoint of such a training."""

    def loss(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            found = [F.cross_entropy(model(b["inputs"], b["task_ids"]), b["labels"]) for b in batches]
        model.train()
        return float(torch.stack(found).mean())

    model = make_model(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    callback = NetworkClusteringCallback(warmup_steps=2)
    make_trainer(max_epochs=1, callbacks=[callback]).fit(model, datamodule=datamodule)
    batches = list(datamodule.train_dataloader())
    small = compact(model)
    before = loss(small)
    trainer = make_trainer(max_epochs=4)
    trainer.fit(small, datamodule=datamodule)
    assert loss(small) < before
    assert all(isinstance(layer, CompactLayer) for layer in small.cluster_layers)
    assert [len(layer.clusters.weight) for layer in small.cluster_layers] == [2, 3]

    trainer.save_checkpoint(tmp_path / "it.ckpt")
    trainer = make_trainer(max_epochs=5)
    resumed = compact(model)
    trainer.fit(resumed, datamodule=datamodule, ckpt_path=tmp_path / "it.ckpt", weights_only=True)
    assert trainer.global_step == 5 * len(batches)
    (optimizer,) = trainer.optimizers
    assert optimizer.state[resumed.cluster_layers[0].clusters.weight]["step"] == 5 * len(batches)
    with pytest.raises(InputError, match="the checkpoint is of another model: .* cluster_layers.0"):
        make_trainer(max_epochs=6).fit(make_model(), datamodule=datamodule, ckpt_path=tmp_path / "it.ckpt")


def test_there_is_nothing_left_to_cluster(make_trainer: MakeTrainer) -> None:
    _, small = both()
    for targets, message in (
        (None, "the model is compact, its tasks share"),
        ("out", "the target 'out' names nothing"),
    ):
        trainer = make_trainer(max_epochs=1, callbacks=[NetworkClusteringCallback(2, targets)])
        with pytest.raises(InputError, match=message):
            trainer.fit(copy.deepcopy(small))
