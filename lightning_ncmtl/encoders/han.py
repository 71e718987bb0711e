"""Hierarchical attention network (Yang et al., NAACL 2016), with two LSTM layers per level as in the paper, 4.1."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from lightning_ncmtl.encoders._words import WordEncoder


class HAN(WordEncoder):
    """Words to sentences to a document: an LSTM with attention at each level.

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the word vectors (the paper: 200).
        hidden_size: LSTM units per direction.
        num_layers: LSTM layers per level (the paper: 2).
        bidirectional: Whether the LSTMs read in both directions.
        dropout: Dropout on word vectors, between LSTM layers, and on sentence and document vectors.
        freeze_embedding: Keep the word vectors as they start, rather than train them: for pretrained ones.

    Attributes:
        out_features: Size of a document vector.
    """

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 200,
        hidden_size: int = 50,
        num_layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.1,
        freeze_embedding: bool = False,
    ) -> None:
        super().__init__(
            vocab_size, embedding_dim, dropout, freeze_embedding, hidden_size=hidden_size, num_layers=num_layers
        )
        self.words = _AttentiveLSTM(embedding_dim, hidden_size, num_layers, bidirectional, dropout)
        self.sentences = _AttentiveLSTM(self.words.out_features, hidden_size, num_layers, bidirectional, dropout)
        self.out_features = self.sentences.out_features

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents.

        Args:
            documents: ``tokens [S, L]``, word ids of all sentences of the batch, one after the other, 0 where padded;
                ``sentence_lengths [S]``, words per sentence; ``document_lengths [B]``, sentences per document.

        Returns:
            Document vectors ``[B, out_features]``.
        """
        words = self.dropout(self.embedding(documents["tokens"]))
        sentences = self.dropout(self.words(words, documents["sentence_lengths"]))
        lengths = documents["document_lengths"]
        if torch.compiler.is_exporting():  # shapes must not depend on values: room for all sentences in each document
            place = (lengths.cumsum(0) - lengths).unsqueeze(1) + torch.arange(sentences.shape[0], device=lengths.device)
            stacked = sentences[place.clamp(max=sentences.shape[0] - 1)]
        else:
            stacked = pad_sequence(sentences.split(lengths.tolist()), batch_first=True)
        out: Tensor = self.dropout(self.sentences(stacked, lengths))
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
            nn.LSTM(size, hidden_size, bidirectional=bidirectional)
            for size in [in_features] + [self.out_features] * (num_layers - 1)
        )
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.Linear(self.out_features, self.out_features)
        self.context = nn.Linear(self.out_features, 1, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``x [M, T, in_features]`` and ``lengths [M]`` to ``[M, out_features]``."""
        hidden = self._padded(x, lengths) if torch.compiler.is_exporting() else self._packed(x, lengths)
        scores = self.context(self.attention(hidden).tanh()).squeeze(-1)
        padding = torch.arange(hidden.shape[1], device=x.device) >= lengths.unsqueeze(1)
        attention = scores.masked_fill(padding, -torch.inf).softmax(1)
        out: Tensor = (attention.unsqueeze(1) @ hidden).squeeze(1)
        return out

    def _packed(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        for number, layer in enumerate(self.layers):
            if number:
                packed = packed._replace(data=self.dropout(packed.data))
            packed, _ = layer(packed)
        return pad_packed_sequence(packed, batch_first=True)[0]

    def _padded(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The same by operations whose shapes are known beforehand, for ``torch.export``.

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
        return x
