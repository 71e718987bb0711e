import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from lightning_ncmtl.datamodules.batches import Documents, collate

ROWS = {
    "tokens": [[5, 6, 7], [8], [9, 9]],
    "sentence_lengths": [[1, 2], [1], [2]],
    "task_ids": [[2], [0], [1]],
    "labels": [[1], [-1], [0]],
}


def test_nothing_is_padded() -> None:
    batch = collate(pa.table({**ROWS, "index": [10, 11, 12]}))
    assert batch["inputs"]["tokens"].tolist() == [5, 6, 7, 8, 9, 9]
    assert batch["inputs"]["sentence_lengths"].tolist() == [1, 2, 1, 2]
    assert batch["inputs"]["document_lengths"].tolist() == [2, 1, 1]
    assert batch["task_ids"].tolist() == [2, 0, 1]
    assert batch["labels"].tolist() == [1, -1, 0]
    assert batch["index"].tolist() == [10, 11, 12]
    assert {values.dtype for values in (*batch["inputs"].values(), batch["index"], batch["labels"])} == {torch.int64}
    assert batch.keys() == {"inputs", "task_ids", "labels", "index"}


def test_documents_with_several_labels_or_none() -> None:
    several = {"task_ids": [[2, 0], [], [1]], "labels": [[1, 0], [], [1]]}
    more = {"index": [10, 11, 12], "clean": [True, True, False]}
    batch = collate(pa.table({**ROWS, **several, **more}), multi_label=True)
    assert batch["rows"].tolist() == [0, 0, 2]
    assert batch["task_ids"].tolist() == [2, 0, 1]
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["index"].tolist() == [10, 10, 12]
    assert batch["clean"].tolist() == [True, True, False]
    assert len(batch["inputs"]["document_lengths"]) == 3


def test_places_choose_rows() -> None:
    table = Dataset.from_dict(ROWS)
    documents = Documents(table, np.array([2, 0]), np.array([True, False, False]))
    assert len(documents) == 2
    assert documents.tasks().tolist() == [1, 2]
    batch = documents[[1, 0]]
    assert batch["index"].tolist() == [0, 2]
    assert batch["clean"].tolist() == [True, False]
    assert batch["inputs"]["tokens"].tolist() == [5, 6, 7, 9, 9]
    assert len(Documents(table)) == 3


def test_no_documents_make_an_empty_batch() -> None:
    batch = Documents(Dataset.from_dict(ROWS))[[]]
    assert batch["labels"].shape == (0,)
    assert batch["inputs"]["tokens"].shape == (0,)
    assert batch["inputs"]["document_lengths"].shape == (0,)
