"""Networks side by side, of which each sees all rows."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules._layers import check_widths, make_dropout


class Experts(nn.Module):
    """Feed-forward networks of one shape, with ReLU and dropout behind each layer, computed together.

    Args:
        num_experts: Number of networks E.
        widths: The size of a row, then the width of each layer.
        dropout: Dropout behind each layer.

    Raises:
        InputError: If there is no expert, or no layer.
    """

    def __init__(self, num_experts: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        if num_experts < 1:
            raise InputError(f"the number of experts must be at least 1, found {num_experts}")
        if len(widths) < 2:
            raise InputError("expert_features must have the width of one layer or more, found none")
        check_widths("expert_features", widths[1:])
        layers = [[nn.Linear(*pair) for _ in range(num_experts)] for pair in pairwise(widths)]
        self.weights = nn.ParameterList(torch.stack([one.weight.detach() for one in layer]) for layer in layers)
        self.biases = nn.ParameterList(torch.stack([one.bias.detach() for one in layer]) for layer in layers)
        self.dropout = make_dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """What each expert makes of each row: from ``[B, F]`` to ``[B, E, H]``."""
        x = x.expand(len(self.weights[0]), *x.shape)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = self.dropout(torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2)).relu())
        return x.transpose(0, 1)


def mix(gates: Tensor, experts: Tensor) -> Tensor:
    """The mean of what experts made of each row, weighted by the softmax of gates.

    Args:
        gates: ``[R, E]``, before the softmax.
        experts: ``[R, E, H]``.

    Returns:
        ``[R, H]``.
    """
    return (gates.softmax(1).unsqueeze(1) @ experts).squeeze(1)
