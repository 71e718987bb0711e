"""What the host knows of tensors that are elsewhere; ``test_waits.py`` of the modules has it in trainings."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import on_host, remember
from tests.support.device import DEVICE


@pytest.mark.parametrize(
    "make_copy",
    [copy.copy, copy.deepcopy, lambda values: pickle.loads(pickle.dumps(values)), torch.clone],
    ids=["copy", "deepcopy", "pickle", "clone"],
)
@pytest.mark.parametrize("changes", range(3))  # versions of copies begin at 0 or 1
def test_copies_of_what_has_changed_since_are_not_known(make_copy: Callable[[Any], Any], changes: int) -> None:
    here = torch.arange(3)
    there = torch.arange(3, device=DEVICE)
    for values in (here, there):
        for _ in range(changes):
            values.add_(0)
    remember(there, here)
    assert on_host(there) is here
    there.add_(1)
    with pytest.raises(NotImplementedError, match="no data"):  # so the device is asked, and this one has no values
        on_host(make_copy(there))


def test_files_do_not_hold_what_is_known() -> None:
    moved = remember(torch.zeros(2, device=DEVICE), torch.zeros(2))
    assert pickle.dumps(moved) == pickle.dumps(torch.zeros(2, device=DEVICE))


def test_nothing_is_known_for_longer_than_there_is_the_tensor() -> None:
    here = torch.zeros(2)
    there = remember(here.to(DEVICE), here)
    kept = weakref.ref(here)
    del here
    gc.collect()
    assert kept() is not None
    del there
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    "change", [lambda x: x[:2], lambda x: x.view(1, 3), lambda x: x.int()], ids=["rows", "shape", "type"]
)
def test_what_was_changed_while_it_was_moved_is_not_known(change: Callable[[Any], Any]) -> None:
    here = {"ids": torch.arange(3), "rest": torch.arange(3), "name": "x", "none": None}
    there = {
        "ids": change(torch.arange(3, device=DEVICE)),
        "rest": torch.arange(3, device=DEVICE),
        "name": "y",
        "none": 1,
    }
    assert remember(there, here) is there
    assert on_host(there["rest"]) is here["rest"]  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="no data"):
        on_host(there["ids"])


def test_a_part_of_a_batch_is_refused() -> None:
    here = [torch.arange(3), torch.arange(3)]
    with pytest.raises(InputError, match="what was moved must be the batch, found 1 values of 2"):
        remember(here[:1], here)
