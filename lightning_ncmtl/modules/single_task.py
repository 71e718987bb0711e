"""Single-task learning: a network for each task, none of which knows of the others."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.losses import mean_loss
from lightning_ncmtl.modules._layers import check_widths, make_dropout
from lightning_ncmtl.modules._per_task import apply_per_task, copy_except, find_rows, word_tables
from lightning_ncmtl.modules.base import MultiTaskModule


class SingleTask(MultiTaskModule):
    """N networks side by side: what N runs on one task each would train, in one run (the paper, 4.1).

    On one device each network gets, from the documents of its task, exactly the gradient of its own run, clipped by its
    own norm; the network of a task that is absent from a batch is left as it is. So the loss is the sum over tasks of
    each task's mean loss, over documents with a label. All networks start equal, as runs with one seed do.

    With several devices a batch is divided among them, and a task's gradient is the mean over the devices, some of
    which may have none of its documents. DDP must look for unused parameters:
    ``--trainer.strategy ddp_find_unused_parameters_true``.

    Args:
        encoder: Maps ``inputs`` to ``[B, encoder.out_features]``. It is copied for each task; its frozen parameters
            (``freeze_embedding``) are shared between the copies.
        num_tasks: Number of tasks N.
        features: Width of each layer between encoder and head (the paper, 4.1: 32, 32, 16).
        dropout: Dropout after each of these layers.
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Attributes:
        networks: One per task, with the parts ``encoder``, ``layers`` and ``head``.

    Raises:
        InputError: If a layer has no units.
    """

    skips_absent_tasks = True
    _common_words = False  # whether all networks train one table of word vectors

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        features: Sequence[int] = (32, 32, 16),
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        check_widths("features", features)
        widths = [int(encoder.out_features), *features]  # type: ignore[arg-type]
        layers = [
            part
            for inside, outside in pairwise(widths)
            for part in (nn.Linear(inside, outside), nn.ReLU(), make_dropout(dropout))
        ]
        head = nn.Linear(widths[-1], self.num_outputs)
        network = nn.Sequential(OrderedDict(encoder=encoder, layers=nn.Sequential(*layers), head=head))
        common: list[nn.Module | nn.Parameter] = [p for p in encoder.parameters() if not p.requires_grad]
        common += word_tables(encoder) if self._common_words else []
        self.networks = nn.ModuleList([network, *(copy_except(network, common) for _ in range(num_tasks - 1))])

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        return apply_per_task(self.networks, inputs, task_ids, rows)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        task_ids = batch["task_ids"]
        if len(task_ids) == 0:
            return super().loss(batch)
        losses, known = self.losses(self(batch["inputs"], task_ids, batch.get("rows")), batch)
        places = find_rows(task_ids, self.num_tasks).values()
        return torch.stack([mean_loss(losses[mine], known[mine]) for mine in places]).sum()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each network by its own norm, and what they have in common by its own."""
        if not gradient_clip_val or gradient_clip_algorithm == "value":  # each number by itself
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        if self.trainer.precision == "16-mixed" and optimizer.defaults.get("fused"):  # Lightning's own check, too
            raise InputError("a fused optimizer scales 16-bit gradients back too late to clip them: set fused to false")
        common = word_tables(self.networks[0]) if self._common_words else []
        parameters = {id(p): p for table in common for p in table.parameters()}
        nn.utils.clip_grad_norm_(parameters.values(), gradient_clip_val)
        for network in self.networks:
            own = [p for p in network.parameters() if id(p) not in parameters]
            nn.utils.clip_grad_norm_(own, gradient_clip_val)
