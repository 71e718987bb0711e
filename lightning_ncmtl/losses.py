"""The loss of each label: cross-entropy of classes, squared error of numbers."""

import torch
from torch import Tensor
from torch.nn import functional as F

UNLABELLED = -1  # the label of a document in a task where there is none


def entry_losses(
    outputs: Tensor, labels: Tensor, values: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of each entry.

    Args:
        outputs: ``[R, C]`` logits, minus infinity for what a task does not have; in the last column the number, where
            the entry's task predicts one.
        labels: ``[R]``, the class, -1 if unknown.
        values: ``[R]``, the number, NaN if unknown; ``None`` if no task predicts numbers.
        scale: ``[R]``, what differences between numbers are divided by; 1 by default.

    Returns:
        Losses ``[R]``, 0 where the label is unknown; and where it is known, ``[R]`` bool.
    """
    losses = F.cross_entropy(outputs, labels, ignore_index=UNLABELLED, reduction="none")
    if values is not None:
        numbers = ~values.isnan()
        errors = torch.where(numbers, outputs[:, -1], 0) - torch.where(numbers, values, 0)
        losses = losses + (errors if scale is None else errors / scale).square()
    return losses, is_known(labels, values)


def is_known(labels: Tensor, values: Tensor | None = None) -> Tensor:
    """Which entries ``[R]`` have a label: a class ``labels [R]``, or a number ``values [R]``."""
    known = labels != UNLABELLED
    return known if values is None else known | ~values.isnan()


def mean_loss(losses: Tensor, known: Tensor) -> Tensor:
    """The mean over entries whose label is known, 0-d; 0 if none is."""
    return losses.sum() / known.sum().clamp(min=1)
