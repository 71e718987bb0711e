"""Hard parameter sharing: one encoder for all tasks, layers of their own behind it (Caruana, 1993)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lightning_ncmtl.modules._layers import apply_layers, check_widths, make_dropout, make_specific
from lightning_ncmtl.modules._per_task import select_entries
from lightning_ncmtl.modules.base import MultiTaskModule


class HardShare(MultiTaskModule):
    """A shared encoder, and specific layers and a head for each task (the paper, 4.1).

    It is :class:`lightning_ncmtl.NCMTL` without clustering. With ``share_layers`` it is the control that the paper
    lacks: the same network with one cluster in every layer, so that only the heads belong to the tasks.

    Args:
        encoder: The hard layers: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        features: Width of each layer between encoder and head (the paper, 4.1: 32, 32, 16).
        share_layers: Whether all tasks share these layers, too.
        dropout: Dropout after each of these layers.
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Raises:
        InputError: If a layer has no units.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        features: Sequence[int] = (32, 32, 16),
        share_layers: bool = False,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        check_widths("features", features)
        self.encoder = encoder
        widths = [int(encoder.out_features), *features]  # type: ignore[arg-type]
        self.layers = nn.ModuleList(
            nn.Linear(inside, outside) if share_layers else make_specific(num_tasks, inside, outside)
            for inside, outside in pairwise(widths)
        )
        self.dropout = make_dropout(dropout)
        self.head = make_specific(num_tasks, widths[-1], self.num_outputs)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        x = select_entries(self.encoder(inputs), rows)
        return apply_layers([*self.layers, self.head], self.dropout, x, task_ids, self.num_tasks)
