import numpy as np
import pytest

from lightning_ncmtl.callbacks import _trace
from lightning_ncmtl.callbacks._trace import record


def test_a_short_trace_has_everything() -> None:
    trace: list[list[object]] = []
    for step in range(1, 1001):
        record(trace, step, [step % 3] * 18)
    assert trace == [[step, [step % 3] * 18] for step in range(1, 1001)]


@pytest.mark.parametrize("tasks", [1, 100, 1000])
def test_a_long_trace_is_thinned(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trace, "_MAX_NUMBERS", 50 * tasks)
    trace: list[list[object]] = []
    for step in range(1, 2001):
        record(trace, step, [step] * tasks)
        assert len(trace) <= 50
        assert trace[0] == [1, [1] * tasks]
        assert trace[-1] == [step, [step] * tasks]
    steps = np.array([step for step, _ in trace])
    assert len(steps) > 20
    assert (np.diff(steps) > 0).all()


def test_a_trace_of_more_tasks_than_numbers_keeps_its_ends() -> None:
    trace: list[list[object]] = []
    tasks = _trace._MAX_NUMBERS + 1
    for step in range(1, 9):
        record(trace, step, range(tasks))
    assert [step for step, _ in trace][:: len(trace) - 1] == [1, 8]
    assert len(trace) <= 3
