from typing import Any

import pytest

from lightning_ncmtl.clustering import HalvesSampler
from lightning_ncmtl.errors import InputError


@pytest.mark.parametrize(("rows", "size"), [(96, 8), (97, 8), (100, 33), (3, 2), (7, 1)])
def test_halves_never_mix_and_epochs_are_whole(rows: int, size: int) -> None:
    sampler = HalvesSampler(rows, size)
    seen: list[set[int]] = [set(), set()]
    step = 0
    for _ in range(3):
        order = list(sampler)
        assert sorted(order) == list(range(rows)) == list(range(len(sampler)))
        for first in range(0, rows, size):
            seen[sampler.half_of(step)].update(order[first : first + size])
            step += 1
    assert step == 3 * sampler.steps_per_epoch
    assert not seen[0] & seen[1]


def test_the_order_is_that_of_its_epoch() -> None:
    sampler, other = HalvesSampler(50, 5), HalvesSampler(50, 5)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    other.epoch = 2
    assert list(other) == epochs[2]
    assert list(HalvesSampler(50, 5, seed=1)) != epochs[0]


@pytest.mark.parametrize("size", [0, 5, 6, 2.5, "2", None])
def test_an_epoch_needs_two_steps(size: Any) -> None:
    with pytest.raises(InputError, match=f"takes {size!r} of 5 examples: .* two steps in an epoch, at least"):
        HalvesSampler(5, size)
