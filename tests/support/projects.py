"""Projects of other people's shape: a backbone and a container of heads, in plain Lightning."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ncmtl.callbacks import NetworkClusteringCallback

NUM_TASKS = 6


class HeadsMixin:
    """Regression in six tasks of two kinds: even tasks have one sign, odd tasks the other."""

    def __init__(
        self, lr: float = 0.05, optimizer: Callable[..., Any] = torch.optim.Adam, batch_size: int = 16
    ) -> None:
        super().__init__()
        self.lr, self.batch_size = lr, batch_size
        self.optimizer = optimizer
        self.backbone = nn.Linear(4, 8)
        names = ["ant", "bee", "cat", "dog", "eel", "fox"]
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1)) for name in names})

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.backbone(x).relu()
        every = torch.cat([head(x) for head in self.heads.values()], 1)
        return every.gather(1, task_ids.unsqueeze(1)).squeeze(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y, task_ids = batch
        return (self(x, task_ids) - y).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y, task_ids = batch
        self.log("val/loss", (self(x, task_ids) - y).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(seed=1), batch_size=32)


class Heads(HeadsMixin, LightningModule):
    pass


class Stacked(Heads):
    """The same tasks with one stacked parameter, and an output layer whose rows are tasks."""

    def __init__(self) -> None:
        super().__init__()
        del self.heads
        self.experts = nn.Parameter(torch.randn(6, 5, 8))
        self.binary = nn.Linear(5, 6)

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.backbone(x).relu()
        hidden = torch.einsum("bi,boi->bo", x, self.experts[task_ids]).tanh()
        return self.binary(hidden).gather(1, task_ids.unsqueeze(1)).squeeze(1)


def data(rows: int = 96, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    task_ids = torch.arange(rows) % NUM_TASKS
    y = x.sum(1) * (1 - 2 * (task_ids % 2))
    return TensorDataset(x, y, task_ids)


class Shared(Callback):
    """Checks after every optimizer step from the first clustering on that clusters share, and nobody else."""

    def __init__(self, clustering: NetworkClusteringCallback) -> None:
        self.clustering = clustering
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if "heads" in self.clustering.assignments:
            assert unshared(rows_of(pl_module), self.clustering.assignments["heads"]) == 0
            self.steps.append(trainer.global_step)


def rows_of(module: nn.Module, container: str = "heads") -> Tensor:
    """The parameters of each head, ``[N, D]``."""
    children = module.get_submodule(container).children()
    return torch.stack([nn.utils.parameters_to_vector(child.parameters()).detach() for child in children])


def unshared(rows: Tensor, assignment: Tensor) -> int:
    """Pairs of tasks whose weights are bitwise equal without being in one cluster, or the other way round."""
    equal = (rows.unsqueeze(0) == rows.unsqueeze(1)).all(2)
    return int((equal != (assignment.unsqueeze(0) == assignment.unsqueeze(1))).sum())
