import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl import SingleTask
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_equals_one_run_per_task(
    make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule, frozen: bool, algorithm: str
) -> None:
    """Plain networks, each trained on the documents of its task in each batch, by Adam and with clipped gradients."""
    torch.manual_seed(0)
    encoder = HAN(400, 8, 4, num_layers=1, dropout=0, freeze_embedding=frozen)
    model = SingleTask(encoder, 4, features=(8, 6), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    start: list[nn.Module] = list(copy.deepcopy(model.networks[0]).children())
    first, second = (start[1][place] for place in (0, 3))
    datamodule.batch_size = 5  # some tasks are absent from some batches
    clip = {"norm": 0.02, "value": 0.002}[algorithm]
    trainer = make_trainer(max_epochs=1, gradient_clip_val=clip, gradient_clip_algorithm=algorithm)
    trainer.fit(model, datamodule=datamodule)

    datamodule.trainer = None
    loader = datamodule.train_dataloader()
    tasks = loader.dataset.tasks()
    absent = clipped = 0
    for task, network in enumerate(model.networks):
        alone = copy.deepcopy(nn.Sequential(start[0], first, nn.ReLU(), second, nn.ReLU(), start[2]))
        optimizer = torch.optim.Adam(alone.parameters(), lr=0.01)
        for documents in loader.sampler:
            mine = [document for document in documents if tasks[document] == task]
            absent += not mine
            if not mine:
                continue
            rows = loader.dataset[mine]
            optimizer.zero_grad()
            F.cross_entropy(alone(rows["inputs"]), rows["labels"]).backward()
            if algorithm == "norm":
                clipped += bool(nn.utils.clip_grad_norm_(alone.parameters(), clip) > clip)
            else:
                clipped += any(p.grad.abs().max() > clip for p in alone.parameters() if p.grad is not None)
                nn.utils.clip_grad_value_(alone.parameters(), clip)
            optimizer.step()
        for ours, theirs in zip(network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert absent > 10
    assert clipped > 50


def test_all_networks_start_equal_and_share_what_is_frozen() -> None:
    encoder = HAN(20, 6, 5, freeze_embedding=True)
    model = SingleTask(encoder, 3)
    first, *others = [dict(network.named_parameters()) for network in model.networks]
    assert len(others) == 2
    for other in others:
        assert all(torch.equal(value, first[name]) for name, value in other.items())
        assert [name for name, value in other.items() if value is first[name]] == ["encoder.embedding.weight"]
    assert [tuple(p.shape) for name, p in first.items() if "weight" in name][-4:] == [
        (32, 10),
        (32, 32),
        (16, 32),
        (2, 16),
    ]


def test_a_task_that_is_absent_stays_as_it_is(make_trainer: Callable[..., Trainer]) -> None:
    """Also when Adam has moved it before."""
    torch.manual_seed(0)
    model = SingleTask(nn.Linear(3, 4), 3, features=())
    rows = [{"inputs": torch.randn(3), "task_ids": task, "labels": 1} for task in (0, 1, 0, 2)]
    trainer = make_trainer(max_steps=1)
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    trainer.fit(model, loader, loader)
    (optimizer,) = trainer.optimizers
    before = [copy.deepcopy(network) for network in model.networks]
    optimizer.zero_grad()
    model.loss(torch.utils.data.default_collate(rows[2:])).backward()
    optimizer.step()
    moved = [not torch.equal(a.head.weight, b.head.weight) for a, b in zip(before, model.networks, strict=True)]
    assert moved == [True, False, True]


def test_the_loss_is_the_sum_of_the_tasks_means() -> None:
    model = SingleTask(nn.Linear(3, 4), 3, features=())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model.networks[2].head.bias.data[:] = torch.tensor([0.0, 3.0]).log1p()  # odds of 1 to 4
    rows = {"inputs": torch.ones(3, 3), "task_ids": torch.tensor([2, 0, 2]), "labels": torch.tensor([0, 1, 1])}
    expected = torch.tensor(2.0).log() - (torch.tensor(1 / 5).log() + torch.tensor(4 / 5).log()) / 2
    torch.testing.assert_close(model.loss(rows), expected)


def test_gradients_that_are_still_scaled_are_not_clipped() -> None:
    model: Any = SingleTask(nn.Linear(3, 4), 3, features=())
    model.trainer = SimpleNamespace(precision="16-mixed")
    model.configure_gradient_clipping(torch.optim.Adam(model.parameters()), 1.0)
    with pytest.raises(InputError, match="set fused to false"):
        model.configure_gradient_clipping(torch.optim.Adam(model.parameters(), fused=True), 1.0)


TASKS = [[0, 1, 0], [0, 0]]  # of the documents of each rank


def batch_of(rank: int) -> dict[str, Tensor]:
    tasks = torch.tensor(TASKS[rank])
    x = torch.arange(len(tasks) * 3).reshape(-1, 3) / 7 + rank
    return {"inputs": x, "task_ids": tasks, "labels": torch.arange(len(tasks)) % 2}


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def new_model() -> SingleTask:
    torch.manual_seed(0)
    return SingleTask(nn.Linear(3, 4), 3, features=())


class Loss(nn.Module):
    """What Lightning has DDP call."""

    def __init__(self, model: SingleTask) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.loss(batch)


def _rank(rank: int, folder: Path) -> None:
    model = new_model()
    ddp = nn.parallel.DistributedDataParallel(Loss(model), find_unused_parameters=True)
    ddp(batch_of(rank)).backward()
    torch.save(gradients(model), folder / f"{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_gradients_are_means_over_devices(tmp_path: Path) -> None:
    on_ranks(2, _rank, tmp_path)
    model = new_model()
    (sum(model.loss(batch_of(rank)) for rank in range(2)) / 2).backward()  # type: ignore[union-attr]
    expected = gradients(model)
    assert [g is None for g in expected] == [False] * 8 + [True] * 4  # no document of task 2
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
