"""A bag of words and hashed n-grams of words (fastText; Joulin et al., EACL 2017): the fast choice on a CPU."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl.encoders._words import WordEncoder, check_dropout, check_sizes, flatten

_FACTOR = 6_364_136_223_846_793_005  # of Knuth's generator; products wrap around in 64 bits


def hash_run(run: Tensor, word: Tensor) -> Tensor:
    """Hashes of runs that are one word longer: ``run``, hashes or word ids, and ``word``, ids; all int64."""
    mixed = (run + 1) * _FACTOR + word
    mixed = (mixed ^ (mixed >> 32)) * _FACTOR  # so that high bits reach the low ones, of which a bucket is made
    return mixed ^ (mixed >> 29)


class NGram(WordEncoder):
    """The sum of the vectors of a document's words and runs of words, divided by the root of their number.

    Each counts once, however often it stands in the document: for opinions, presence says more than frequency (Pang,
    Lee & Vaithyanathan, EMNLP 2002).

    Runs of 2 to ``n`` words share ``num_buckets`` vectors by a hash, which start at zero: before training a document is
    made of its words. Dropout is on document vectors; what freezes the vectors of words leaves those of runs.

    Args:
        vocab_size: Rows of the embedding table; at least the number of words in the vocabulary.
        embedding_dim: Size of the vectors.
        n: Words in the longest run; 1 for words only.
        num_buckets: Number of vectors for runs of words.
        word_dropout: Share of words and runs that are left out of each document in training, which does more against
            overfitting than ``dropout``.
        settings: Those of :class:`lightning_ncmtl.encoders.WordEncoder`.
    """

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 200,
        n: int = 2,
        num_buckets: int = 200_000,
        word_dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(vocab_size, embedding_dim, **settings)
        check_sizes(n=n, num_buckets=num_buckets)
        check_dropout(word_dropout=word_dropout)
        self.n = n
        self.word_dropout = word_dropout
        with torch.no_grad():
            self.embedding.weight *= 0.05  # so that what words have learned stands out from the random rest
        self.runs = nn.Embedding(num_buckets, embedding_dim)
        self.runs.weight.requires_grad = n > 1  # DDP would wait for their gradients
        self.reset_parameters()
        self.out_features = embedding_dim

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.runs.weight)

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents (as for :class:`lightning_ncmtl.encoders.HAN`) to ``[B, out_features]``."""
        words, lengths = flatten(documents)
        numbers = torch.arange(len(lengths), device=words.device)
        document = numbers.repeat_interleave(lengths, output_size=len(words))
        out, count = self._sum(self.embedding, words, document, len(lengths))
        run = words
        for size in range(2, self.n + 1):
            run = hash_run(run[:-1], words[size - 1 :])
            first, last = document[: len(run)], document[size - 1 :]
            first = first.where(first == last, len(lengths))  # those over the end of a document are of none
            more, number = self._sum(self.runs, run % self.runs.num_embeddings, first, len(lengths))
            out, count = out + more, count + number
        vectors: Tensor = self.dropout(out / count.sqrt().to(out.dtype).unsqueeze(1))
        return vectors

    def _sum(self, table: nn.Embedding, rows: Tensor, document: Tensor, documents: int) -> tuple[Tensor, Tensor]:
        """Sum the different rows of each document ``[documents, F]``, in training those kept; and count them all."""
        size = table.num_embeddings
        keys, once = _different(document * size + rows, documents * size)
        document, rows = keys // size, keys % size
        count = torch.zeros(documents + 1, dtype=torch.int64, device=rows.device).index_add_(0, document, once.long())
        scale = 1.0
        if self.training and self.word_dropout:
            keep = torch.rand(len(rows), device=rows.device) >= self.word_dropout
            once, scale = once & keep, 1 / (1 - self.word_dropout)
            if _drops(rows):
                document, rows, once = document[keep], rows[keep], once[keep]
        weights = None if _drops(rows) else once.to(table.weight.dtype)
        starts = torch.searchsorted(document, torch.arange(documents + 1, device=rows.device))
        sums = F.embedding_bag(rows, table.weight, starts, mode="sum", per_sample_weights=weights)
        return scale * sums[:documents], count[:documents]


def _different(keys: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Keys in order; those below ``end`` at least once, and marked once."""
    if _drops(keys):
        keys = keys.unique()
        keys = keys[keys < end]
        return keys, torch.ones_like(keys, dtype=torch.bool)
    keys = keys.sort().values
    return keys, keys.diff(prepend=keys.new_full((1,), -1)) != 0


def _drops(values: Tensor) -> bool:
    """Whether what does not count is left out. A GPU keeps it: the host would have to wait for the number of others."""
    return values.is_cpu
