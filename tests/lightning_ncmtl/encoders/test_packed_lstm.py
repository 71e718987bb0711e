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


def test_weights_are_those_that_the_module_has_when_it_is_called() -> None:
    """With other parameters given for a call, and with parameters that make a weight."""
    torch.manual_seed(0)
    packed = Packing.of(torch.tensor(LENGTHS["ragged"])).pack(torch.randn(25, 5))
    ours, theirs = PackedLSTM(5, 4), nn.LSTM(5, 4)
    given = {name: torch.randn_like(value).requires_grad_() for name, value in theirs.named_parameters()}
    grads = []
    for lstm in (ours, theirs):
        out = torch.func.functional_call(lstm, given, (packed,))[0].data
        grads.append([out, *torch.autograd.grad(out.square().sum(), list(given.values()))])
    for mine, other in zip(*grads, strict=True):
        assert torch.equal(mine, other)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for lstm in (ours, theirs):
        nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
        out = lstm(packed)[0].data
        out.square().sum().backward()
        grads_of = {name: parameter.grad for name, parameter in lstm.named_parameters()}
        assert all(grad is not None for grad in grads_of.values())
        found.append([out, *grads_of.values()])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore")  # traces are deprecated
def test_a_trace_takes_other_lengths() -> None:
    torch.manual_seed(0)
    lstm = PackedLSTM(5, 4).requires_grad_(False)

    def read(data: Tensor, batch_sizes: Tensor) -> Tensor:
        out: Tensor = lstm(PackedSequence(data, batch_sizes))[0].data
        return out

    traced = torch.jit.trace(read, (torch.randn(5, 5), torch.tensor([2, 2, 1])), check_trace=False)
    data, sizes = torch.randn(6, 5), torch.tensor([3, 2, 1])
    torch.testing.assert_close(traced(data, sizes), read(data, sizes))
