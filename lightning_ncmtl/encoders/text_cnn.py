"""A convolutional network over words (Kim, EMNLP 2014)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl.encoders._words import WordEncoder, check_sizes, flatten, pad


class TextCNN(WordEncoder):
    """The greatest response of each filter anywhere in a document; dropout is on word and on document vectors.

    A document gives the same vector in any batch: windows that lie in the padding do not count. (One shorter than a
    filter has a single window, filled up with zeros.)

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the word vectors (the paper: 200).
        num_filters: Filters of each width (Kim: 100).
        widths: Words that a filter sees (Kim: 3, 4, 5).
        max_words: Words of a document that are read, from its start.
        settings: Those of :class:`lightning_ncmtl.encoders.WordEncoder`.
    """

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 200,
        num_filters: int = 100,
        widths: Sequence[int] = (3, 4, 5),
        max_words: int = 500,
        **settings: Any,
    ) -> None:
        super().__init__(vocab_size, embedding_dim, **settings)
        check_sizes(num_filters=num_filters, widths=min(widths, default=0), max_words=max_words)
        self.filters = nn.ModuleList(nn.Conv1d(embedding_dim, num_filters, width) for width in widths)
        self.max_words = max_words
        self.out_features = num_filters * len(widths)

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents (as for :class:`lightning_ncmtl.encoders.HAN`) to ``[B, out_features]``."""
        words, lengths = pad(*flatten(documents), self.max_words)
        x = self.dropout(self.embedding(words)).transpose(1, 2)
        responses = []
        for filters in self.filters:
            width = filters.weight.shape[2]  # type: ignore[index]
            response = filters(F.pad(x, (0, max(0, width - x.shape[2]))))
            windows = (lengths - width + 1).clamp(min=1).unsqueeze(1)
            outside = torch.arange(response.shape[2], device=x.device) >= windows
            responses.append(response.masked_fill(outside.unsqueeze(1), -torch.inf).amax(2).relu())
        out: Tensor = self.dropout(torch.cat(responses, 1))
        return out
