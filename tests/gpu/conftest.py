"""Tests that need a GPU: ``pytest -m gpu tests/gpu``, or ``make gpu``, which runs the benchmarks, too.

They are skipped where there is none. ``NCMTL_TEST_DEVICE=cpu`` runs them on the CPU instead, to try the tests: it says
nothing of a GPU, and nothing waits there. What a CPU cannot do (CUDA graphs, streams, 16-mixed) is skipped still.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from on_device import DEVICE, GPU

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = GPU and not torch.cuda.is_available()
    for item in items:  # of the whole run
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if missing:
                item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float32 as the CPU has it, without TF32; a fault of a kernel belongs to the test that launched it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    if GPU:
        torch.cuda.synchronize(DEVICE)
