"""Recurrent cells in plain operations, which ``torch.vmap`` can batch; its own of torch it cannot, or runs one by one.

Shapes: M rows, F features, H hidden.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainCells(TorchFunctionMode):
    """A context in which ``nn.RNNCell``, ``nn.GRUCell`` and ``nn.LSTMCell`` compute with plain operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _CELLS.get(getattr(func, "__name__", ""), func)(*args, **(kwargs or {}))


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Tensor:
        return activation(sum(_gates(x, hidden, weights)))  # type: ignore[arg-type]

    return cell


def _gru(x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Tensor:
    of_x, of_hidden = (gates.chunk(3, -1) for gates in _gates(x, hidden, weights))
    reset, update = (of_x[0] + of_hidden[0]).sigmoid(), (of_x[1] + of_hidden[1]).sigmoid()
    new = (of_x[2] + reset * of_hidden[2]).tanh()
    return new + update * (hidden - new)


def _lstm(x: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor | None) -> tuple[Tensor, Tensor]:
    of_x, of_hidden = _gates(x, state[0], weights)
    into, forget, new, out = (of_x + of_hidden).chunk(4, -1)
    cell = forget.sigmoid() * state[1] + into.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


def _gates(x: Tensor, hidden: Tensor, weights: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """From ``[M, F]``, ``[M, H]`` and the weights of both, then the biases of both: ``[M, gates * H]`` of each."""
    of_x, of_hidden, *biases = weights
    bias_x, bias_hidden = biases or (None, None)
    assert of_x is not None
    assert of_hidden is not None
    return F.linear(x, of_x, bias_x), F.linear(hidden, of_hidden, bias_hidden)


_CELLS: dict[str, Callable[..., Any]] = {
    "rnn_tanh_cell": _rnn(torch.tanh),
    "rnn_relu_cell": _rnn(torch.relu),
    "gru_cell": _gru,
    "lstm_cell": _lstm,
}
