"""The order in which LSTMs read sequences of different lengths: no step is spent on padding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_ncmtl.layers import on_host, to_device

# Without it, LSTMs in the 16 bits of autocast raise a RuntimeError on a CPU.
_HAS_16_BITS = "AVX512" in torch.backends.cpu.get_cpu_capability()


@dataclass(frozen=True)
class Packing:
    """Where the W elements of M sequences lie in a ``PackedSequence``: all first ones, then all second ones, ...

    Attributes:
        source: ``[W]``, places in the plain run of all sequences, one after the other: ``run[source]`` is packed.
        slots: ``[W]``, places of the packed elements in a grid ``[T, M]`` (flat) of T steps of the sequences, which are
            in the order they came in.
        batch_sizes: ``[T]``, sequences that have so many steps; on the CPU, as torch wants it.
        order: ``[M]``, the sequences from the longest to the shortest.
        rank: ``[M]``, the place of each sequence in that order.
    """

    source: Tensor
    slots: Tensor
    batch_sizes: Tensor
    order: Tensor
    rank: Tensor

    @classmethod
    def of(cls, lengths: Tensor, max_steps: int | None = None) -> "Packing":
        """Find the order on the CPU, where lengths are known.

        Args:
            lengths: ``[M]``, each at least 1.
            max_steps: What is behind it in a sequence is left out.
        """
        device, lengths = lengths.device, on_host(lengths)
        starts = lengths.cumsum(0) - lengths
        kept = lengths if max_steps is None else lengths.clamp(max=max_steps)
        steps, order = kept.sort(descending=True, stable=True)
        inside = torch.arange(int(steps[0])).unsqueeze(1) < steps
        step, rank = inside.nonzero(as_tuple=True)
        sequence = order[rank]
        source, slots = starts[sequence] + step, step * len(lengths) + sequence
        source, slots, order, rank = to_device(device, source, slots, order, order.argsort())
        return cls(source, slots, inside.sum(1), order, rank)

    def pack(self, data: Tensor) -> PackedSequence:
        """``data [W, F]``, in packed order, for an LSTM."""
        return PackedSequence(data, self.batch_sizes, self.order, self.rank)

    def unpack(self, data: Tensor, padding: float) -> Tensor:
        """``data [W, ...]``, in packed order, to ``[T, M, ...]``."""
        steps, sequences = len(self.batch_sizes), len(self.order)
        grid = data.new_full((steps * sequences, *data.shape[1:]), padding).index_copy(0, self.slots, data)
        return grid.view(steps, sequences, *data.shape[1:])


def apply_lstm(lstm: nn.Module, packed: PackedSequence) -> Any:
    """``lstm(packed)``; in 32 bits where autocast asks for 16 that there are not.

    On CUDA, autocast runs LSTMs in float16 even if it was asked for bfloat16 (torch's AutocastRNN.cpp), and nobody
    scales their gradients then.
    """
    kind = packed.data.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and not _has_16_bits(kind):
        with torch.autocast(kind, enabled=False):
            return lstm(packed._replace(data=packed.data.float()))
    return lstm(packed)


def _has_16_bits(kind: str) -> bool:
    return _HAS_16_BITS if kind == "cpu" else torch.get_autocast_dtype(kind) == torch.float16
