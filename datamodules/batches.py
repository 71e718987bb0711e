"""Mixed batches of encoded documents."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from lightning_ncmtl.datamodules.copies import Flags, Integers
from lightning_ncmtl.datamodules.document_table import first_entries
from lightning_ncmtl.datamodules.features import Numbers, Scaling


class _Sometimes(TypedDict, total=False):
    values: Tensor
    weights: Tensor
    clean: Tensor
    rows: Tensor
    half: int


class Batch(_Sometimes):
    """Documents of several tasks, B in all.

    Attributes:
        inputs: What the encoder reads: ``tokens [W]``, the word ids of all documents, one after the other;
            ``sentence_lengths [S]``, in words; ``document_lengths [B]``, in sentences. Nothing is padded. Where
            documents have features in the place of a text, these: ``[B, F]`` float32.
        task_ids: ``[B]``, the task of each document.
        labels: ``[B]``, the class of each document, -1 where unknown.
        index: ``[B]``, the place of each document in its dataset.
        values: ``[B]`` float32, where tasks predict numbers: that of each document, NaN where unknown. Its class is -1.
        weights: ``[B]`` float32, of training batches where classes have weights: that of each document.
        clean: ``[B]``, whether a document has no copy among those trained on. Batches of validation and test have it
            (of test, only if there is a training split), others do not.
        rows: ``[R]``, if documents may have several labels: the place among the B documents of each label. All the
            others but ``inputs`` are ``[R]`` then.
        half: Of which half of the training documents all of them are, 0 or 1 (see
            :class:`lightning_ncmtl.datamodules.MixedBatchSampler`), where these have been halved.
    """

    inputs: dict[str, Tensor] | Tensor
    task_ids: Tensor
    labels: Tensor
    index: Tensor


def collate(
    table: pa.Table, multi_label: bool = False, scaling: Scaling | None = None, weights: Numbers | None = None
) -> Batch:
    """Make a batch of rows of a table.

    Args:
        table: Columns ``tokens`` and ``sentence_lengths`` as :class:`lightning_ncmtl.datamodules.text.Encoder` gives
            them, or ``features``; with the lists ``task_ids`` and ``labels``, perhaps ``values``, with ``index``, and
            ``clean`` where it is known; no row at all makes an empty batch.
        multi_label: Whether documents may have several labels, or none.
        scaling: What is done to features.
        weights: ``[N, C]``, the weight of each class of each task.
    """
    batch = Batch(
        inputs=_texts(table) if scaling is None else scaling(table["features"]),
        task_ids=_flat(table, "task_ids"),
        labels=_flat(table, "labels"),
        index=_tensor(table["index"]),
    )
    if "values" in table.column_names:
        batch["values"] = torch.from_numpy(_values(table["values"]).astype("float32"))
    if weights is not None:
        chosen = weights[batch["task_ids"], batch["labels"].clamp(min=0)]
        batch["weights"] = torch.from_numpy(chosen).float().where(batch["labels"] >= 0, 1.0)
    if "clean" in table.column_names:
        batch["clean"] = _tensor(table["clean"]).bool()
    if multi_label:
        rows = torch.arange(len(table)).repeat_interleave(_lengths(table, "labels"))
        batch["index"], batch["rows"] = batch["index"][rows], rows
        if "clean" in batch:
            batch["clean"] = batch["clean"][rows]
    return batch


def _texts(table: pa.Table) -> dict[str, Tensor]:
    return {
        "tokens": _flat(table, "tokens"),
        "sentence_lengths": _flat(table, "sentence_lengths"),
        "document_lengths": _lengths(table, "sentence_lengths"),
    }


def _flat(table: pa.Table, name: str) -> Tensor:
    """The values of all lists of a column, one after the other."""
    return torch.from_numpy(_values(table[name]).astype("int64"))


def _values(lists: Any) -> Any:
    return lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _lengths(table: pa.Table, name: str) -> Tensor:
    return _tensor(table[name].combine_chunks().value_lengths())


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype("int64"))


class Documents(torch.utils.data.Dataset[Batch]):
    """Documents of a stage; encoded ones make a batch of a list of places.

    Args:
        table: The table of a whole split, as :meth:`lightning_ncmtl.datamodules.corpus.Corpus.read` gives it, or with
            the texts encoded.
        places: ``[n]``, the rows of the table that are used; all by default.
        clean: Whether each row of the table is clean, where it is known.
        multi_label: Whether documents may have several labels, or none.
        halves: ``[n]``, the half of each document that is used, where they have been halved.
        scaling: What is done to features.
        weights: ``[N, C]``, the weight of each class of each task, where classes have weights.
    """

    def __init__(
        self,
        table: Dataset,
        places: Integers | None = None,
        clean: Flags | None = None,
        multi_label: bool = False,
        halves: Integers | None = None,
        scaling: Scaling | None = None,
        weights: Numbers | None = None,
    ) -> None:
        self.table = table.with_format("arrow")
        self.places = np.arange(len(table)) if places is None else places
        self.clean = clean
        self.multi_label = multi_label
        self.halves = halves
        self.scaling = scaling
        self.weights = weights

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: Sequence[int]) -> Batch:
        places = self.places[np.asarray(chosen, dtype=np.int64)]
        rows = self.table[places].append_column("index", pa.array(places))
        if self.clean is not None:
            rows = rows.append_column("clean", pa.array(self.clean[places]))
        batch = collate(rows, self.multi_label, self.scaling, self.weights)
        if self.halves is not None and len(chosen):
            batch["half"] = int(self.halves[chosen[0]])
        return batch

    def tasks(self) -> Integers:
        """The task ``[n]`` of each document: of several, the first."""
        return first_entries(self.table)[0][self.places]

    def lengths(self) -> Integers:
        """The length ``[n]`` of each document in words; that of features is 1."""
        return self.column("length") if self.scaling is None else np.ones(len(self), dtype=np.int64)

    def column(self, name: str) -> Any:
        """The values ``[n]`` of a column, as numpy has them."""
        return self.table.data.column(name).to_numpy()[self.places]
