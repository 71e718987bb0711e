"""No training step makes the host wait for the device: task ids and lengths are known there already."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from data import make_data
from pytorch_lightning import Trainer
from torch import Tensor, nn

from lightning_ncmtl import HardShare, TaskLinear, TaskModule
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Synthetic
from lightning_ncmtl.encoders import HAN, LSTM, MLP, Concat, NGram, TextCNN
from lightning_ncmtl.layers import CompactLayer, on_host, remember, route, to_device
from tests.lightning_ncmtl.modules.test_base import SMALL, SYSTEMS
from tests.support.device import DEVICE, DeviceCalls

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "features": lambda: MLP(5, dropout=0.1),
    "HAN": lambda: HAN(400, 6, 4, num_layers=1),
    "LSTM": lambda: LSTM(400, 6, 3, max_words=20),
    "NGram": lambda: NGram(400, 6, n=3, num_buckets=7, word_dropout=0.1),
    "TextCNN": lambda: TextCNN(400, 6),
    "Concat": lambda: Concat([TextCNN(400, 6), NGram(400, 6)]),
}


@pytest.fixture
def data(source: Synthetic) -> MultiDomainDataModule:
    found = make_data(source, batch_size=5, validation_size=11, vocab_size=400, min_frequency=1, max_words=5)
    found.setup("fit")
    return found


def step(model: Any, data: MultiDomainDataModule, batch: dict[str, Any]) -> DeviceCalls:
    """Transfer, loss and gradients of a batch of the CPU."""
    model = model.to(DEVICE)
    model.log = lambda name, value, **settings: None
    with DeviceCalls() as calls:
        loss = model.training_step(data.transfer_batch_to_device(batch, DEVICE, 0), 0)
        loss.backward()
    used = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert used
    assert all(parameter.grad.device == DEVICE for parameter in used)
    return calls


@pytest.mark.parametrize(
    ("encoder", "several"), [*((name, False) for name in ENCODERS), ("features", True), ("NGram", True)]
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_waits(system: Callable[..., Any], encoder: str, several: bool, data: MultiDomainDataModule) -> None:
    batch: dict[str, Any] = {**next(iter(data.train_dataloader()))}
    documents = len(batch["labels"])
    if encoder == "features":
        batch["inputs"] = torch.randn(documents, 5)
    if several:  # entries of several tasks for a document
        batch["rows"] = torch.arange(documents).repeat_interleave(2)
        batch["task_ids"] = torch.arange(2 * documents) % 4
        batch["labels"] = batch["labels"].repeat_interleave(2)
    calls = step(system(ENCODERS[encoder](), num_tasks=4, **SMALL[system]), data, batch)
    assert calls.waits == []
    assert calls.mixed == []


def test_numbers_weights_and_classes_that_differ(data: MultiDomainDataModule) -> None:
    batch: dict[str, Any] = {**next(iter(data.train_dataloader()))}
    documents = len(batch["labels"])
    batch |= {"weights": torch.ones(documents), "values": torch.full((documents,), torch.nan)}
    batch["inputs"] = torch.randn(documents, 5)
    for system in SYSTEMS:
        model = system(MLP(5), 4, regression_tasks=[1], task_classes=[[0, 1], [], [0], [1]], **SMALL[system])
        calls = step(model, data, batch)
        assert (calls.waits, calls.mixed) == ([], [])


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("inference", [torch.inference_mode, torch.no_grad])
def test_evaluation(data: MultiDomainDataModule, regression: bool, inference: Callable[[], Any]) -> None:
    """Whichever labels are known, with metrics that need all outputs."""
    numbers: dict[str, Any] = {"regression_tasks": [1], "metrics": ["AUROC", "R2Score"]} if regression else {}
    for unknown in (False, True):
        batch: dict[str, Any] = {**next(iter(data.val_dataloader()))}
        batch["inputs"] = torch.randn(len(batch["labels"]), 5)
        if unknown:
            batch["labels"] = torch.where(torch.arange(len(batch["labels"])) % 2 == 0, batch["labels"], -1)
        if regression:
            batch["values"] = torch.full((len(batch["labels"]),), torch.nan)
        model = HardShare(MLP(5), 4, features=[3], **{"metrics": ["AUROC"], **numbers}).to(DEVICE)
        with inference(), DeviceCalls() as calls:
            moved = data.transfer_batch_to_device(batch, DEVICE, 0)
            outcome = model.validation_step(moved, 0)
            predicted = model.predict_step(moved, 0)
        assert (calls.waits, calls.mixed) == ([], [])
        places = (batch["labels"] >= 0).nonzero().squeeze(1)
        assert all(len(each) == len(places) for each in outcome.values() if each is not None)
        assert len(predicted["index"]) == len(batch["labels"])


def test_frozen_clusters_and_compact_layers_of_any_routing() -> None:
    assignment = torch.tensor([1, 0, 1, 1])
    ids = torch.tensor([3, 0, 2, 3, 1])
    layers: list[TaskLinear | TaskModule] = [TaskLinear(4, 3, 2), TaskModule(nn.Linear(3, 2), 4)]
    for frozen in layers:
        frozen.freeze_clusters(assignment)
    compact = [CompactLayer(layer, assignment) for layer in layers]
    plain = [TaskLinear(4, 3, 2), TaskModule(nn.GRUCell(3, 3), 4), CompactLayer(layers[1].to(DEVICE), assignment)]
    assert isinstance(plain[2], CompactLayer)
    assert plain[2].assignment.device == DEVICE
    x = torch.zeros(5, 3, device=DEVICE)
    for layer in (*layers, *compact, *plain):
        layer.to(DEVICE)
        given = remember(ids.to(DEVICE), ids)
        if isinstance(layer, CompactLayer):
            remember(layer.assignment, assignment)  # which a GPU is asked for once
        for task_ids in (given, route(ids, 4), route(given, 4)):
            for _ in range(2):
                with DeviceCalls() as calls:
                    layer((x, x) if layer is plain[1] else x, task_ids).sum().backward()
                assert (calls.waits, calls.mixed) == ([], [])


def test_what_is_known_on_the_host() -> None:
    ids = torch.tensor([3, 0, 2])
    there = to_device(DEVICE, ids, ids.numpy()[:1])
    assert [len(each) for each in there] == [3, 1]
    assert on_host(there[0]).tolist() == [3, 0, 2]
    assert on_host(ids) is ids
    there[0].add_(1)  # it is not what it was
    with pytest.raises((RuntimeError, NotImplementedError)):
        on_host(there[0])
    with pytest.raises((RuntimeError, NotImplementedError)):
        on_host(ids.to(DEVICE))


def test_what_changed_in_evaluation_is_not_taken_for_known(data: MultiDomainDataModule) -> None:
    batch = next(iter(data.train_dataloader()))
    with torch.inference_mode():
        moved: dict[str, Tensor] = data.transfer_batch_to_device(batch, DEVICE, 0)
        assert on_host(moved["task_ids"]) is batch["task_ids"]
        moved["task_ids"].add_(1)
        with pytest.raises((RuntimeError, NotImplementedError)):
            on_host(moved["task_ids"])


def test_loaders_pin_memory_for_cuda_only(data: MultiDomainDataModule, make_trainer: Callable[..., Trainer]) -> None:
    data.trainer = make_trainer()
    assert not data.train_dataloader().pin_memory
    data.trainer.strategy._root_device = torch.device("cuda")  # type: ignore[attr-defined]
    assert data.train_dataloader().pin_memory


def test_a_batch_that_is_filled_anew_is_not_taken_for_known() -> None:
    """What the host has now is not what was moved."""
    ids = torch.tensor([3, 0, 2])
    there = remember(ids.to(DEVICE), ids)
    ids.fill_(9)
    with pytest.raises((RuntimeError, NotImplementedError)):
        on_host(there)
    assert to_device(DEVICE) == []


@pytest.mark.filterwarnings("ignore")  # traces are deprecated
def test_a_trace_of_a_compact_layer_takes_other_tasks() -> None:
    layer = CompactLayer(TaskLinear(4, 3, 2), torch.tensor([1, 0, 1, 1]))
    x = torch.randn(4, 3)
    traced = torch.jit.trace(layer, (x, torch.arange(4)))
    ids = torch.tensor([3, 3, 0, 1])
    assert torch.equal(traced(x, ids), layer(x, ids))
