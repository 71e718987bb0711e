"""The backend ``faiss`` with tensors on the device, which stay there."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import DEVICE, GPU, planted, same_groups

from lightning_ncmtl import kmeans
from lightning_ncmtl.clustering import _faiss

faiss = pytest.importorskip("faiss")
if GPU and not hasattr(faiss, "StandardGpuResources"):
    pytest.skip("FAISS is a build for CPUs", allow_module_level=True)

SHAPES = [(18, 2112, 3), (128, 1000, 10), (2000, 64, 20), (64, 200_000, 8)]


def test_it_runs_on_this_gpu() -> None:
    """As another process finds out, which a wrong build aborts: if this fails, its message says why."""
    assert _faiss.describe_faiss([DEVICE] if GPU else [])[1:] == ([f"{DEVICE}: runs"] if GPU else [])


def test_the_trial_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    run: Callable[..., Any] = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **given: started.append(command) or run(command, **given))
    _faiss._probe.cache_clear()
    for _ in range(2):
        kmeans(planted(20, 30, 3).to(DEVICE), 3, backend="faiss")
    assert [command[0] for command in started] == [sys.executable] * GPU


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_the_objective_is_that_of_gram(n: int, d: int, k: int) -> None:
    x = planted(n, d, k, noise=0.01).to(DEVICE)
    ours, theirs, again = (kmeans(x, k, backend=name, restarts=3) for name in ("gram", "faiss", "faiss"))
    assert theirs.assignment.device == DEVICE
    assert torch.equal(theirs.assignment, again.assignment)
    assert theirs.inertia <= 1.02 * ours.inertia


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits(dtype: torch.dtype) -> None:
    x = planted(60, 500, 4, noise=0.005).to(dtype).to(DEVICE)
    ours, theirs = (kmeans(x, 4, backend=name, restarts=3) for name in ("gram", "faiss"))
    assert theirs.centers.dtype == dtype
    assert theirs.inertia <= 1.02 * ours.inertia


@pytest.mark.parametrize(("n", "d", "k"), SHAPES[:2])
def test_warm_starts_are_those_of_the_cpu(n: int, d: int, k: int) -> None:
    x, start = planted(n, d, k, noise=0.005), torch.arange(n) % k
    found = kmeans(x.to(DEVICE), k, backend="faiss", init=start.to(DEVICE)).assignment
    assert found.tolist() == kmeans(x, k, backend="faiss", init=start).assignment.tolist()


def test_a_large_common_offset_does_not_matter() -> None:
    x = planted(50, 300, 4, noise=0.01) + 1000
    found = kmeans(x.to(DEVICE), 4, backend="faiss").assignment.tolist()
    assert same_groups(found, kmeans(x.double(), 4).assignment.tolist())


def test_no_copies_and_one_device() -> None:
    """The memory of other devices stays as it is, and nobody warns of copies to the CPU."""
    _faiss._warn_of_copies.cache_clear()
    x = planted(64, 2000, 8).to(DEVICE)
    kmeans(x, 8, backend="faiss")
    others = [number for number in range(torch.cuda.device_count()) if number != DEVICE.index]
    before = [torch.cuda.mem_get_info(number)[0] for number in others]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kmeans(x, 8, backend="faiss")
    assert [torch.cuda.mem_get_info(number)[0] for number in others] == before


def test_it_takes_part_in_the_order_of_a_stream() -> None:
    if not GPU:
        pytest.skip("a CPU has no streams")
    x, start = planted(256, 50_000, 8).to(DEVICE), (torch.arange(256) * 7 % 8).to(DEVICE)
    expected = kmeans(x, 8, backend="faiss", init=start).assignment
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        points = torch.zeros_like(x)
        for _ in range(50):  # so that it would be too early without order
            points = points * 0 + x
        found = kmeans(points, 8, backend="faiss", init=start).assignment
    stream.synchronize()
    assert torch.equal(found, expected)
