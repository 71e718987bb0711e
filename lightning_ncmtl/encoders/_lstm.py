"""An LSTM that a CPU trains in less time on long runs of words.

Shapes: M sequences, T steps, W elements of all sequences, H units.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from lightning_ncmtl.torch_versions import is_tracing


class PackedLSTM(nn.LSTM):
    """``nn.LSTM`` of one layer, with the same bits in less time where a CPU trains it on packed sequences.

    torch cuts the input of each step out of the whole by itself, and fills a gradient of the size of the whole for each
    cut: T times as many numbers as there are, which leave the cache where batches are large. Here one cut makes all
    steps, and their gradients are put together once.
    """

    def forward(self, given: Any, hx: Any = None) -> Any:
        """As that of ``nn.LSTM``."""
        if not isinstance(given, PackedSequence) or hx is not None or not _trains_on_cpu(given.data):
            return super().forward(given, hx)
        sizes = given.batch_sizes.tolist()
        if sizes[0] == sizes[-1]:  # torch has another way for sequences of one length
            return super().forward(given, hx)
        weights = [getattr(self, name) for name in self._flat_weights_names]  # as parametrizations have them
        found = [_read(given.data, sizes, weights[:4], back=False)]
        if self.bidirectional:
            found.append(_read(given.data, sizes, weights[4:], back=True))
        outs, *state = zip(*found, strict=True)
        states = torch.stack(state[0]), torch.stack(state[1])
        return given._replace(data=torch.cat(outs, 1)), self.permute_hidden(states, given.unsorted_indices)


def _trains_on_cpu(data: Tensor) -> bool:
    return (
        data.is_cpu
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_tracing()
    )


def _read(data: Tensor, sizes: list[int], weights: list[Tensor], back: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One direction: all outputs ``[W, H]`` in packed order, and the last hidden state and cell ``[M, H]``."""
    of_x, of_hidden, bias_x, bias_hidden = weights
    steps = list(zip(F.linear(data, of_x, bias_x).split(sizes), sizes, strict=True))
    hidden = cell = data.new_zeros(0 if back else sizes[0], of_hidden.shape[1])
    outs: list[Tensor] = []
    ended: list[tuple[Tensor, Tensor]] = []  # states of sequences, the shortest first
    for x, size in reversed(steps) if back else steps:
        if size < len(hidden):
            ended.append((hidden[size:], cell[size:]))
            hidden, cell = hidden[:size], cell[:size]
        elif size > len(hidden):
            start = data.new_zeros(size - len(hidden), of_hidden.shape[1])
            hidden, cell = torch.cat([hidden, start]), torch.cat([cell, start])
        into, forget, new, out = F.linear(hidden, of_hidden, bias_hidden).add_(x).chunk(4, 1)
        cell = (forget.sigmoid() * cell).add_(into.sigmoid() * new.tanh())
        hidden = out.sigmoid() * cell.tanh()
        outs.append(hidden)
    ended.append((hidden, cell))
    last, cells = (torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))
    return torch.cat(outs[::-1] if back else outs), last, cells
