"""The embedded corpus: made from a seed, with planted groups of domains that a clustering has to find."""

from collections.abc import Collection, Iterator

import numpy as np

from lightning_ncmtl.datamodules.sources.base import Document, Source, Split, choose, fingerprint_files
from lightning_ncmtl.errors import InputError


class Synthetic(Source):
    """Made-up reviews whose opinion words mean the same within a group of domains and clash between groups.

    Every opinion word is good or bad. A part of them means the same everywhere. Of each other word half of the groups,
    drawn at random, say that it is good, and the rest that it is bad; a domain of the group flips it with probability
    ``disagreement``. So domains of a group help each other, and domains of different groups hurt each other. A document
    states mostly opinions that agree with its label, among filler words that carry no signal.

    Args:
        num_domains: Number of domains.
        num_groups: Number of planted groups; domain ``i`` is in group ``i % num_groups``.
        train_documents: Training documents per domain.
        test_documents: Test documents per domain.
        opinion_words: Number of opinion words.
        common: Fraction of the opinion words that mean the same in all domains.
        disagreement: Probability that a domain flips a word of its group.
        opinions: Opinion words per document.
        agreement: Probability that an opinion agrees with the document's label.
        filler_words: Size of the vocabulary without meaning.
        seed: Seed of the whole corpus.
        imbalance: Training documents of the largest domain, as a multiple of the smallest. Sizes between are spaced
            evenly in the logarithm, ``train_documents`` on average, and fall to the domains at random.
    """

    def __init__(
        self,
        num_domains: int = 18,
        num_groups: int = 3,
        train_documents: int = 300,
        test_documents: int = 200,
        opinion_words: int = 60,
        common: float = 0.1,
        disagreement: float = 0.05,
        opinions: int = 8,
        agreement: float = 0.8,
        filler_words: int = 100,
        seed: int = 0,
        imbalance: float = 1.0,
    ) -> None:
        if not 1 <= num_groups <= num_domains:
            raise InputError(f"num_groups must be between 1 and num_domains {num_domains}, found {num_groups}")
        if min(train_documents, test_documents, opinions, filler_words) < 1 or opinion_words < 10:
            raise InputError(
                f"opinion_words must be at least 10 and the other sizes at least 1, found {opinion_words=}, "
                f"{train_documents=}, {test_documents=}, {opinions=}, {filler_words=}"
            )
        if not 1 <= imbalance < np.inf:
            raise InputError(f"imbalance must be a number of at least 1, found {imbalance}")
        self.num_domains = num_domains
        self.num_groups = num_groups
        sizes = np.geomspace(1, imbalance, num_domains)
        sizes = np.maximum(np.rint(train_documents * sizes / sizes.mean()), 1).astype(int)
        # Draws of its own, so that the rest of the corpus does not depend on the sizes; 2 is neither of the splits.
        sizes = np.random.default_rng([seed, 0, 2]).permutation(sizes)
        self.sizes: dict[Split, list[int]] = {"train": sizes.tolist(), "test": [test_documents] * num_domains}
        self.opinions = opinions
        self.agreement = agreement
        self.filler_words = filler_words
        self.seed = seed
        # Meanings [domains, words], +1 good and -1 bad.
        rng = np.random.default_rng(seed)
        good = (num_groups + np.arange(opinion_words) % 2) // 2  # half of the groups, rounded up and down in turn
        ranks = rng.permuted(np.tile(np.arange(num_groups)[:, None], opinion_words), axis=0)
        by_group = np.where(ranks < good, 1, -1)
        by_group[:, : round(common * opinion_words)] = rng.choice([-1, 1], round(common * opinion_words))
        flips = rng.random((num_domains, opinion_words)) < disagreement
        self.meanings = by_group[np.arange(num_domains) % num_groups] * np.where(flips, -1, 1)

    @property
    def planted_groups(self) -> dict[str, int]:
        return {domain: index % self.num_groups for index, domain in enumerate(self.domains())}

    def domains(self) -> list[str]:
        return [f"domain{index:02d}" for index in range(self.num_domains)]

    def splits(self) -> set[Split]:
        return set(self.sizes)

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document]:
        known = self.domains()
        if split not in self.sizes:
            raise InputError(f"the embedded corpus has no {split} split")
        for domain in choose(domains, known, "the embedded corpus"):
            yield from self._make(domain, known.index(domain), split)

    def fingerprint(self) -> str:
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}
        return fingerprint_files({"class": "Synthetic", **plain}, [])

    def _make(self, domain: str, index: int, split: Split) -> Iterator[Document]:
        rng = np.random.default_rng([self.seed, index, list(self.sizes).index(split)])
        meanings = self.meanings[index]
        frequency = 1 / np.arange(1, self.filler_words + 1)  # Zipf's law
        frequency /= frequency.sum()
        for _ in range(self.sizes[split][index]):
            label = int(rng.integers(2))
            agrees = rng.random(self.opinions) < self.agreement
            wanted = np.where(agrees, 2 * label - 1, 1 - 2 * label)
            sentences = []
            for sign in wanted:
                words = [f"w{word}" for word in rng.choice(self.filler_words, rng.integers(1, 3), p=frequency)]
                opinion = rng.choice(np.flatnonzero(meanings == sign))
                words.insert(int(rng.integers(len(words) + 1)), f"opinion{opinion}")
                sentences.append(" ".join(words) + " .")
            yield Document(" ".join(sentences), {domain: label})
