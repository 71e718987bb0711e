"""A bag of words and hashed n-grams of words (fastText; Joulin et al., EACL 2017): the fast choice on a CPU."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl.encoders._words import WordEncoder, flatten

_FACTOR = 1_000_003  # a prime, well above the size of vocabularies


class NGram(WordEncoder):
    """The mean of the vectors of a document's words and runs of words.

    Runs of 2 to ``n`` words share ``num_buckets`` vectors by a hash, which start at zero: before training a document is
    the mean of its words.

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the vectors.
        n: Words in the longest run; 1 for words alone.
        num_buckets: Number of vectors for runs of words.
        dropout: Dropout on document vectors.

    Attributes:
        out_features: Size of a document vector.
    """

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 200,
        n: int = 2,
        num_buckets: int = 200_000,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(vocab_size, embedding_dim, dropout, n=n, num_buckets=num_buckets)
        self.n = n
        self.runs = nn.Embedding(num_buckets, embedding_dim)
        nn.init.zeros_(self.runs.weight)
        self.out_features = embedding_dim

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents (as for :class:`lightning_ncmtl.encoders.HAN`) to ``[B, out_features]``."""
        words, lengths = flatten(documents)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        out = F.embedding_bag(words, self.embedding.weight, starts, mode="sum")
        count = lengths
        run = words
        end = ends.repeat_interleave(lengths)  # of the document of each word
        for size in range(2, self.n + 1):
            run = run[:-1] * _FACTOR + words[size - 1 :]
            inside = torch.arange(len(run), device=words.device) + size <= end[: len(run)]
            runs = (lengths - size + 1).clamp(min=0)
            buckets = run[inside] % self.runs.num_embeddings
            out = out + F.embedding_bag(buckets, self.runs.weight, runs.cumsum(0) - runs, mode="sum")
            count = count + runs
        vectors: Tensor = self.dropout(out / count.unsqueeze(1))
        return vectors
