"""Texts, or rows of features, of many domains, one task per domain."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor

from lightning_ncmtl.compatibility import LightningDataModule, attributes, made_by_cli, rank_zero_info
from lightning_ncmtl.datamodules.batches import Documents
from lightning_ncmtl.datamodules.cache import Cache
from lightning_ncmtl.datamodules.copies import Flags, repeats
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.division import Division
from lightning_ncmtl.datamodules.features import Scaling
from lightning_ncmtl.datamodules.labels import learn_scale, weigh_classes
from lightning_ncmtl.datamodules.predict_file import Domains, name_rows, predict_table
from lightning_ncmtl.datamodules.sampling import FixedBatchSampler, MixedBatchLoader, MixedBatchSampler
from lightning_ncmtl.datamodules.settings import BatchSettings, LabelSettings, SplitSettings, TextSettings, check_least
from lightning_ncmtl.datamodules.sources import Label, Source
from lightning_ncmtl.datamodules.sources.base import Given
from lightning_ncmtl.datamodules.text import encode_table, learn_tokenizer, load_tokenizer
from lightning_ncmtl.datamodules.vectors import read_vectors
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import remember

Stage = Literal["train", "validation", "test", "predict"]
_SPLIT, _LABELS, _TEXT, _BATCHES = SplitSettings(), LabelSettings(), TextSettings(), BatchSettings()


class MultiDomainDataModule(LightningDataModule):
    """Documents of many domains in mixed batches (see :class:`lightning_ncmtl.datamodules.batches.Batch`).

    The vocabulary is learned only from training documents. It travels in the checkpoint together with the domains and
    their classes, so that a checkpoint is enough to predict on raw text. Where the source has features in the place of
    texts, these are standardised, by numbers that are learned and travel in the same way.

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
        features: The features to use, in this order, where the source has any; by default all of these.
        split: How documents are divided into those that train, validate and perhaps test.
        labels: Which of them are numbers, and what classes weigh.
        text: How text becomes numbers.
        batches: How batches are drawn.
        predict_path: What ``predict`` reads: a table with the columns ``text`` and ``domain`` (see
            ``datamodules/predict_file.py``), or of features as the source reads them.
        cache_dir: Where prepared documents stay; in the cache of the ``datasets`` library by default.
        num_workers: Processes that make batches in the background.
        num_proc: Processes that encode documents; by default one, or all cores for more than 50,000 documents.
        seed: Seed of the order of documents.

    Attributes:
        domains: Names of the domains; the place of a name is its task id.
        features: Names of the features; ``None`` of texts.
        scaling: How features are standardised, or ``None`` before it was learned or restored.
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
        classes: dict[str, list[Given]] | list[Given] | None = None,
        features: list[str] | None = None,
        split: SplitSettings = _SPLIT,
        labels: LabelSettings = _LABELS,
        text: TextSettings = _TEXT,
        batches: BatchSettings = _BATCHES,
        predict_path: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        num_proc: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["source"], logger=False)
        if made_by_cli(self.hparams):  # the source, too, is a plain value
            self.save_hyperparameters(logger=False)
        # Plain values again where a checkpoint had them
        self.split = SplitSettings(**split) if isinstance(split, dict) else split
        self.labels = LabelSettings(**labels) if isinstance(labels, dict) else labels
        self.text = TextSettings(**text) if isinstance(text, dict) else text
        self.batches = BatchSettings(**batches) if isinstance(batches, dict) else batches
        if not made_by_cli(self.hparams):
            self.hparams.update({name: asdict(getattr(self, name)) for name in ("split", "labels", "text", "batches")})
        check_least("num_workers", num_workers, 0)
        check_least("num_proc", num_proc or 1, 1)
        self.source = source
        self.cache = Cache(cache_dir)
        self.corpus = Corpus(source, domains, classes, self.cache, features, self.labels.regression)
        self.domains, self.features = self.corpus.domains, self.corpus.features
        self.hparams.update(domains=self.domains, features=self.features)  # a checkpoint does without the corpus
        self.num_features = len(self.features or ())
        self.batch_size = self.batches.size  # where Lightning's search for a size changes it
        self.predict_path = predict_path
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.seed = seed
        self.scaling: Scaling | None = None
        learned = self.features is not None or self.text.tokenizer in ("words", "bpe")
        self.tokenizer: Tokenizer | None = None if learned else load_tokenizer(self.text.tokenizer)
        self.vocab_size = self.text.vocab_size
        if self.tokenizer is not None:
            self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.counts: dict[Stage, dict[str, int]] = {}
        self.copies: dict[str, dict[str, int]] = {}
        self._division: Division | None = None
        self._parts: dict[Stage, Documents] = {}  # of texts
        self._encoded: dict[Stage, Documents] = {}

    @property
    def num_tasks(self) -> int:
        """Number of domains."""
        return len(self.domains)

    @property
    def class_names(self) -> list[Label]:
        """All classes; the place of a name is its number."""
        return self.corpus.class_names

    @property
    def domain_classes(self) -> dict[str, list[Label]]:
        """The classes of each domain, in the order of their numbers; none of those with numbers to predict."""
        return self.corpus.domain_classes

    @property
    def num_classes(self) -> int:
        """Number of classes of all domains together."""
        return len(self.class_names)

    @property
    def task_classes(self) -> list[list[int]] | None:
        """The numbers of the classes of each domain that has any; ``None`` if each of these has all classes."""
        names = self.class_names
        classes = [[names.index(name) for name in of_domain] for of_domain in self.domain_classes.values()]
        return None if all(len(of_task) in (0, len(names)) for of_task in classes) else classes

    @property
    def regression_tasks(self) -> list[int] | None:
        """The tasks whose labels are numbers; ``None`` if there are none."""
        return [self.domains.index(domain) for domain in self.corpus.regression] or None

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
            table = predict_table(self.predict_path, self.corpus, self.cache)
            self._set("predict", Documents(table, multi_label=self.source.multi_label))
        if stage == "fit":
            self._learn()
        if stage != "predict":
            self.hparams["classes"] = self.domain_classes  # so that a checkpoint does without the corpus

    def vectors(self) -> Tensor | None:
        """Pretrained vectors ``[V, dim]`` of the vocabulary's words, NaN where unknown; ``None`` if none were given."""
        if self.text.vectors is None:
            return None
        if self.features is not None:
            raise InputError(f"{type(self.source).__name__} has features, and no words: unset data.text.vectors")
        assert self.tokenizer is not None, "call setup('fit') first"
        return read_vectors(self.text.vectors, self.tokenizer.get_vocab())

    def value_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``[N]`` of the training numbers of each task; 0 and 1 of those without any."""
        part = self._parts["train"]
        mean, deviation = learn_scale(part.table, part.places, self.domains, self.labels.scale)
        return torch.from_numpy(mean), torch.from_numpy(deviation)

    def train_dataloader(self) -> MixedBatchLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> MixedBatchLoader:
        return self._loader("validation")

    def test_dataloader(self) -> MixedBatchLoader:
        return self._loader("test")

    def predict_dataloader(self) -> MixedBatchLoader:
        return self._loader("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning does; the host remembers task ids and lengths, so that it need not wait for them."""
        with torch.inference_mode(False):  # inference tensors would not tell that they were changed
            return remember(super().transfer_batch_to_device(batch, device, dataloader_idx), batch)

    def documents(self, stage: Stage) -> Dataset:
        """The documents of a set-up stage: ``text``, ``group``, ``task_ids``, ``labels``, ``index``, perhaps ``clean``.

        Task ids and labels are lists, of one each if documents have one label.
        """
        part = self._parts[stage]
        table = part.table.with_format(None).add_column("index", np.arange(len(part.table)))
        return (table if part.clean is None else table.add_column("clean", part.clean)).select(part.places)

    def predict_rows(self) -> Iterator[tuple[dict[str, str | int | None], Domains]]:
        """What tells each row that ``predict`` reads, and its domain or domains, in the order of ``index``."""
        return name_rows(str(self.predict_path), self._parts["predict"].table, self.corpus)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to read raw data: vocabulary or features, the domains and their classes."""
        return {
            **self.corpus.state_dict(),
            "scaling": None if self.scaling is None else self.scaling.plain(),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.to_str(),
            "documents": None if self._division is None else self._division.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.corpus.restore(state_dict)
        if state_dict["tokenizer"] is not None:
            self.tokenizer = Tokenizer.from_str(state_dict["tokenizer"])
        if state_dict["scaling"] is not None:
            self.scaling = Scaling.from_plain(state_dict["scaling"])
        if self._division is not None:
            self._division.tell_change(state_dict.get("documents"))
        self._encoded.clear()

    def _divide(self, test: bool = False) -> None:
        self._division = division = Division(self.corpus, self.split, test)
        documents, clean = self.corpus.read("train"), division.clean()
        several = self.source.multi_label
        halves = division.halve() if self.batches.halves else None
        self._set("train", Documents(documents, division.train, None, several, halves))
        self._set("validation", Documents(documents, division.validation, clean, several))
        self._count_copies("train", repeats(division.groups[division.train]))
        self._count_copies("validation", ~clean[division.validation])

    def _set_test_documents(self) -> None:
        if "train" not in self.source.splits():
            rank_zero_info("test: without a training split, nothing tells which documents have a copy in training")
            self._set("test", Documents(self.corpus.read("test"), multi_label=self.source.multi_label))
            return
        if self._division is None:
            self._divide(test=True)
        division = self._division
        assert division is not None
        clean = division.clean_test() if division.test is None else division.clean()
        table = self.corpus.read("test" if division.test is None else "train")
        part = Documents(table, division.test, clean, self.source.multi_label)
        self._set("test", part)
        self._count_copies("test", ~clean[part.places])

    def _count_copies(self, stage: Stage, copied: Flags) -> None:
        tasks = self._parts[stage].tasks()
        counts = {stage: tasks, f"{stage} copies": tasks[copied]}
        for name, found in counts.items():
            for domain, count in zip(self.domains, np.bincount(found, minlength=self.num_tasks).tolist(), strict=True):
                self.copies.setdefault(domain, {})[name] = count

    def _set(self, stage: Stage, part: Documents) -> None:
        self._parts[stage] = part
        self._encoded.pop(stage, None)

    def _learn(self) -> None:
        """Learn from the training documents what was not restored: the vocabulary, or the scaling of features."""
        if (self.tokenizer if self.features is None else self.scaling) is not None:
            return
        if "train" not in self._parts:
            self._divide()
        part, text = self._parts["train"], self.text
        if self.features is not None:
            self.scaling = Scaling.learn(self.features, part.table, part.places)
        else:
            more = [self.corpus.read("unlabel")] if text.unlabelled_words else []
            used = text.tokenizer, text.vocab_size, text.min_frequency
            self.tokenizer = learn_tokenizer(part.table, part.places, more, self.corpus.cache, *used)

    def _loader(self, stage: Stage, shuffle: bool = False) -> MixedBatchLoader:
        documents = self._encode(stage)
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        ranks = 1 if self.trainer is None else self.trainer.world_size
        if documents.halves is not None and (overfit or np.bincount(documents.halves, minlength=2).min() < ranks):
            documents.halves = None  # too few to be halved
        sampler = (FixedBatchSampler if overfit else MixedBatchSampler)(
            documents.tasks(),
            documents.lengths(),
            self.batch_size,
            balance=self.batches.balance,
            replacement=self.batches.replacement,
            quota=self.batches.quota,
            shuffle=shuffle,
            seed=self.seed,
            num_replicas=ranks,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            halves=documents.halves,
            turn=1 if self.trainer is None else attributes(self.trainer).accumulate_grad_batches,
        )
        return MixedBatchLoader(
            documents,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=self.num_workers > 0,
        )

    def _encode(self, stage: Stage) -> Documents:
        if stage not in self._encoded:
            self._learn()  # where an untrained model is validated or tested, without a checkpoint
            part = self._parts[stage]
            table = part.table if self.tokenizer is None else self._encode_texts(stage, self.tokenizer)
            documents = Documents(table, part.places, part.clean, part.multi_label, part.halves, self.scaling)
            if stage == "train" and self.labels.weights is not None:
                documents.weights = weigh_classes(part.table, part.places, self.domain_classes, self.labels.weights)
            self.counts[stage] = counts = {"documents": len(documents)}
            if self.features is None:
                names = {"invalid": "with invalid characters", "empty": "empty", "truncated": "truncated"}
                counts |= {name: int(documents.column(column).sum()) for column, name in names.items()}
            if part.clean is not None:
                counts["with a copy in training"] = int((~part.clean[part.places]).sum())
            self._encoded[stage] = documents
            rank_zero_info(f"{stage}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items()))
        return self._encoded[stage]

    def _encode_texts(self, stage: Stage, tokenizer: Tokenizer) -> Dataset:
        cache = self.cache if stage == "predict" else self.corpus.cache
        return encode_table(self._parts[stage].table, tokenizer, self.text.limits, cache, self.num_proc)
