"""Run a function on several ranks: processes on this machine that talk through gloo."""

from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

from torch import distributed as dist
from torch import multiprocessing

TIMEOUT = timedelta(seconds=900)  # to end what hangs, not to measure: machines may be busy


def on_ranks(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in each process and wait for all.

    They meet at a port that the system chose: one that a test chooses may be taken, and a file as the meeting point
    makes the last process wait for ever where another has removed it.

    Raises:
        ProcessRaisedException: when a rank failed.
        TimeoutError: when they have not ended in time.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    ranks = multiprocessing.spawn(_rank, (store.port, number, function, arguments), number, join=False, daemon=True)
    end = monotonic() + TIMEOUT.total_seconds()
    while not ranks.join(timeout=1):
        if monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__} has not ended on all of {number} ranks")


def _rank(rank: int, port: int, number: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number, timeout=TIMEOUT)
    function(rank, *arguments)
    dist.barrier()  # or one closes what another still reads from
    dist.destroy_process_group()
