"""What the host knows of tensors that are elsewhere; ``test_waits.py`` of the modules has it in trainings."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

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
