import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from lightning_ncmtl import ASPMTL
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN, NGram
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules.asp_mtl import _overlap


class Quiet(ASPMTL):
    """Outside of a trainer."""

    def log(self, *args: Any, **settings: Any) -> None: ...


def rows() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "inputs": torch.randn(5, 4),
        "task_ids": torch.tensor([2, 0, 2, 2, 0]),
        "labels": torch.tensor([0, 1, 1, 0, 0]),
    }


@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 0], [0, -1, 1, -1, 0]])
def test_the_loss_equals_sums_over_documents(labels: list[int]) -> None:
    """Those without a label count in all terms but the cross-entropy."""
    batch = {**rows(), "labels": torch.tensor(labels)}
    model = Quiet(nn.Linear(4, 3), 4, adversarial=0.3, orthogonality=0.2)
    tasks, known = batch["task_ids"].tolist(), sum(label >= 0 for label in labels)
    shared = [model.encoder(x) for x in batch["inputs"]]
    private = [model.private_encoders[task](x) for task, x in zip(tasks, batch["inputs"], strict=True)]
    loss = torch.tensor(0.0)
    for s, p, task, label in zip(shared, private, tasks, labels, strict=True):
        logits = model.head.weight[task] @ torch.cat([p, s]) + model.head.bias[task]
        loss = loss - 0.3 * model.discriminator(s).log_softmax(0)[task] / 5
        if label >= 0:
            loss = loss - logits.log_softmax(0)[label] / known
    for task, count in ((0, 2), (2, 3)):
        outer = sum(torch.outer(s, p) for s, p, t in zip(shared, private, tasks, strict=True) if t == task)
        loss = loss + 0.2 * count / 5 * (outer / count).square().sum()
    torch.testing.assert_close(model.loss(batch), loss)


def test_the_overlap_by_hand() -> None:
    # S^T P = [[1, 1], [2, 0]], of 2 documents
    overlap = _overlap(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert float(overlap) == (1 + 1 + 4) / 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.01, 30])
def test_the_overlap_of_16_bits_is_neither_zero_nor_infinite(dtype: torch.dtype, size: float) -> None:
    shared, private = (size * torch.rand(2, 16, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = (shared.double().T @ private.double() / 16).square().sum()
    with torch.autocast("cpu", torch.float16 if dtype == torch.float16 else torch.bfloat16):
        found = _overlap(shared, private)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_the_encoder_learns_to_deceive_the_discriminator() -> None:
    """With all else left out, the discriminator descends its loss and the shared encoder ascends it."""
    batch = rows()
    model = Quiet(nn.Linear(4, 3), 4, adversarial=0.3, orthogonality=0)
    nn.init.zeros_(model.head.weight)
    model.loss(batch).backward()
    found = [model.encoder.weight.grad, model.discriminator.weight.grad]
    plain = nn.functional.cross_entropy(model.discriminator(model.encoder(batch["inputs"])), batch["task_ids"])
    encoder, discriminator = torch.autograd.grad(plain, [model.encoder.weight, model.discriminator.weight])
    torch.testing.assert_close(found, [-0.3 * encoder, 0.3 * discriminator])


def test_absent_tasks_have_no_gradient() -> None:
    model = Quiet(nn.Linear(4, 3), 4)
    model.loss(rows()).backward()
    assert [encoder.weight.grad is None for encoder in model.private_encoders] == [False, True, False, True]


def test_encoders_start_apart_but_have_one_table_of_words() -> None:
    encoder = HAN(20, 6, 5)
    model = ASPMTL(encoder, 3)
    encoders = [model.encoder, *model.private_encoders]
    assert model.encoder is encoder
    assert all(other.embedding is encoder.embedding for other in encoders)
    for name, _ in encoder.named_parameters():
        if name != "embedding.weight":
            starts = [other.get_parameter(name) for other in encoders]
            assert all(not torch.equal(starts[i], starts[j]) for i in range(4) for j in range(i)), name
    runs = [other.runs.weight for other in ASPMTL(NGram(20, 6, num_buckets=8), 2).private_encoders]
    assert runs[0] is not runs[1]
    assert runs[0].eq(0).all()  # runs of words start at zero


def test_what_is_frozen_or_pretrained_is_not_drawn_anew() -> None:
    encoder: Any = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 7)))
    encoder.out_features = 7
    encoder[0].requires_grad_(False)
    encoder[2].pretrained = True
    start = copy.deepcopy(encoder.state_dict())
    for other in ASPMTL(encoder, 3).private_encoders:
        assert other[0].weight is encoder[0].weight  # type: ignore[index]
        assert not torch.equal(other[1].weight, start["1.weight"])  # type: ignore[index]
        assert other[2][0].weight is not encoder[2][0].weight  # type: ignore[index]
        assert torch.equal(other[2][0].weight, start["2.0.weight"])  # type: ignore[index]
    assert all(torch.equal(value, start[name]) for name, value in encoder.state_dict().items())


def test_it_logs_its_terms(make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(ASPMTL(HAN(400, 8, 4, num_layers=1), 4), datamodule=datamodule)
    assert 0.5 < trainer.callback_metrics["train/adversarial_loss"] < 3  # ln 4 = 1.39 by chance
    assert trainer.callback_metrics["train/orthogonality"] > 0


@pytest.mark.parametrize("name", ["adversarial", "orthogonality"])
@pytest.mark.parametrize("weight", [-1, float("nan")])
def test_negative_weights_are_refused(name: str, weight: float) -> None:
    with pytest.raises(InputError, match=f"weights must be at least 0, found .*{name}={weight}"):
        ASPMTL(nn.Linear(4, 3), 4, **{name: weight})  # type: ignore[arg-type]
