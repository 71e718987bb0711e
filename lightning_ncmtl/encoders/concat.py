"""Several encoders side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.encoders._words import WordEncoder
from lightning_ncmtl.errors import InputError


class Concat(nn.Module):
    """The document vectors of several encoders, one behind the other.

    Pretrained word vectors go to the encoders whose ``embedding_dim`` they fit.

    Args:
        encoders: The encoders.
        vocab_size: What the data's vocabulary holds at most; each encoder's own must be at least this.

    Attributes:
        out_features: Size of a document vector, the sum of the encoders'.

    Raises:
        InputError: If there is no encoder, or one is too small for the vocabulary.
    """

    def __init__(self, encoders: Sequence[nn.Module], vocab_size: int = 0) -> None:
        super().__init__()
        if not encoders:
            raise InputError("Concat needs one or more encoders, found none")
        for encoder in encoders:
            if isinstance(encoder, WordEncoder) and encoder.embedding.num_embeddings < vocab_size:
                raise InputError(
                    f"the {type(encoder).__name__} has room for {encoder.embedding.num_embeddings} words, fewer than "
                    f"the {vocab_size} of data.text.vocab_size: set its vocab_size to {vocab_size}"
                )
        self.encoders = nn.ModuleList(encoders)
        widths: list[Any] = [encoder.out_features for encoder in encoders]
        self.out_features = int(sum(widths))

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents (as for :class:`lightning_ncmtl.encoders.HAN`) to ``[B, out_features]``."""
        return torch.cat([encoder(documents) for encoder in self.encoders], 1)
