from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from lightning_ncmtl import SingleTask, SoftShare
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError


def test_the_distance_is_the_mean_over_pairs_of_encoders() -> None:
    torch.manual_seed(0)
    model = SoftShare(HAN(9, 3, 2, num_layers=1, freeze_embedding=True), 4, features=(5,))
    assert model.distance() == 0
    for network in model.networks:
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    encoders = [[p for p in network.encoder.parameters() if p.requires_grad] for network in model.networks]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    total = sum((a - b).square().sum() for i, j in pairs for a, b in zip(encoders[i], encoders[j], strict=True))
    expected = total / 4
    torch.testing.assert_close(model.distance(), expected)
    trained = [p for encoder in encoders for p in encoder]
    ours, theirs = (torch.autograd.grad(value, trained) for value in (model.distance(), expected))
    torch.testing.assert_close(ours, theirs)


def train(make_trainer: Callable[..., Trainer], system: Callable[..., Any], **settings: Any) -> Any:
    torch.manual_seed(0)
    rows = [{"inputs": torch.randn(3), "task_ids": n % 4, "labels": n // 4 % 2} for n in range(60)]
    model = system(nn.Linear(3, 4), 4, features=(5,), optimizer=lambda p: torch.optim.Adam(p, lr=0.01), **settings)
    trainer = make_trainer(max_epochs=3, gradient_clip_val=0.1)
    loader = torch.utils.data.DataLoader(rows, batch_size=3)
    trainer.fit(model, loader, loader)
    return model, trainer.callback_metrics


def test_strength(make_trainer: Callable[..., Trainer]) -> None:
    """None is SingleTask; the stronger the closer."""
    single, _ = train(make_trainer, SingleTask)
    none, metrics = train(make_trainer, SoftShare, strength=0)
    assert "train/distance" not in metrics
    for ours, theirs in zip(none.parameters(), single.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    some, metrics = train(make_trainer, SoftShare, strength=0.01)
    assert metrics["train/distance"] > 0
    strong, _ = train(make_trainer, SoftShare, strength=1)
    assert strong.distance() < 0.5 * some.distance() < 0.5 * none.distance()
    heads = [network.head.weight for network in strong.networks]
    assert not torch.allclose(heads[0], heads[1], atol=1e-2)  # not drawn together


def test_tasks_have_one_table_of_words_in_common() -> None:
    model = SoftShare(HAN(9, 3, 2, num_layers=1), 4, features=(5,))
    assert len({id(network.encoder.embedding.weight) for network in model.networks}) == 1
    assert len({id(network.encoder.words.context.weight) for network in model.networks}) == 4
    assert len({id(network.encoder.embedding.weight) for network in SingleTask(HAN(9, 3, 2), 4).networks}) == 4
    nn.init.normal_(model.networks[0].encoder.embedding.weight)
    assert model.distance() == 0


def test_the_common_table_is_clipped_by_itself(make_trainer: Callable[..., Trainer]) -> None:
    model = SoftShare(HAN(9, 3, 2, num_layers=1), 3, features=(5,))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    model.trainer = make_trainer()
    model.configure_gradient_clipping(None, 1.0, "norm")
    table = model.networks[0].encoder.embedding.weight
    parts = [[p.grad for p in network.parameters() if p is not table] for network in model.networks]
    for part in [[table.grad], *parts]:
        assert torch.cat([grad.flatten() for grad in part]).norm() == pytest.approx(1.0)


@pytest.mark.parametrize("strength", [-1, float("nan")])
def test_a_negative_strength_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match=f"strength must be at least 0, found {strength}"):
        SoftShare(nn.Linear(3, 4), 4, strength=strength)
