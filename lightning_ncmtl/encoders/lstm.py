"""A document as one run of words, read by an LSTM (Hochreiter & Schmidhuber, 1997)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.encoders._lstm import PackedLSTM
from lightning_ncmtl.encoders._packing import Packing, apply_lstm
from lightning_ncmtl.encoders._words import WordEncoder, check_sizes, flatten


class LSTM(WordEncoder):
    """The last states of an LSTM over the words of a document; dropout is on word and on document vectors.

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the word vectors (the paper: 200).
        hidden_size: LSTM units per direction.
        bidirectional: Whether the LSTM reads in both directions.
        max_words: Words of a document that are read, from its start.
        settings: Those of :class:`lightning_ncmtl.encoders.WordEncoder`.
    """

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 200,
        hidden_size: int = 100,
        bidirectional: bool = True,
        max_words: int = 300,
        **settings: Any,
    ) -> None:
        super().__init__(vocab_size, embedding_dim, **settings)
        check_sizes(hidden_size=hidden_size, max_words=max_words)
        self.lstm = PackedLSTM(embedding_dim, hidden_size, bidirectional=bidirectional, batch_first=True)
        self.max_words = max_words
        self.out_features = hidden_size * (1 + bidirectional)

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents (as for :class:`lightning_ncmtl.encoders.HAN`) to ``[B, out_features]``."""
        words, lengths = flatten(documents)
        packing = Packing.of(lengths, self.max_words)
        x = self.dropout(self.embedding(words[packing.source]))
        _, (hidden, _) = apply_lstm(self.lstm, packing.pack(x))
        out: Tensor = self.dropout(torch.cat(list(hidden), 1))
        return out
