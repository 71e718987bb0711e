import numpy as np
import pytest

from lightning_ncmtl.clustering import layer_state
from lightning_ncmtl.clustering.layer_state import LayerState


def test_a_short_trace_has_everything() -> None:
    state = LayerState(2)
    for step in range(1, 1001):
        state.record(step, [step % 3] * 18)
    assert state.trace == [[step, [step % 3] * 18] for step in range(1, 1001)]


@pytest.mark.parametrize("tasks", [1, 100, 1000])
def test_a_long_trace_is_thinned(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_state, "MAX_TRACE", 50 * tasks)
    state = LayerState(2)
    for step in range(1, 2001):
        state.record(step, [step] * tasks)
        assert len(state.trace) <= 50
        assert state.trace[0] == [1, [1] * tasks]
        assert state.trace[-1] == [step, [step] * tasks]
    steps = np.array([step for step, _ in state.trace])
    assert len(steps) > 20
    assert (np.diff(steps) > 0).all()


def test_a_trace_of_more_tasks_than_numbers_keeps_its_ends() -> None:
    state = LayerState(2)
    tasks = layer_state.MAX_TRACE + 1
    for step in range(1, 9):
        state.record(step, range(tasks))
    assert [step for step, _ in state.trace][:: len(state.trace) - 1] == [1, 8]
    assert len(state.trace) <= 3
