"""Text classification in many domains, one task per domain."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor

from lightning_ncmtl.compatibility import LightningDataModule, rank_zero_info
from lightning_ncmtl.datamodules.batches import Documents
from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.copies import Flags, Integers, repeats
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.division import Division
from lightning_ncmtl.datamodules.document_table import classes_of, integers
from lightning_ncmtl.datamodules.predict_file import predict_table
from lightning_ncmtl.datamodules.sampling import Balance, FixedBatchSampler, MixedBatchLoader, MixedBatchSampler
from lightning_ncmtl.datamodules.sources import Label, Source
from lightning_ncmtl.datamodules.text import Keep, encode_table, load_tokenizer, train_tokenizer
from lightning_ncmtl.datamodules.vectors import read_vectors
from lightning_ncmtl.errors import InputError

Stage = Literal["train", "validation", "test", "predict"]
_MANY = 50_000  # documents from which on several processes encode them


class _Part(NamedTuple):
    """The documents of a stage: rows of a table (all by default), and which rows are clean, where it is known."""

    table: Dataset
    places: Integers | None = None
    clean: Flags | None = None


class MultiDomainDataModule(LightningDataModule):
    """Documents of many domains in mixed batches (see :class:`lightning_ncmtl.datamodules.batches.Batch`).

    The vocabulary is learned from training documents alone. It travels in the checkpoint together with the domains and
    their classes, so that a checkpoint is enough to predict on raw text.

    Documents are read and encoded once. The results stay on disk and are found again as long as neither the documents
    nor the settings change; memory holds a few numbers per document.

    Copies of documents (see :func:`lightning_ncmtl.datamodules.copies.find_copies`) never fall into different folds or
    shares. Other splits are taken as they are: batches of validation and test tell which documents are ``clean``,
    without a copy among the documents trained on, and ``deduplicate`` makes all of them so.

    Args:
        source: Where documents come from.
        domains: The domains to use, in this order (the order of the task ids); by default all that have training
            documents.
        classes: The classes, of all domains or of each (``{domain: [...]}``); by default the labels found in each
            domain's training documents. Documents with other labels are left out.
        batch_size: Documents per batch and device (the paper: 32).
        balance: How an epoch draws the domains: ``proportional`` to their size, ``uniform``, or a temperature between
            the two (see :class:`lightning_ncmtl.datamodules.sampling.MixedBatchSampler`).
        replacement: Whether an epoch draws documents with replacement.
        quota: Documents of every domain that each batch holds at least.
        validation_size: The last documents of each domain's training split that validate instead; or, if less than 1,
            a share of each domain and label.
        test_size: A share of each domain and label to test on, where the source has no test split.
        folds: Instead of ``validation_size``, divide each domain and label into this many parts (the paper: 10) ...
        fold: ... and validate on this part, from 0.
        fold_seed: Seed of the division into folds or shares.
        deduplicate: Do not train on documents that have a copy in validation, or in the test split if there is one;
            of that split, nothing but the texts is used for this.
        tokenizer: ``words`` or ``bpe``, learned from the training documents; or a ready one: a folder with a
            ``tokenizer.json``, such as that of a pretrained model, or its name on the Hugging Face hub.
        vocab_size: Upper bound on the number of words that are learned; the encoder's ``vocab_size`` must be at least
            this.
        min_frequency: Rarer words become unknown.
        unlabelled_words: Whether to learn words from unlabelled documents, too.
        max_words: Sentences are cut into pieces of at most this many words.
        max_sentences: Documents are truncated to this many sentences.
        max_tokens: Documents are truncated to this many words; ``null`` for no limit, as for the two above.
        keep: The part of a truncated document that is kept: its ``start``, its ``end``, or half of each (``both``).
        vectors: Pretrained word vectors (see :func:`lightning_ncmtl.datamodules.vectors.read_vectors`), given to the
            encoder when training starts.
        predict_path: What ``predict`` reads: a table with the columns ``text`` and ``domain`` (see
            :func:`lightning_ncmtl.datamodules.predict_file.predict_table`).
        cache_dir: Where prepared documents stay; in the cache of the ``datasets`` library by default.
        num_workers: Processes that make batches in the background.
        num_proc: Processes that encode documents; by default one, or all cores for more than 50,000 documents.
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
        classes: dict[str, list[Label]] | list[Label] | None = None,
        batch_size: int = 32,
        balance: Balance = "proportional",
        replacement: bool = False,
        quota: int = 0,
        validation_size: int | float = 200,
        test_size: float | None = None,
        folds: int | None = None,
        fold: int = 0,
        fold_seed: int = 0,
        deduplicate: bool = False,
        tokenizer: str = "words",
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        unlabelled_words: bool = False,
        max_words: int | None = 50,
        max_sentences: int | None = 40,
        max_tokens: int | None = None,
        keep: Keep = "start",
        vectors: str | None = None,
        predict_path: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        num_proc: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["source"], logger=False)
        if "_instantiator" in self.hparams:  # made by LightningCLI: all plain values, the source included
            self.save_hyperparameters(logger=False)
        if not (fold == 0 if folds is None else folds >= 2 and 0 <= fold < folds):
            raise InputError(f"folds must be at least 2 and fold in 0 .. folds - 1, found folds={folds}, fold={fold}")
        smallest = 258 if tokenizer == "bpe" else 3  # all bytes; padding and unknown
        limits = {"batch_size": (batch_size, 1), "vocab_size": (vocab_size, smallest)}
        limits |= {"min_frequency": (min_frequency, 1)}
        limits |= {"num_workers": (num_workers, 0), "num_proc": (num_proc or 1, 1), "quota": (quota, 0)}
        cuts = {"max_words": max_words, "max_sentences": max_sentences, "max_tokens": max_tokens}
        limits |= {name: (value, 1) for name, value in cuts.items() if value is not None}
        for name, (value, least) in limits.items():
            if value < least:
                raise InputError(f"{name} must be at least {least}, found {value}")
        self.source = source
        self.cache = Cache(cache_dir)
        self.corpus = Corpus(source, domains, classes, self.cache)
        self.domains = self.corpus.domains
        self.hparams["domains"] = self.domains  # so that a checkpoint does without the corpus
        self.batch_size = batch_size
        self.balance = balance
        self.replacement = replacement
        self.quota = quota
        self.validation_size = validation_size
        self.test_size = test_size
        self.folds = folds
        self.fold = fold
        self.fold_seed = fold_seed
        self.deduplicate = deduplicate
        self.min_frequency = min_frequency
        self.unlabelled_words = unlabelled_words
        self.max_words = max_words
        self.max_sentences = max_sentences
        self.max_tokens = max_tokens
        self.keep = keep
        self.vectors_path = vectors
        self.predict_path = predict_path
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.seed = seed
        self.kind = tokenizer
        self.tokenizer: Tokenizer | None = None if tokenizer in ("words", "bpe") else load_tokenizer(tokenizer)
        self.vocab_size = vocab_size
        if self.tokenizer is not None:
            self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.counts: dict[Stage, dict[str, int]] = {}
        self.copies: dict[str, dict[str, int]] = {}
        self._division: Division | None = None
        self._parts: dict[Stage, _Part] = {}
        self._encoded: dict[Stage, Documents] = {}

    @property
    def num_tasks(self) -> int:
        """Number of domains."""
        return len(self.domains)

    @property
    def class_names(self) -> list[Label]:
        """All classes: the place of a name is its number."""
        return self.corpus.class_names

    @property
    def domain_classes(self) -> dict[str, list[Label]]:
        """The classes of each domain, in the order of their numbers."""
        found = self.corpus.domain_classes
        self.hparams["classes"] = found  # so that a checkpoint does without the corpus
        return found

    @property
    def num_classes(self) -> int:
        """Number of classes of all domains together."""
        return len(self.class_names)

    @property
    def task_classes(self) -> list[list[int]] | None:
        """The numbers of the classes of each domain; ``None`` if every domain has all classes."""
        names = self.class_names
        classes = [[names.index(name) for name in of_domain] for of_domain in self.domain_classes.values()]
        return None if all(len(of_task) == len(names) for of_task in classes) else classes

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
            self._divide()
        elif stage == "test":
            self._set_test_documents()
        elif stage == "predict":
            self._set("predict", _Part(predict_table(self.predict_path, self.domains, self.cache)))
        if stage == "fit" and self.tokenizer is None:
            self._learn_vocabulary()

    def vectors(self) -> Tensor | None:
        """Pretrained vectors ``[V, dim]`` of the vocabulary's words, NaN where unknown; ``None`` if none were given."""
        if self.vectors_path is None:
            return None
        assert self.tokenizer is not None, "call setup('fit') first"
        return read_vectors(self.vectors_path, self.tokenizer.get_vocab())

    def train_dataloader(self) -> MixedBatchLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> MixedBatchLoader:
        return self._loader("validation")

    def test_dataloader(self) -> MixedBatchLoader:
        return self._loader("test")

    def predict_dataloader(self) -> MixedBatchLoader:
        return self._loader("predict")

    def documents(self, stage: Stage) -> Dataset:
        """The documents of a stage that was set up: ``text``, ``label``, ``task_id``, ``index``, perhaps ``clean``.

        If documents may have several labels, also ``task_ids`` and ``labels``.
        """
        table, places, clean = self._parts[stage]
        table = table if clean is None else table.add_column("clean", clean)
        return table if places is None else table.select(places)

    def predict_texts(self) -> Iterator[tuple[str, str]]:
        """Domain and text of what ``predict`` reads, in the order of ``index``."""
        for rows in self._parts["predict"].table.iter(1000):
            for task, text in zip(rows["task_id"], rows["text"], strict=True):
                yield self.domains[task], text

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to read raw text: the vocabulary, the domains and their classes."""
        return {
            "domains": self.domains,
            "classes": self.domain_classes,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.to_str(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["domains"] != self.domains:
            raise InputError(
                f"the checkpoint was trained on the domains {', '.join(state_dict['domains'])}; "
                f"the data has {', '.join(self.domains)}: set data.domains"
            )
        if self.corpus.classes is None:
            self.corpus.classes = state_dict["classes"]
        found = self.domain_classes
        for domain, theirs in classes_of(self.domains, state_dict["classes"]).items():
            if theirs != found[domain]:
                raise InputError(
                    f"the checkpoint was trained on the classes {theirs} of {domain!r}; the data has {found[domain]}: "
                    "set data.classes"
                )
        if state_dict["tokenizer"] is not None:
            self.tokenizer = Tokenizer.from_str(state_dict["tokenizer"])
            self._encoded.clear()

    def _divide(self, test: bool = False) -> None:
        division = Division(
            self.corpus,
            self.validation_size,
            self.test_size,
            self.folds,
            self.fold,
            self.fold_seed,
            self.deduplicate,
            test,
        )
        self._division = division
        documents, clean = self.corpus.read("train"), division.clean()
        self._set("train", _Part(documents, division.train))
        self._set("validation", _Part(documents, division.validation, clean))
        self._count_copies("train", division.tasks[division.train], repeats(division.groups[division.train]))
        self._count_copies("validation", division.tasks[division.validation], ~clean[division.validation])

    def _set_test_documents(self) -> None:
        if "train" not in self.source.splits():
            rank_zero_info("test: without a training split, nothing tells which documents have a copy in training")
            self._set("test", _Part(self.corpus.read("test")))
            return
        if self._division is None:
            self._divide(test=True)
        division = self._division
        assert division is not None
        if division.test is not None:
            part = _Part(self.corpus.read("train"), division.test, division.clean())
        else:
            part = _Part(self.corpus.read("test"), None, division.clean_test())
        self._set("test", part)
        table, places, clean = part
        assert clean is not None
        chosen = slice(None) if places is None else places
        self._count_copies("test", integers(table, "task_id")[chosen], ~clean[chosen])

    def _count_copies(self, stage: Stage, tasks: Integers, copied: Flags) -> None:
        counts = {stage: tasks, f"{stage} copies": tasks[copied]}
        for name, found in counts.items():
            for domain, count in zip(self.domains, np.bincount(found, minlength=self.num_tasks).tolist(), strict=True):
                self.copies.setdefault(domain, {})[name] = count

    def _set(self, stage: Stage, part: _Part) -> None:
        self._parts[stage] = part
        self._encoded.pop(stage, None)

    def _learn_vocabulary(self) -> None:
        part = self._parts["train"]
        used = self.kind, self.vocab_size, self.min_frequency, self.unlabelled_words
        assert part.places is not None
        key = key_of(part.table.cache_files, hashlib.sha256(part.places.tobytes()).digest(), used)

        def texts() -> Iterator[list[str]]:
            for rows in part.table.select(part.places).select_columns("text").iter(1000):
                yield rows["text"]
            if self.unlabelled_words:
                for rows in self.corpus.read("unlabel").select_columns("text").iter(1000):
                    yield rows["text"]

        def make(path: Path) -> None:
            train_tokenizer(texts(), self.kind, self.vocab_size, self.min_frequency).save(str(path))

        self.tokenizer = Tokenizer.from_file(str(self.corpus.cache.get(f"vocabulary-{key}.json", make)))

    def _loader(self, stage: Stage, shuffle: bool = False) -> MixedBatchLoader:
        documents = self._encode(stage)
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        sampler = (FixedBatchSampler if overfit else MixedBatchSampler)(
            documents.column("task_id"),
            documents.column("length"),
            self.batch_size,
            balance=self.balance,
            replacement=self.replacement,
            quota=self.quota,
            shuffle=shuffle,
            seed=self.seed,
            num_replicas=1 if self.trainer is None else self.trainer.world_size,
            rank=0 if self.trainer is None else self.trainer.global_rank,
        )
        return MixedBatchLoader(
            documents,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _encode(self, stage: Stage) -> Documents:
        if stage not in self._encoded:
            if self.tokenizer is None:  # an untrained model is validated or tested, without a checkpoint
                if "train" not in self._parts:
                    self._divide()
                self._learn_vocabulary()
            tokenizer = self.tokenizer
            assert tokenizer is not None
            table, places, clean = self._parts[stage]
            settings = {name: getattr(self, name) for name in ("max_words", "max_sentences", "max_tokens", "keep")}
            cache = self.cache if stage == "predict" else self.corpus.cache
            num_proc = self.num_proc or (os.cpu_count() if len(table) > _MANY else None)
            encoded = encode_table(table, tokenizer, settings, cache, num_proc)
            documents = Documents(encoded, places, clean)
            self.counts[stage] = counts = {
                "documents": len(documents),
                "with invalid characters": int(documents.column("invalid").sum()),
                "empty": int(documents.column("empty").sum()),
                "truncated": int(documents.column("truncated").sum()),
            }
            if clean is not None:
                counts["with a copy in training"] = int((~clean[documents.places]).sum())
            self._encoded[stage] = documents
            rank_zero_info(f"{stage}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items()))
        return self._encoded[stage]
