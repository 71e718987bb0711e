"""From the loader to gradients: pinned memory, and a network that waits for nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import DEVICE, GPU, TRAINER, no_waits
from pytorch_lightning import Trainer
from torch.utils._pytree import tree_leaves

from lightning_ncmtl import NCMTL
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN, LSTM, NGram, TextCNN

ENCODERS: dict[str, Callable[[], Any]] = {
    "HAN": lambda: HAN(400, 8, 4, num_layers=2),
    "LSTM": lambda: LSTM(400, 8, 4),
    "TextCNN": lambda: TextCNN(400, 8, 4),
    "NGram": lambda: NGram(400, 8, n=2, num_buckets=5000),
}


@pytest.fixture
def attached(make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule) -> MultiDomainDataModule:
    """It has a trainer, and so knows of the device."""
    trainer = make_trainer(**TRAINER, max_steps=1, limit_val_batches=0)
    trainer.fit(NCMTL(HAN(400, 8, 4), 4), datamodule=datamodule)
    return datamodule


def test_batches_lie_in_pinned_memory(attached: MultiDomainDataModule) -> None:
    batch = next(iter(attached.train_dataloader()))
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    assert len(tensors) > 5
    assert [tensor.is_pinned() for tensor in tensors] == [GPU] * len(tensors)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_neither_the_transfer_nor_the_network_waits(name: str, frozen: bool, attached: MultiDomainDataModule) -> None:
    torch.manual_seed(0)
    model = NCMTL(ENCODERS[name](), 4, cluster_features=(8, 6), num_clusters=(2, 3)).to(DEVICE).train()
    if frozen:
        for layer in model.cluster_layers:
            layer.freeze_clusters(torch.arange(4, device=DEVICE) % 2)  # type: ignore[operator]
    first, second, *_ = attached.train_dataloader()

    def step(batch: Any) -> None:
        there = attached.transfer_batch_to_device(batch, DEVICE, 0)
        assert there["inputs"]["tokens"].device == there["task_ids"].device == DEVICE
        model(there["inputs"], there["task_ids"]).sum().backward()

    step(first)  # libraries have started
    with no_waits():
        step(second)


def test_evaluation_waits_for_nothing(attached: MultiDomainDataModule) -> None:
    """Until its end, where metrics are computed."""
    model = NCMTL(ENCODERS["NGram"](), 4, cluster_features=(8, 6), num_clusters=(2, 3), metrics=["AUROC"])
    model = model.to(DEVICE).eval()
    first, second, *_ = attached.val_dataloader()

    def step(batch: Any) -> None:
        there = attached.transfer_batch_to_device(batch, DEVICE, 0)
        model.validation_step(there, 0)
        model.predict_step(there, 0)

    with torch.inference_mode():
        step(first)
        with no_waits():
            step(second)
    assert model.metrics.count.sum() == len(first["labels"]) + len(second["labels"])
