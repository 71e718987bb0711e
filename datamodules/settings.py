"""Settings of the data module: the division of documents, labels, how text becomes numbers, how batches are drawn."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lightning_ncmtl.datamodules.sampling import Balance
from lightning_ncmtl.datamodules.sources import Label
from lightning_ncmtl.datamodules.text import Keep
from lightning_ncmtl.errors import InputError


@dataclass(frozen=True)
class SplitSettings:
    """How documents are divided into those that train, validate and perhaps test.

    Args:
        validation_size: The last documents of each domain's training split that validate instead; or, if less than 1,
            a share of each domain and label.
        test_size: A share of each domain and label to test on, where the source has no test split.
        folds: Instead of ``validation_size``, divide each domain and label into this many parts (the paper: 10) ...
        fold: ... and validate on this part, from 0.
        seed: Seed of the division into folds or shares.
        deduplicate: Do not train on documents that have a copy in validation, or in the test split if there is one;
            of that split, nothing but the texts is used for this.

    Raises:
        InputError: If the fold is none of the folds.
    """

    validation_size: int | float = 200
    test_size: float | None = None
    folds: int | None = None
    fold: int = 0
    seed: int = 0
    deduplicate: bool = False

    def __post_init__(self) -> None:
        if not (self.fold == 0 if self.folds is None else self.folds >= 2 and 0 <= self.fold < self.folds):
            raise InputError(
                f"data.split.folds must be at least 2 and data.split.fold in 0 .. folds - 1, found folds={self.folds}, "
                f"fold={self.fold}"
            )


ClassWeights: TypeAlias = Literal["balanced"] | dict[Label, float]
ValueScale: TypeAlias = Literal["task", "all"]


@dataclass(frozen=True)
class LabelSettings:
    """What the labels are.

    Args:
        regression: The tasks whose labels are numbers to be predicted; or whether all are.
        scale: Over which numbers of the training rows they are standardised for training: those of each ``task``, or
            of ``all`` tasks together, where all have the same unit. Predictions and metrics are in the user's units.
        weights: What a label counts in the training loss: ``balanced``, so that all classes of a task count the same;
            or the weight of each class that does not have the weight 1, ``{1: 10.0}``.
    """

    regression: bool | list[str] = False
    scale: ValueScale = "task"
    weights: ClassWeights | None = None


@dataclass(frozen=True)
class TextSettings:
    """How text becomes numbers.

    Args:
        tokenizer: ``words`` or ``bpe``, learned from the training documents; or a ready one: a folder with a
            ``tokenizer.json``, such as that of a pretrained model, or its name on the Hugging Face hub.
        vocab_size: Upper bound on the number of words that are learned; the encoder's ``vocab_size`` must be at least
            this.
        min_frequency: Rarer words become unknown.
        unlabelled_words: Whether to learn words from unlabelled documents, too.
        max_words: Sentences are cut into pieces of at most this many words.
        max_sentences: Documents are truncated to this many sentences.
        max_tokens: Documents are truncated to this many words; ``null`` for no limit, as for the two above.
        keep: The part of a truncated document that is kept: its ``start``, its ``end``, or half of each (``both``;
            Sun et al., 2019).
        vectors: Pretrained word vectors (see :func:`lightning_ncmtl.datamodules.vectors.read_vectors`), given to the
            encoder when training starts.

    Raises:
        InputError: If a number is too small.
    """

    tokenizer: str = "words"
    vocab_size: int = 30_000
    min_frequency: int = 2
    unlabelled_words: bool = False
    max_words: int | None = 50
    max_sentences: int | None = 40
    max_tokens: int | None = None
    keep: Keep = "start"
    vectors: str | None = None

    def __post_init__(self) -> None:
        check_least("text.vocab_size", self.vocab_size, 258 if self.tokenizer == "bpe" else 3)  # all bytes; 2 of ours
        check_least("text.min_frequency", self.min_frequency, 1)
        for name in ("max_words", "max_sentences", "max_tokens"):
            if (value := getattr(self, name)) is not None:
                check_least(f"text.{name}", value, 1)

    @property
    def limits(self) -> dict[str, int | str | None]:
        """What of a document is read, for :class:`lightning_ncmtl.datamodules.text.Encoder`."""
        return {name: getattr(self, name) for name in ("max_words", "max_sentences", "max_tokens", "keep")}


@dataclass(frozen=True)
class BatchSettings:
    """How batches are drawn (see :class:`lightning_ncmtl.datamodules.MixedBatchSampler`).

    Args:
        size: Documents per batch and device (the paper: 32).
        balance: How an epoch draws the domains: ``proportional`` to their size, ``uniform``, or a temperature between
            the two.
        replacement: Whether an epoch draws documents with replacement.
        quota: Documents of every domain that each batch holds at least.
        halves: Whether training batches take turns between two disjoint halves of each domain's documents, from which
            network clustering learns how sure its clusters are (``warmup="shared"`` needs it).

    Raises:
        InputError: If a number is too small.
    """

    size: int = 32
    balance: Balance = "proportional"
    replacement: bool = False
    quota: int = 0
    halves: bool = True

    def __post_init__(self) -> None:
        check_least("batches.size", self.size, 1)
        check_least("batches.quota", self.quota, 0)


def check_least(name: str, value: int, least: int) -> None:
    """Raise :class:`InputError` where a setting of the data module is too small."""
    if value < least:
        raise InputError(f"data.{name} must be at least {least}, found {value}")
