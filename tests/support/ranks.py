"""Run a function on several ranks: processes on this machine that talk through gloo."""

import os
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

from lightning_ncmtl.compatibility import rank_zero_only

TIMEOUT = timedelta(seconds=900)  # to end what hangs, not to measure: machines may be busy

# Ranks are forked from one process that has imported, once for all tests, what takes long
OURS = [f"lightning_ncmtl.{folder}" for folder in ("callbacks", "datamodules", "modules")]
multiprocessing.set_forkserver_preload(["pytest", "sklearn.metrics", "torch.distributed.fsdp", *OURS])


def on_ranks(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in each process and wait for all.

    They meet at a port that the system chose: one that a test chooses may be taken, and a file as the meeting point
    makes the last process wait for ever where another has removed it. A trainer in the function is on these ranks, too.

    Raises:
        ProcessRaisedException: when a rank failed.
        TimeoutError: when they have not ended in time.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    ranks = multiprocessing.start_processes(
        _rank,
        (store.port, number, function, arguments),
        number,
        join=False,
        daemon=True,
        start_method="forkserver",
    )
    end = monotonic() + TIMEOUT.total_seconds()
    while not ranks.join(timeout=1):
        if monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__} has not ended on all of {number} ranks")


def _rank(rank: int, port: int, number: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    os.environ["LOCAL_RANK"] = str(rank)  # by which Lightning knows that it has been started on all ranks
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number, timeout=TIMEOUT)
    function(rank, *arguments)
    dist.barrier()  # or one closes what another still reads from
    dist.destroy_process_group()
