"""Progressive layered extraction (Tang et al., RecSys 2020)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import Routing, route
from lightning_ncmtl.modules._all_tasks import gather, spread
from lightning_ncmtl.modules._experts import Experts, mix
from lightning_ncmtl.modules._layers import apply_layers, check_widths, make_dropout, make_specific
from lightning_ncmtl.modules._per_task import select_entries
from lightning_ncmtl.modules.base import MultiTaskModule


class PLE(MultiTaskModule):
    """Experts that tasks share beside experts of each task, in one or more levels, and a tower for each task.

    In each level a gate of the task mixes the shared experts and those of the task (Tang et al., Section 4.1,
    *customized gate control*, CGC). Between levels a shared gate mixes the experts of all tasks for the shared experts
    of the next level (Section 4.2). One level is CGC. With more, each document passes through the experts of all
    tasks, N times the work, as what one task's experts find goes to all tasks.

    Everything of a task starts with the same weights in all tasks, so that tasks differ only by what they learned:
    towers can be clustered, with ``targets=["towers.0", "head"]``.

    Args:
        encoder: Shared by all: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        num_shared_experts: Number of experts of each level that all tasks share.
        num_task_experts: Number of experts of each level that a task has to itself.
        expert_features: Width of the experts of each level; an expert is a layer with ReLU (Section 5.1.4).
        features: Width of each layer of a tower, before the head.
        dropout: Dropout behind each layer of experts and towers.
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Raises:
        InputError: If there are no experts, or no level, or a layer has no units.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        num_shared_experts: int = 2,
        num_task_experts: int = 1,
        expert_features: Sequence[int] = (32,),
        features: Sequence[int] = (32,),
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        check_widths("features", features)
        check_widths("expert_features", expert_features)
        if num_task_experts < 1:
            raise InputError(f"the number of experts of a task must be at least 1, found {num_task_experts}")
        if not expert_features:
            raise InputError("expert_features must have the width of one level or more, found none")
        self.encoder = encoder
        sizes = list(pairwise([int(encoder.out_features), *expert_features]))  # type: ignore[arg-type]
        self.levels = nn.ModuleList(
            _Level(num_tasks, num_shared_experts, num_task_experts, *size, dropout, last=number == len(sizes))
            for number, size in enumerate(sizes, start=1)
        )
        widths = [expert_features[-1], *features]
        self.towers = nn.ModuleList(make_specific(num_tasks, *pair) for pair in pairwise(widths))
        self.dropout = make_dropout(dropout)
        self.head = make_specific(num_tasks, widths[-1], self.num_outputs)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        shared = self.encoder(inputs)
        if len(self.levels) == 1:
            x = select_entries(shared, rows)
        else:
            x, every = spread(shared, self.num_tasks)
            places = torch.arange(shared.shape[0], device=shared.device).repeat(self.num_tasks)
            for level in list(self.levels)[:-1]:  # torch.export below 2.5 cannot cut module lists
                x, shared = level(x, every, shared, places)
            x = gather(x, self.num_tasks, task_ids, rows)
        routing = route(task_ids, self.num_tasks)
        x, _ = self.levels[-1](x, routing, shared, rows)
        return apply_layers([*self.towers, self.head], self.dropout, x, routing, self.num_tasks)


class _Level(nn.Module):
    """Shared experts, those of the tasks, and the gates that mix them."""

    def __init__(
        self, num_tasks: int, shared: int, own: int, in_features: int, features: int, dropout: float, last: bool
    ) -> None:
        super().__init__()
        self.shared_experts = Experts(shared, [in_features, features], dropout)
        self.task_experts = make_specific(num_tasks, in_features, own * features)
        self.gates = make_specific(num_tasks, in_features, shared + own)
        self.shared_gate = None if last else nn.Linear(in_features, shared + num_tasks * own)
        self.dropout = make_dropout(dropout)

    def forward(self, x: Tensor, routing: Routing, shared: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What goes to the tasks ``[R, H]``, and what goes to the shared experts of the next level ``[B, H]``.

        Args:
            x: ``[R, F]``, of the entries; for a level that is not the last every document in every task, in order.
            routing: The task of each entry.
            shared: ``[B, F]``, of the documents.
            rows: ``[R]``, the document of each entry, or ``None`` if these are all, in order.
        """
        common = self.shared_experts(shared)
        own = self.dropout(self.task_experts(x, routing).relu()).view(x.shape[0], -1, common.shape[2])
        mixed = mix(self.gates(x, routing), torch.cat([select_entries(common, rows), own], 1))
        if self.shared_gate is None:
            return mixed, None
        experts = own.view(-1, shared.shape[0], *own.shape[1:]).transpose(0, 1).flatten(1, 2)
        return mixed, mix(self.shared_gate(shared), torch.cat([common, experts], 1))
