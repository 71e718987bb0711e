from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from lightning_ncmtl.comparison.cell import _labelled, _OneLabel, _Outcomes
from lightning_ncmtl.errors import InputError


def data(**columns: Any) -> Any:
    return SimpleNamespace(documents=lambda split: Dataset.from_dict(columns))


def test_the_linear_model_is_of_documents_with_a_label() -> None:
    documents = _labelled(data(text=["a", "b", "c"], label=[1, -1, 0]), "train")
    assert (documents["text"][:], documents["label"][:]) == (["a", "c"], [1, 0])


def test_documents_of_several_labels_are_refused() -> None:
    message = "ncmtl compare needs one label per document"
    with pytest.raises(InputError, match=message):
        _labelled(data(text=["a"], label=[1], labels=[[1, 0]]), "train")
    batch = {"task_ids": torch.tensor([0])}
    refuse: Any = _OneLabel().on_train_batch_start
    refuse(None, None, batch, 0)
    with pytest.raises(InputError, match=message):
        refuse(None, None, {**batch, "rows": torch.tensor([0])}, 0)


def test_outcomes_are_those_of_the_step() -> None:
    """Which leaves out documents without a label, as the batch does not."""
    collected: Any = _Outcomes()
    batch = {"task_ids": torch.tensor([0, 1, 1]), "labels": torch.tensor([0, -1, 1])}
    for index in ([7, 3], [5, 4]):
        step = {"index": torch.tensor(index), "task_ids": torch.tensor([0, 1]), "correct": torch.tensor([True, False])}
        collected.on_test_batch_end(None, None, step, batch, 0)
    arrays = collected.arrays()
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "domain": [1, 1, 0, 0],
        "document": [3, 4, 5, 7],
        "correct": [False, False, True, True],
    }
    assert arrays["correct"].dtype == np.bool_
