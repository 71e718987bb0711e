"""The LSTM for training on a CPU. The oracle is torch's own, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_ncmtl.encoders._lstm import PackedLSTM
from lightning_ncmtl.encoders._packing import Packing

LENGTHS = {"ragged": [3, 1, 7, 7, 2, 5], "one": [4], "one element": [1], "equal": [3, 3, 3], "short": [1, 1, 2]}
EQUAL = ["one", "one element", "equal"]


def run(lstm: nn.LSTM, packed: PackedSequence) -> list[Tensor]:
    """Outputs, states and gradients."""
    data = packed.data.clone().requires_grad_()
    out, (hidden, cell) = lstm(packed._replace(data=data))
    (out.data.square().sum() + (hidden * cell).sum()).backward()
    grads: list[Any] = [data.grad, *[parameter.grad for parameter in lstm.parameters()]]
    return [out.data, hidden, cell, *grads]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_same_bits_as_those_of_torch(lengths: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours, theirs = (kind(5, 4, bidirectional=bidirectional) for kind in (PackedLSTM, nn.LSTM))
    theirs.load_state_dict(ours.state_dict())
    packed = Packing.of(torch.tensor(LENGTHS[lengths])).pack(torch.randn(sum(LENGTHS[lengths]), 5))
    expected = run(theirs, packed)
    with monkeypatch.context() as patch:
        if lengths not in EQUAL:
            patch.setattr(nn.LSTM, "forward", None)  # it is not asked
        found = run(ours, packed)
    assert len(found) == len(expected) == 4 + (8 if bidirectional else 4)
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_elsewhere_it_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(nn.LSTM, "forward", lambda *args: called.append(args))
    lstm, packed = PackedLSTM(5, 4), Packing.of(torch.tensor([2, 1])).pack(torch.randn(3, 5))
    with torch.no_grad():
        lstm(packed)
    with torch.autocast("cpu", torch.bfloat16):
        lstm(packed)
    lstm(packed._replace(data=packed.data.to("meta")))
    lstm(torch.randn(2, 1, 5))
    lstm(packed, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)))
    assert len(called) == 5
