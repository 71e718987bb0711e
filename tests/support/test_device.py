"""The stand-in for a GPU finds what would wait for one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.device import DEVICE, DeviceCalls

X = torch.ones(4, 3, device=DEVICE)
IDS = torch.zeros(4, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: X.sum().item(),
        lambda: X.tolist(),
        lambda: bool(X.sum() > 0),
        lambda: X.nonzero(),
        lambda: X[X > 0],
        lambda: torch.unique(IDS),
        lambda: torch.repeat_interleave(IDS),
        lambda: X.cpu(),
        lambda: torch.equal(X, X),
        lambda: X + torch.ones(4, 3),
    ],
)
def test_values_are_refused(wait: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait()


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.ones(3).to(DEVICE),
        lambda: X.copy_(torch.ones(4, 3)),
        lambda: torch.tensor([1, 2], device=DEVICE),
        lambda: X.index_put_((X > 0,), torch.zeros((), device=DEVICE)),
    ],
)
def test_waits_are_found(wait: Callable[[], object]) -> None:
    with DeviceCalls() as calls:
        wait()
    assert len(calls.waits) == 1
    assert not calls.mixed


@pytest.mark.parametrize(
    "go_on",
    [
        lambda: torch.ones(3).to(DEVICE, non_blocking=True),
        lambda: X.copy_(torch.ones(4, 3), non_blocking=True),
        lambda: X.masked_fill(X > 0, 0.0),
        lambda: X.index_select(0, IDS),
        lambda: X * 2.0,
        lambda: X.repeat_interleave(IDS, dim=0, output_size=5),
    ],
)
def test_others_are_no_waits(go_on: Callable[[], Tensor]) -> None:
    with DeviceCalls() as calls:
        assert go_on().device == DEVICE
    assert not calls.waits
    assert not calls.mixed
    assert calls.launches


def test_copies_to_the_cpu_need_not_wait() -> None:
    with DeviceCalls() as calls:
        assert X.to("cpu", non_blocking=True).tolist() == [[0.0] * 3] * 4
        with pytest.raises(NotImplementedError):
            X.to("cpu")
    assert calls.launches == ["_to_copy.default"]
    assert not calls.waits


def test_indices_of_the_cpu_are_found() -> None:
    with DeviceCalls() as calls:
        X.index_select(0, torch.tensor([1]))
    assert calls.mixed == ["index_select.default"]


def test_launches_are_counted_without_views() -> None:
    with DeviceCalls() as calls:
        y = X.view(3, 4)[1:]
        (y @ y.mT).relu_()
        torch.ones(3)
    assert calls.launches == ["mm.default", "relu_.default"]


def test_copies_of_many_tensors_are_one_launch_if_they_lie_alike() -> None:
    places = [torch.zeros(2, 3, device=DEVICE) for _ in range(4)]
    rows = torch.ones(4, 6, device=DEVICE)
    with DeviceCalls() as calls:
        torch._foreach_copy_(places, [row.view(2, 3) for row in rows])
    assert len(calls.launches) == 1
    with DeviceCalls() as calls:
        torch._foreach_copy_(places, list(rows.view(2, 12).split(3, 1)))
    assert len(calls.launches) == 4
