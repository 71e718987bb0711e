"""Hierarchical attention network (Yang et al., NAACL 2016), with two LSTM layers per level as in the paper, 4.1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.encoders._lstm import PackedLSTM
from lightning_ncmtl.encoders._packing import Packing, apply_lstm
from lightning_ncmtl.encoders._words import WordEncoder, check_sizes, flatten
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.torch_versions import is_exporting


class HAN(WordEncoder):
    """Words to sentences to a document: an LSTM with attention at each level.

    Dropout is on word vectors, between LSTM layers, and on sentence and document vectors.

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the word vectors (the paper: 200).
        hidden_size: LSTM units per direction.
        num_layers: LSTM layers per level (the paper: 2).
        bidirectional: Whether the LSTMs read in both directions.
        settings: Those of :class:`lightning_ncmtl.encoders.WordEncoder`.
    """

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 200,
        hidden_size: int = 50,
        num_layers: int = 2,
        bidirectional: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(vocab_size, embedding_dim, **settings)
        check_sizes(hidden_size=hidden_size, num_layers=num_layers)
        levels = (hidden_size, num_layers, bidirectional, self.dropout.p)
        self.words = _AttentiveLSTM(embedding_dim, *levels)
        self.sentences = _AttentiveLSTM(self.words.out_features, *levels)
        self.out_features = self.sentences.out_features

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents.

        Args:
            documents: ``tokens [W]``, word ids of all documents, one after the other; ``sentence_lengths [S]``, words
                per sentence; ``document_lengths [B]``, sentences per document. The tokens may also be ``[S, L]``, a
                sentence a row, padded with 0; for ``torch.export`` they must.

        Returns:
            Document vectors ``[B, out_features]``.

        Raises:
            InputError: If tokens without padding meet ``torch.export``.
        """
        if is_exporting():
            return self._padded(documents)
        words, sentences = Packing.of(documents["sentence_lengths"]), Packing.of(documents["document_lengths"])
        x = self.dropout(self.embedding(flatten(documents)[0][words.source]))
        x = self.dropout(self.words(x, words))
        out: Tensor = self.dropout(self.sentences(x[sentences.source], sentences))
        return out

    def _padded(self, documents: Mapping[str, Tensor]) -> Tensor:
        """The same with shapes that do not depend on values: each document has room for all sentences."""
        tokens, lengths = documents["tokens"], documents["document_lengths"]
        if tokens.ndim == 1:
            raise InputError("torch.export needs tokens [S, L], a sentence a row, padded with 0: found tokens [W]")
        sentences = self.dropout(self.words.padded(self.dropout(self.embedding(tokens)), documents["sentence_lengths"]))
        place = (lengths.cumsum(0) - lengths).unsqueeze(1) + torch.arange(len(tokens), device=lengths.device)
        out: Tensor = self.dropout(self.sentences.padded(sentences[place.clamp(max=len(tokens) - 1)], lengths))
        return out


class _AttentiveLSTM(nn.Module):
    """A packed LSTM whose outputs are averaged with learned attention (Yang et al., 2016, equations 5 to 10)."""

    def __init__(
        self, in_features: int, hidden_size: int, num_layers: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        self.out_features = hidden_size * (1 + bidirectional)
        # Layers of their own rather than nn.LSTM's num_layers, whose dropout on a GPU ignores the random seed.
        self.layers = nn.ModuleList(
            PackedLSTM(size, hidden_size, bidirectional=bidirectional)
            for size in [in_features] + [self.out_features] * (num_layers - 1)
        )
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.Linear(self.out_features, self.out_features)
        self.context = nn.Linear(self.out_features, 1, bias=False)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """``x [W, in_features]``, the elements of M sequences in packed order, to ``[M, out_features]``."""
        for number, layer in enumerate(self.layers):
            x = self.dropout(x) if number else x
            x = apply_lstm(layer, packing.pack(x))[0].data
        attention = packing.unpack(self._scores(x), -torch.inf).softmax(0)
        weighted = attention.flatten()[packing.slots].unsqueeze(1) * x
        return packing.unpack(weighted, 0).sum(0)

    def _scores(self, hidden: Tensor) -> Tensor:
        """``[..., out_features]`` to ``[...]``."""
        scores: Tensor = self.context(self.attention(hidden).tanh()).squeeze(-1)
        return scores

    def padded(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``x [M, T, in_features]`` and ``lengths [M]`` to ``[M, out_features]``, for ``torch.export``.

        Padding behind a sequence leaves what is before it as it is. For the other direction each sequence is turned
        round within its own length.
        """
        steps = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        last = lengths.unsqueeze(1) - 1
        turned = torch.where(steps <= last, last - steps, steps).unsqueeze(2)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.LSTM)
            x = self.dropout(x) if number else x
            weights: list[Tensor] = list(layer.parameters())
            half = len(weights) // (1 + layer.bidirectional)
            start = x.new_zeros(1, x.shape[0], layer.hidden_size)
            out = torch.lstm(x, (start, start), weights[:half], True, 1, 0.0, False, False, True)[0]
            if layer.bidirectional:
                back = x.gather(1, turned.expand_as(x))
                back = torch.lstm(back, (start, start), weights[half:], True, 1, 0.0, False, False, True)[0]
                out = torch.cat([out, back.gather(1, turned.expand_as(back))], 2)
            x = out
        attention = self._scores(x).masked_fill(steps > last, -torch.inf).softmax(1)
        return (attention.unsqueeze(1) @ x).squeeze(1)
