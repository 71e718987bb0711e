"""Multi-gate mixture of experts (Ma et al., KDD 2018)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lightning_ncmtl.layers import route
from lightning_ncmtl.modules._experts import Experts, mix
from lightning_ncmtl.modules._layers import apply_layers, check_widths, make_dropout, make_specific
from lightning_ncmtl.modules._per_task import select_entries
from lightning_ncmtl.modules.base import MultiTaskModule


class MMoE(MultiTaskModule):
    """Experts that all tasks share, which each task mixes by a gate of its own, and a tower for each task.

    A gate is a linear layer and a softmax over the experts (Ma et al., Section 4.2, equations 6 and 7), on what the
    encoder gives. Towers and gates start with the same weights in all tasks, so that tasks differ only by what they
    learned: towers can be clustered, with ``targets=["towers.0", "head"]``.

    Args:
        encoder: Shared by all: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        num_experts: Number of experts E.
        expert_features: Width of each layer of an expert.
        features: Width of each layer of a tower, before the head.
        dropout: Dropout behind each layer of experts and towers.
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Raises:
        InputError: If there is no expert, experts have no layer, or a layer has no units.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        num_experts: int = 4,
        expert_features: Sequence[int] = (32,),
        features: Sequence[int] = (32,),
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        check_widths("features", features)
        self.encoder = encoder
        size = int(encoder.out_features)  # type: ignore[arg-type]
        self.experts = Experts(num_experts, [size, *expert_features], dropout)
        self.gates = make_specific(num_tasks, size, num_experts)
        widths = [expert_features[-1], *features]
        self.towers = nn.ModuleList(make_specific(num_tasks, *pair) for pair in pairwise(widths))
        self.dropout = make_dropout(dropout)
        self.head = make_specific(num_tasks, widths[-1], self.num_outputs)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        routing = route(task_ids, self.num_tasks)
        encoded = self.encoder(inputs)
        gates = self.gates(select_entries(encoded, rows), routing)
        mixed = mix(gates, select_entries(self.experts(encoded), rows))
        return apply_layers([*self.towers, self.head], self.dropout, mixed, routing, self.num_tasks)
