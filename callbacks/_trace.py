"""The history of an assignment: when tasks changed cluster, within bounds of memory."""

from collections.abc import Sequence
from typing import Any

_MAX_NUMBERS = 500_000  # cluster numbers that a trace holds: a few MiB, and as much in clusters.json and checkpoints


def record(trace: list[list[Any]], step: int, assignment: Sequence[int]) -> None:
    """Append an assignment to a trace, which forgets every second one between its first and its last when it is long.

    So a long trace has gaps, of which the largest is at most a few times the average.

    Args:
        trace: Entries ``[step, [N cluster numbers]]``, as they began; it is changed.
        step: When the assignment began.
        assignment: ``[N]``.
    """
    trace.append([step, list(assignment)])
    if len(trace) > max(3, _MAX_NUMBERS // len(assignment)):
        del trace[1:-1:2]
