"""Encoders of rows of features, which have no words."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_ncmtl.encoders._words import check_dropout, check_sizes
from lightning_ncmtl.errors import InputError


class Identity(nn.Module):
    """Features as they are, so that no layer is shared by all tasks: cluster layers begin at the input.

    Args:
        in_features: Number of features; on the command line that of the data.
        dropout: Share of the features that dropout leaves out.

    Attributes:
        out_features: The same.

    Raises:
        InputError: If there are no features, or the share is out of range.
    """

    def __init__(self, in_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        _check_features(self, in_features)
        check_dropout(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.out_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """``[B, in_features]``, unchanged but for dropout."""
        out: Tensor = self.dropout(features)
        return out


class MLP(nn.Module):
    """Linear layers, each with ReLU and dropout behind it.

    Args:
        in_features: Number of features; on the command line that of the data.
        sizes: Width of each layer.
        dropout: Dropout after each layer.

    Attributes:
        out_features: Width of the last layer.

    Raises:
        InputError: If there are no features or layers, or a size or a share is out of range.
    """

    def __init__(self, in_features: int, sizes: Sequence[int] = (64,), dropout: float = 0.0) -> None:
        super().__init__()
        _check_features(self, in_features)
        check_sizes(sizes=min(sizes, default=0))
        check_dropout(dropout=dropout)
        self.layers = nn.Sequential(
            *(
                part
                for inside, outside in pairwise([in_features, *sizes])
                for part in (nn.Linear(inside, outside), nn.ReLU(), nn.Dropout(dropout))
            )
        )
        self.out_features = sizes[-1]

    def forward(self, features: Tensor) -> Tensor:
        """From ``[B, in_features]`` to ``[B, out_features]``."""
        out: Tensor = self.layers(features)
        return out


def _check_features(encoder: nn.Module, in_features: int) -> None:
    if in_features < 1:
        raise InputError(
            f"{type(encoder).__name__} reads features, found in_features={in_features}: for texts, set model.encoder "
            "to one that reads words"
        )
