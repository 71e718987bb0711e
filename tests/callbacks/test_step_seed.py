from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from lightning_ncmtl.callbacks import StepSeed


class Draws(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.draws: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.draws.append(float(torch.rand(())))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_random_numbers_depend_on_seed_epoch_and_batch_alone(make_trainer: Callable[..., Trainer]) -> None:
    def draw(seed: int, disturbance: int) -> list[float]:
        torch.manual_seed(disturbance)
        model = Draws()
        make_trainer(max_epochs=2, callbacks=[StepSeed(seed)]).fit(model, torch.utils.data.DataLoader(range(3)))
        return model.draws

    first = draw(1, disturbance=10)
    assert first == draw(1, disturbance=20)
    assert len(set(first)) == 6
    assert not set(first) & set(draw(2, disturbance=10))
