"""What the encoders of text have in common: word vectors, and documents as plain runs of words."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import on_host, to_device


class WordEncoder(nn.Module):
    """The base of encoders with an embedding table, which may start from pretrained vectors.

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the word vectors.
        dropout: Share of the values that dropout leaves out.
        freeze_embedding: Keep the word vectors as they start, rather than train them: for pretrained ones.

    Attributes:
        out_features: Size of a document vector.

    Raises:
        InputError: If a size or a share is out of range.
    """

    out_features: int

    def __init__(
        self, vocab_size: int, embedding_dim: int, dropout: float = 0.1, freeze_embedding: bool = False
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, embedding_dim=embedding_dim)
        check_dropout(dropout=dropout)
        self.embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=0)
        self.embedding.weight.requires_grad = not freeze_embedding
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def load_vectors(self, vectors: Tensor) -> None:
        """Start from pretrained word vectors.

        Args:
            vectors: ``[V, embedding_dim]``, row ``i`` for the word with id ``i``. A row of NaN keeps its random start,
                scaled to the spread of the vectors that are known.

        Raises:
            InputError: If the shape does not fit the embedding table, or no word has a vector.
        """
        rows, width = self.embedding.weight.shape
        if vectors.shape[1] != width or len(vectors) > rows:
            raise InputError(
                f"word vectors {list(vectors.shape)} do not fit the encoder's embedding table {[rows, width]}: "
                f"set the encoder's embedding_dim to {vectors.shape[1]} and its vocab_size to {len(vectors)} or more"
            )
        known = ~vectors.isnan().any(1)
        if not known.any():
            raise InputError(f"none of the {len(vectors)} words has a vector: each has NaN")
        self.embedding.weight *= vectors[known].std().to(self.embedding.weight)
        self.embedding.weight[: len(vectors)][known] = vectors[known].to(self.embedding.weight)


def check_sizes(**sizes: int) -> None:
    if min(sizes.values()) < 1:
        found = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise InputError(f"sizes must be at least 1, found {found}")


def check_dropout(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(f"{name} must be at least 0 and less than 1, found {share}")


def flatten(documents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The words of all documents, one after the other ``[W]``, and the number of words of each ``[B]``.

    Args:
        documents: As for :class:`lightning_ncmtl.encoders.HAN`.
    """
    words, lengths = documents["tokens"], on_host(documents["sentence_lengths"])
    if words.ndim == 2:
        places = (torch.arange(words.shape[1]) < lengths.unsqueeze(1)).flatten().nonzero().squeeze(1)
        words = words.flatten()[to_device(words.device, places)[0]]
    ends = lengths.cumsum(0)[on_host(documents["document_lengths"]).cumsum(0) - 1]
    return words, to_device(words.device, ends.diff(prepend=ends.new_zeros(1)))[0]


def pad(words: Tensor, lengths: Tensor, max_words: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Documents as padded rows ``[B, L]`` of their first ``max_words`` words, and the words kept of each ``[B]``."""
    place = torch.arange(min(int(on_host(lengths).max()), max_words), device=words.device)
    kept = lengths.clamp(max=max_words)
    inside = place < kept.unsqueeze(1)
    starts = lengths.cumsum(0) - lengths
    return words[(starts.unsqueeze(1) + place).clamp(max=len(words) - 1)].where(inside, padding), kept
