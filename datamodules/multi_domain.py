"""Text classification in many domains, one task per domain."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor

from lightning_ncmtl._lightning import LightningDataModule, rank_zero_info
from lightning_ncmtl.datamodules.copies import Flags, Integers, deal_folds, find_pairs, group_copies, repeats
from lightning_ncmtl.datamodules.predict_file import read_predict_file
from lightning_ncmtl.datamodules.sampling import Balance, FixedBatchSampler, MixedBatchLoader, MixedBatchSampler
from lightning_ncmtl.datamodules.sources import Source, Split
from lightning_ncmtl.datamodules.text import collate, encode, train_tokenizer
from lightning_ncmtl.datamodules.vectors import read_vectors
from lightning_ncmtl.errors import InputError

Stage = Literal["train", "validation", "test", "predict"]


class MultiDomainDataModule(LightningDataModule):
    """Documents of many domains in mixed batches (see :class:`lightning_ncmtl.datamodules.text.Batch`).

    The vocabulary is learned from training documents alone. It travels in the checkpoint together with the domains, so
    that a checkpoint is enough to predict on raw text.

    Copies of documents (see :func:`lightning_ncmtl.datamodules.copies.find_copies`) never fall into different folds.
    Other splits are taken as they are: batches of validation and test tell which documents are ``clean``, without a
    copy among the documents trained on, and ``deduplicate`` makes all of them so.

    Args:
        source: Where documents come from.
        domains: The domains to use, in this order (the order of the task ids); all by default.
        num_classes: Number of classes; labels are ``0 .. num_classes - 1``.
        batch_size: Documents per batch and device (the paper: 32).
        balance: How an epoch draws the domains: ``proportional`` to their size, or ``uniform``.
        validation_size: The last documents of each domain's training split that validate instead.
        folds: Instead, divide each domain and label into this many parts (the paper: 10) ...
        fold: ... and validate on this part, from 0.
        fold_seed: Seed of the division into folds.
        deduplicate: Do not train on documents that have a copy in validation, or in the test split if there is one;
            of that split, nothing but the texts is used for this.
        vocab_size: Upper bound on the number of words; the encoder's ``vocab_size`` must be at least this.
        min_frequency: Rarer words become unknown.
        max_words: Sentences are cut into pieces of at most this many words.
        max_sentences: Documents are truncated to this many sentences.
        vectors: Pretrained word vectors in GloVe's format, plain or ``.gz``, given to the encoder when training starts.
        predict_path: What ``predict`` reads: ``.jsonl`` or ``.csv`` with the fields ``text`` and ``domain``.
        num_workers: Processes that make batches in the background.
        seed: Seed of the order of documents.

    Attributes:
        domains: Names of the domains; the place of a name is its task id.
        tokenizer: The vocabulary, or ``None`` before it was learned or restored.
        counts: Per stage: documents, with invalid characters, empty, truncated; of validation and test, also those
            with a copy in training.
        copies: Per domain, of what was set up: documents (``train``, ``validation``, ``test``) and how many of them
            repeat an earlier training document (``train copies``) or have a copy in training (``validation copies``,
            ``test copies``).

    Raises:
        InputError: If settings or documents cannot be used.
    """

    def __init__(
        self,
        source: Source,
        domains: list[str] | None = None,
        num_classes: int = 2,
        batch_size: int = 32,
        balance: Balance = "proportional",
        validation_size: int = 200,
        folds: int | None = None,
        fold: int = 0,
        fold_seed: int = 0,
        deduplicate: bool = False,
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        max_words: int = 50,
        max_sentences: int = 40,
        vectors: str | None = None,
        predict_path: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["source"], logger=False)
        if "_instantiator" in self.hparams:  # made by LightningCLI: all plain values, the source included
            self.save_hyperparameters(logger=False)
        if not (fold == 0 if folds is None else folds >= 2 and 0 <= fold < folds):
            raise InputError(f"folds must be at least 2 and fold in 0 .. folds - 1, found folds={folds}, fold={fold}")
        self.source = source
        self.domains = list(source.domains() if domains is None else domains)
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise InputError(f"domains must be one or more different names, found {self.domains}")
        self.hparams["domains"] = self.domains  # so that a checkpoint does without the corpus
        limits = {"num_classes": (num_classes, 2), "batch_size": (batch_size, 1), "vocab_size": (vocab_size, 3)}
        limits |= {"min_frequency": (min_frequency, 1), "max_words": (max_words, 1)}
        limits |= {"max_sentences": (max_sentences, 1), "num_workers": (num_workers, 0)}
        for name, (value, least) in limits.items():
            if value < least:
                raise InputError(f"{name} must be at least {least}, found {value}")
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.balance = balance
        self.validation_size = validation_size
        self.folds = folds
        self.fold = fold
        self.fold_seed = fold_seed
        self.deduplicate = deduplicate
        self.vocab_size = vocab_size
        self.min_frequency = min_frequency
        self.max_words = max_words
        self.max_sentences = max_sentences
        self.vectors_path = vectors
        self.predict_path = predict_path
        self.num_workers = num_workers
        self.seed = seed
        self.tokenizer: Tokenizer | None = None
        self.counts: dict[Stage, dict[str, int]] = {}
        self.copies: dict[str, dict[str, int]] = {}
        self._documents: dict[Split, Dataset] = {}
        self._pairs: dict[tuple[Split, ...], Integers] = {}
        self._texts: dict[Stage, Dataset] = {}
        self._encoded: dict[Stage, Dataset] = {}

    @property
    def num_tasks(self) -> int:
        """Number of domains."""
        return len(self.domains)

    @property
    def planted_groups(self) -> dict[str, int] | None:
        """The true group of each domain, where the source planted groups."""
        planted = self.source.planted_groups
        return None if planted is None else {domain: planted[domain] for domain in self.domains}

    def setup(self, stage: str) -> None:
        """Read and check the documents that a stage needs.

        A test split is read by ``test``, and to deduplicate. ``test`` reads the training split too, to tell which
        documents are clean.
        """
        if stage in ("fit", "validate"):
            self._split_training_documents()
        elif stage == "test":
            self._set_test_documents()
        elif stage == "predict":
            self._set_texts("predict", _with_index(read_predict_file(self.predict_path, self.domains)))
        if stage == "fit" and self.tokenizer is None:
            self._learn_vocabulary()

    def vectors(self) -> Tensor | None:
        """Pretrained vectors ``[V, dim]`` of the vocabulary's words, NaN where unknown; ``None`` if none were given."""
        if self.vectors_path is None:
            return None
        assert self.tokenizer is not None, "call setup('fit') first"
        vectors = read_vectors(self.vectors_path, self.tokenizer.get_vocab())
        known = int((~vectors.isnan().any(1)).sum())
        rank_zero_info(
            f"{self.vectors_path}: vectors for {known:,} of {len(vectors):,} words ({known / len(vectors):.1%})"
        )
        return vectors

    def train_dataloader(self) -> MixedBatchLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> MixedBatchLoader:
        return self._loader("validation")

    def test_dataloader(self) -> MixedBatchLoader:
        return self._loader("test")

    def predict_dataloader(self) -> MixedBatchLoader:
        return self._loader("predict")

    def documents(self, stage: Stage) -> Dataset:
        """The documents of a stage that was set up: ``text``, ``label``, ``task_id``, ``index``, perhaps ``clean``."""
        return self._texts[stage]

    def predict_texts(self) -> Iterator[tuple[str, str]]:
        """Domain and text of what ``predict`` reads, in the order of ``index``."""
        documents = self._texts["predict"]
        for task, text in zip(documents["task_id"], documents["text"], strict=True):
            yield self.domains[task], text

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to read raw text: the vocabulary and the domains."""
        return {"domains": self.domains, "tokenizer": None if self.tokenizer is None else self.tokenizer.to_str()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["domains"] != self.domains:
            raise InputError(
                f"the checkpoint was trained on the domains {', '.join(state_dict['domains'])}; "
                f"the data has {', '.join(self.domains)}: set data.domains"
            )
        if state_dict["tokenizer"] is not None:
            self.tokenizer = Tokenizer.from_str(state_dict["tokenizer"])
            self._encoded.clear()

    def _split_training_documents(self) -> None:
        documents = self._read("train")
        splits: tuple[Split, ...] = ("train",)
        if self.deduplicate and "test" in self.source.splits():
            splits = ("train", "test")
        groups_of_all = self._group(*splits)
        groups = self._group("train")  # alone, so that the folds do not depend on the test split
        held_out = self._hold_out(documents, groups)
        used = ~held_out
        if self.deduplicate:
            used &= ~self._find_leaks(groups_of_all, held_out)
        clean = ~np.isin(groups, groups[used])
        self._set_texts("train", documents.select(np.flatnonzero(used)))
        self._set_texts("validation", documents.add_column("clean", clean).select(np.flatnonzero(held_out)))
        self._count_copies("train", repeats(groups[used]))
        self._count_copies("validation", ~clean[held_out])

    def _set_test_documents(self) -> None:
        documents = self._read("test")
        if "train" not in self.source.splits():
            rank_zero_info("test: without a training split, nothing tells which documents have a copy in training")
            self._set_texts("test", documents)
            return
        groups = self._group("train", "test")
        if "train" not in self._texts:
            self._split_training_documents()
        clean = ~np.isin(groups[-len(documents) :], groups[_integers(self._texts["train"], "index")])
        self._set_texts("test", documents.add_column("clean", clean))
        self._count_copies("test", ~clean)

    def _hold_out(self, documents: Dataset, groups: Integers) -> Flags:
        """Which training documents ``[n]`` validate."""
        tasks = _integers(documents, "task_id")
        if self.folds is not None:
            strata = tasks * self.num_classes + _integers(documents, "label")
            held_out = np.asarray(deal_folds(groups, strata, self.folds, self.fold_seed) == self.fold)
            for task, domain in enumerate(self.domains):
                if (count := held_out[tasks == task].sum()) in (0, (tasks == task).sum()):
                    raise InputError(
                        f"the fold {self.fold} of {self.folds} holds {count} of the {(tasks == task).sum()} documents "
                        f"of {domain!r}: choose fewer folds"
                    )
            return held_out
        held_out = np.zeros(len(documents), dtype=bool)
        for task, domain in enumerate(self.domains):
            members = np.flatnonzero(tasks == task)
            if not 0 < self.validation_size < len(members):
                raise InputError(
                    f"validation_size must be between 1 and {len(members) - 1}, one less than the training "
                    f"documents of {domain!r}, found {self.validation_size}"
                )
            held_out[members[-self.validation_size :]] = True
        return held_out

    def _find_leaks(self, groups: Integers, held_out: Flags) -> Flags:
        """Which training documents ``[n]`` have a copy in validation, or in a test split, whose groups come last."""
        count = len(held_out)
        leaks = np.isin(groups[:count], np.concatenate([groups[:count][held_out], groups[count:]]))
        where = "validation" if len(groups) == count else "validation or test"
        rank_zero_info(
            f"train: dropped {(leaks & ~held_out).sum():,} of {(~held_out).sum():,} documents, with a copy in {where}"
        )
        left = np.bincount(_integers(self._read("train"), "task_id")[~leaks], minlength=self.num_tasks)
        if not left.all():
            raise InputError(
                f"every training document of {self.domains[left.argmin()]!r} has a copy in {where}: "
                f"set data.deduplicate to false, or leave the domain out of data.domains"
            )
        return leaks

    def _group(self, *splits: Split) -> Integers:
        """The groups of copies among the documents of some splits, in this order."""
        documents = [self._read(split) for split in splits]
        if splits not in self._pairs:
            pairs = find_pairs([text for part in documents for text in part["text"][:]])
            self._pairs.update({splits[:end]: pairs for end in range(1, len(splits) + 1)})  # good for the first as well
        return group_copies(self._pairs[splits], sum(map(len, documents)))

    def _count_copies(self, stage: Stage, copied: Flags) -> None:
        tasks = _integers(self._texts[stage], "task_id")
        for task, domain in enumerate(self.domains):
            own = copied[tasks == task]
            self.copies.setdefault(domain, {}).update({stage: len(own), f"{stage} copies": int(own.sum())})

    def _set_texts(self, stage: Stage, texts: Dataset) -> None:
        self._texts[stage] = texts
        self._encoded.pop(stage, None)

    def _read(self, split: Split) -> Dataset:
        if split not in self._documents:
            self._documents[split] = self._read_source(split)
        return self._documents[split]

    def _read_source(self, split: Split) -> Dataset:
        columns: dict[str, list[Any]] = {"text": [], "label": [], "task_id": []}
        for task, domain in enumerate(self.domains):
            before = len(columns["text"])
            for text, label in self.source.read(domain, split):
                if not 0 <= label < self.num_classes:
                    raise InputError(
                        f"domain {domain!r} has the label {label}, outside 0 .. {self.num_classes - 1}: "
                        f"set data.num_classes to {label + 1} or more"
                    )
                columns["text"].append(text)
                columns["label"].append(label)
            if len(columns["text"]) == before:
                raise InputError(f"domain {domain!r} has no documents in its {split} split")
            columns["task_id"] += [task] * (len(columns["text"]) - before)
        return _with_index(columns)

    def _learn_vocabulary(self) -> None:
        self.tokenizer = train_tokenizer(self._texts["train"]["text"], self.vocab_size, self.min_frequency)

    def _loader(self, stage: Stage, shuffle: bool = False) -> MixedBatchLoader:
        dataset = self._encode(stage)
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        sampler = (FixedBatchSampler if overfit else MixedBatchSampler)(
            dataset["task_id"][:],
            dataset["length"][:],
            self.batch_size,
            balance=self.balance,
            shuffle=shuffle,
            seed=self.seed,
            num_replicas=1 if self.trainer is None else self.trainer.world_size,
            rank=0 if self.trainer is None else self.trainer.global_rank,
        )
        columns = ["tokens", "sentence_lengths", "task_id", "label", "index", "clean"]
        return MixedBatchLoader(
            dataset.select_columns([column for column in columns if column in dataset.column_names]),
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            collate_fn=collate,  # type: ignore[arg-type]  # of columns, as the rows come from one look-up
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _encode(self, stage: Stage) -> Dataset:
        if stage not in self._encoded:
            if self.tokenizer is None:  # an untrained model is validated or tested, without a checkpoint
                if "train" not in self._texts:
                    self._split_training_documents()
                self._learn_vocabulary()
            dataset = self._texts[stage].map(
                encode,
                batched=True,
                input_columns="text",
                fn_kwargs={
                    "tokenizer": self.tokenizer,
                    "max_words": self.max_words,
                    "max_sentences": self.max_sentences,
                },
                desc=f"Tokenising {stage}",
            )
            invalid = sum("\ufffd" in text for text in dataset["text"][:])
            self.counts[stage] = counts = {
                "documents": len(dataset),
                "with invalid characters": invalid,
                "empty": sum(dataset["empty"][:]),
                "truncated": sum(dataset["truncated"][:]),
            }
            if "clean" in dataset.column_names:
                counts["with a copy in training"] = len(dataset) - sum(dataset["clean"][:])
            self._encoded[stage] = dataset
            rank_zero_info(f"{stage}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items()))
        return self._encoded[stage]


def _with_index(columns: dict[str, list[Any]]) -> Dataset:
    return Dataset.from_dict({**columns, "index": range(len(columns["text"]))})


def _integers(dataset: Dataset, column: str) -> Integers:
    return np.array(dataset[column][:], dtype=np.int64)  # at once: iterating over a column is slow
