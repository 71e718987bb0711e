"""Soft parameter sharing: networks of their own whose encoders are held together (Duong et al., ACL 2015)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules.single_task import SingleTask


class SoftShare(SingleTask):
    """:class:`lightning_ncmtl.SingleTask` with an l2 penalty that pulls the tasks' encoders to each other.

    The penalty is ``strength`` times the sum over tasks of ``||theta_i - mean theta||^2``, which is 1/N of the sum over
    pairs of tasks of ``||theta_i - theta_j||^2`` (Duong et al., Section 3, for two). ``theta`` are the trained
    parameters of the encoder, the *soft* layers; the other layers belong to the tasks (the paper, 4.1). They
    have one table of word vectors in common, as words mean the same to all; N trained tables would be slow.

    Gradients are clipped per network as in SingleTask, penalty included: ``strength=0`` is SingleTask with a common
    table.

    Args:
        encoder: As in :class:`lightning_ncmtl.SingleTask`.
        num_tasks: Number of tasks N.
        strength: Weight of the penalty.
        settings: Those of :class:`lightning_ncmtl.SingleTask`.

    Raises:
        InputError: If the strength is negative.

    Logs ``train/distance``, the penalty without its weight.
    """

    _common_words = True

    def __init__(self, encoder: nn.Module, num_tasks: int, *, strength: float = 1e-3, **settings: Any) -> None:
        super().__init__(encoder, num_tasks, **settings)
        if not strength >= 0:
            raise InputError(f"strength must be at least 0, found {strength}")
        self.strength = strength
        # With a penalty all encoders have a gradient at every step, but not the other layers of absent tasks.

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        loss = super().loss(batch)
        if self.strength == 0:  # no gradients of zero, by which Adam would still move the encoders of absent tasks
            return loss
        distance = self.distance()
        self.log("train/distance", distance, batch_size=len(batch["labels"]))
        return loss + self.strength * distance

    def distance(self) -> Tensor:
        """The sum over tasks of the squared distance of their encoder to the mean encoder, 0-d."""
        encoders = [network.encoder.parameters() for network in self.networks]  # type: ignore[union-attr]
        total = torch.zeros((), device=self.device)
        for copies in zip(*encoders, strict=True):  # N copies of one parameter
            if copies[0].requires_grad and copies[0] is not copies[-1]:
                stacked = torch.stack(copies)
                # The gradient through the mean is zero, as distances from the mean are in sum.
                total = total + (stacked - stacked.detach().mean(0)).square().sum()
        return total
