"""Adversarial shared-private multi-task learning (Liu, Qiu & Huang, ACL 2017)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import TaskLinear
from lightning_ncmtl.losses import mean_loss
from lightning_ncmtl.modules._per_task import apply_per_task, copy_except, find_rows, select_entries, word_tables
from lightning_ncmtl.modules.base import MultiTaskModule


class ASPMTL(MultiTaskModule):
    """A shared encoder, and a private encoder and a softmax head for each task (Liu et al., Sections 4.2 and 5).

    Two terms are added to the loss. The *adversarial* one keeps tasks out of the shared features: a linear
    discriminator learns to tell the task from them, the shared encoder (through reversed gradients) to prevent it. The
    *orthogonality* penalty keeps shared features out of the private ones. Neither needs labels: both also learn from
    documents without.

    All encoders have one table of word vectors in common, and what is frozen; else each starts at random, or as it was
    pretrained. The private encoder of a task that is absent from a batch has no gradient, so DDP must look for unused
    parameters: ``--trainer.strategy ddp_find_unused_parameters_true``.

    Args:
        encoder: The shared encoder: maps ``inputs`` to ``[B, encoder.out_features]``. Private ones are copies of it,
            in which modules with ``reset_parameters`` start anew, unless a module around them has ``pretrained``.
        num_tasks: Number of tasks N.
        adversarial: Weight of the adversarial term (Liu et al.: 0.05).
        orthogonality: Weight of the orthogonality penalty (Liu et al.: 0.01).
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Raises:
        InputError: If a weight is negative.

    Logs ``train/adversarial_loss``, the discriminator's cross-entropy, and ``train/orthogonality``, the penalty; both
    without their weights.
    """

    skips_absent_tasks = True

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        adversarial: float = 0.05,
        orthogonality: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        if not (adversarial >= 0 and orthogonality >= 0):
            raise InputError(f"weights must be at least 0, found {adversarial=}, {orthogonality=}")
        self.adversarial = adversarial
        self.orthogonality = orthogonality
        self.encoder = encoder
        self.private_encoders = nn.ModuleList(_start_anew(encoder) for _ in range(num_tasks))
        size = int(encoder.out_features)  # type: ignore[arg-type]
        self.head = TaskLinear(num_tasks, 2 * size, self.num_outputs)
        self.discriminator = nn.Linear(size, num_tasks)

    def features(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The shared and the private features, each ``[R, encoder.out_features]``."""
        shared = select_entries(self.encoder(inputs), rows)
        return shared, apply_per_task(self.private_encoders, inputs, task_ids, rows)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        shared, private = self.features(inputs, task_ids, rows)
        logits: Tensor = self.head(torch.cat([private, shared], 1), task_ids)
        return logits

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        task_ids, labels = batch["task_ids"], batch["labels"]
        if len(task_ids) == 0:
            return super().loss(batch)
        shared, private = self.features(batch["inputs"], task_ids, batch.get("rows"))
        outputs = self.masked(self.head(torch.cat([private, shared], 1), task_ids), task_ids)
        loss = mean_loss(*self.losses(outputs, batch))
        adversarial = F.cross_entropy(self.discriminator(_reverse_gradient(shared)), task_ids)
        parts = {task: (shared[rows], private[rows]) for task, rows in find_rows(task_ids, self.num_tasks).items()}
        overlap = torch.stack([len(s) / len(shared) * _overlap(s, p) for s, p in parts.values()]).sum()
        self.log("train/adversarial_loss", adversarial, batch_size=len(labels))
        self.log("train/orthogonality", overlap, batch_size=len(labels))
        return loss + self.adversarial * adversarial + self.orthogonality * overlap


def _start_anew(encoder: nn.Module) -> nn.Module:
    """A copy with new weights, but the same table of word vectors (or tables, of encoders side by side).

    What is frozen is the same, too, and what is pretrained starts as it is: at random it would be worth nothing.
    """
    tables, frozen = word_tables(encoder), [p for p in encoder.parameters() if not p.requires_grad]
    other = copy_except(encoder, [*tables, *frozen])
    whole = [*tables, *(module for module in other.modules() if getattr(module, "pretrained", False))]
    kept = {part for module in whole for part in module.modules()}

    def reset(module: nn.Module) -> None:
        own = module.parameters(recurse=False)
        if hasattr(module, "reset_parameters") and module not in kept and all(p.requires_grad for p in own):
            module.reset_parameters()  # type: ignore[operator]

    return other.apply(reset)


def _overlap(shared: Tensor, private: Tensor) -> Tensor:
    """The squared Frobenius norm of ``S^T P / M``, for features ``[M, F]`` of the documents of one task.

    Liu et al. (Section 5, orthogonality constraints) do not divide by M. But a sum over documents, squared, would grow
    with the square of the batch and drown the cross-entropy, which is a mean.
    """
    kind = torch.promote_types(shared.dtype, torch.float32)  # squares of 16 bits are soon zero or infinite
    with torch.autocast(shared.device.type, enabled=False):
        return (shared.to(kind).T @ private.to(kind) / len(shared)).square().sum()


def _reverse_gradient(x: Tensor) -> Tensor:
    """The identity, with the opposite gradient (Ganin & Lempitsky, ICML 2015)."""
    return 2 * x.detach() - x
