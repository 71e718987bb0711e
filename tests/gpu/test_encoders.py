"""Encoders on the device: outputs and gradients of the CPU, again and again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from on_device import DEVICE, assert_close, assert_same_as_cpu, documents, moved
from tiny_models import save_model
from torch import nn

from lightning_ncmtl.encoders import HAN, LSTM, Concat, NGram, TextCNN, Transformer

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "HAN": lambda: HAN(300, 16, 8, num_layers=2, dropout=0),
    "LSTM": lambda: LSTM(300, 16, 8, dropout=0),
    "TextCNN": lambda: TextCNN(300, 16, 8, dropout=0),
    "NGram": lambda: NGram(300, 16, n=3, num_buckets=5000, dropout=0),
    "Concat": lambda: Concat([LSTM(300, 16, 8, dropout=0), TextCNN(300, 16, 8, dropout=0)]),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    encoder = ENCODERS[name]()
    for parameter in encoder.parameters():  # runs of words start with zeros
        if not parameter.any():
            nn.init.normal_(parameter)
    return encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_they_are_those_of_the_cpu(name: str) -> None:
    assert_same_as_cpu(make(name), documents(), lambda encoder, inputs: encoder(inputs), rtol=1e-3)


def test_a_transformer_is_that_of_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save_model(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    encoder = Transformer(folder, pretrained=False, dropout=0).train()
    assert_same_as_cpu(encoder, documents(vocabulary=50), lambda encoder, inputs: encoder(inputs), 1e-3, 1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_and_evaluation(name: str) -> None:
    """Documents do not depend on their batch, without gradients."""
    encoder, inputs = make(name).to(DEVICE).eval(), documents()
    with torch.inference_mode():
        together = encoder(moved(inputs))
        first = int(inputs["document_lengths"][0])
        words = int(inputs["sentence_lengths"][:first].sum())
        alone = {
            "tokens": inputs["tokens"][:words],
            "sentence_lengths": inputs["sentence_lengths"][:first],
            "document_lengths": inputs["document_lengths"][:1],
        }
        assert_close(encoder(moved(alone))[0], together[0])


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_are_repeatable(name: str) -> None:
    """Bitwise, which a training that is resumed exactly needs."""
    encoder, inputs = make(name).to(DEVICE), moved(documents(32))
    found = []
    for _ in range(4):
        encoder.zero_grad()
        encoder(inputs).square().sum().backward()
        found.append([weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None])
    for other in found[1:]:
        assert all(torch.equal(one, again) for one, again in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ENCODERS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    encoder, inputs = make(name).to(DEVICE), moved(documents(32))
    exact = encoder(inputs)
    with torch.autocast(DEVICE.type, dtype):
        out = encoder(inputs)
    assert_close(out, exact, 0.1, 0.05)
    out.float().mean().mul(2**8).backward()  # as a scaled loss
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", ["HAN", "LSTM"])
def test_small_gradients_do_not_vanish_under_bf16(name: str) -> None:
    """Whose range is that of float32, so that there is no scaler: LSTMs must not compute in float16 there."""
    encoder, inputs = make(name).to(DEVICE), moved(documents(32))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out = encoder(inputs)
    out.float().mean().mul(1e-6).backward()
    for name, weight in encoder.named_parameters():
        if "embedding" not in name and weight.grad is not None:
            assert (weight.grad == 0).float().mean() < 0.5, name
