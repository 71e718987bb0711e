"""Cross-stitch networks (Misra et al., CVPR 2016)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules._all_tasks import gather, spread
from lightning_ncmtl.modules._layers import check_widths, make_dropout, make_specific
from lightning_ncmtl.modules.base import MultiTaskModule


class CrossStitch(MultiTaskModule):
    """A shared encoder, and behind it a network for each task that mixes in what the others found, layer by layer.

    Behind each layer a *cross-stitch unit*, a learned matrix of N x N numbers, gives each task a weighted sum of the
    activations of all tasks (Misra et al., Section 3.1, equation 1). So each document passes through the networks of
    all tasks, N times the work. Misra et al. stitch whole networks; here they begin behind the encoder: with
    :class:`lightning_ncmtl.encoders.Identity` that is all of it.

    Networks start with the same weights in all tasks, as Misra et al. start from one trained network.

    Args:
        encoder: Shared by all: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        features: Width of each layer behind the encoder, before the head.
        own_weight: How much of a task's own activations a unit takes at the start; what is left is divided evenly over
            the other tasks (Misra et al., Section 5.1: 0.9 of two tasks).
        dropout: Dropout behind each of these layers.
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Raises:
        InputError: If there is no layer to stitch, one has no units, or the weight is not between 0 and 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        features: Sequence[int] = (32, 32),
        own_weight: float = 0.9,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        check_widths("features", features)
        if not features:
            raise InputError("features must have the width of one layer or more, behind which units are, found none")
        if not 0 <= own_weight <= 1:
            raise InputError(f"own_weight must be between 0 and 1, found {own_weight}")
        self.encoder = encoder
        widths = [int(encoder.out_features), *features]  # type: ignore[arg-type]
        self.layers = nn.ModuleList(make_specific(num_tasks, *pair) for pair in pairwise(widths))
        others = (1 - own_weight) / max(1, num_tasks - 1)
        start = torch.full((num_tasks, num_tasks), others).fill_diagonal_(own_weight if num_tasks > 1 else 1.0)
        self.units = nn.ParameterList(start.clone() for _ in features)
        self.dropout = make_dropout(dropout)
        self.head = make_specific(num_tasks, widths[-1], self.num_outputs)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        x, every = spread(self.encoder(inputs), self.num_tasks)
        for layer, unit in zip(self.layers, self.units, strict=True):
            x = self.dropout(layer(x, every).relu())
            x = (unit @ x.view(self.num_tasks, -1)).view(x.shape[0], -1)
        logits: Tensor = self.head(gather(x, self.num_tasks, task_ids, rows), task_ids)
        return logits
