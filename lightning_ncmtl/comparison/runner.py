"""Running the cells of a comparison, one after the other or in parallel processes."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from statistics import fmean

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_ncmtl.comparison.cell import run
from lightning_ncmtl.comparison.plan import Cell


def run_all(cells: list[Cell], jobs: int, console: Console) -> dict[str, str]:
    """Run the cells that are not finished.

    Args:
        cells: All cells.
        jobs: How many run at a time, each in a process of its own.
        console: Where progress is shown.

    Returns:
        What went wrong, by the names of cells.
    """
    results = {cell: cell.result() for cell in cells}
    seconds: dict[str, list[float]] = {}
    for cell, result in results.items():
        if result is not None:
            seconds.setdefault(cell.system, []).append(result["seconds"])
    # Cells of one directory are the same training.
    waiting = list({cell.directory: cell for cell, result in results.items() if result is None}.values())
    failures: dict[str, str] = {}
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remaining]}"),
        console=console,
    )
    with progress:
        total = len({cell.directory for cell in cells})
        bar = progress.add_task("Cells", total=total, completed=total - len(waiting), remaining="")
        running: dict[Future[str | None], tuple[Cell, float]] = {}
        pool, broken = _make_pool(jobs), False
        try:
            while waiting or running:
                if broken and not running:
                    pool.shutdown()
                    pool, broken = _make_pool(jobs), False
                while waiting and len(running) < jobs and not broken:
                    cell = waiting.pop(0)
                    running[pool.submit(run, cell)] = (cell, time.monotonic())
                done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    cell, start = running.pop(future)
                    try:
                        failure = future.result()
                    except BrokenProcessPool:  # which is broken for all that run in it
                        failure, broken = "a process was killed, perhaps for its memory: fewer jobs need less", True
                    if failure is None:
                        result = cell.result()
                        assert result is not None
                        seconds.setdefault(cell.system, []).append(result["seconds"])
                        text = f"{result['val']['accuracy']:.4f} in {time.monotonic() - start:.0f} s"
                        console.print(f"{escape(cell.name)}: {text}")
                    else:
                        failures[cell.name] = failure
                        console.print(f"{escape(cell.name)}: failed, {escape(failure)}", style="red", soft_wrap=True)
                    progress.advance(bar)
                elapsed = [(cell, time.monotonic() - start) for cell, start in running.values()]
                left = _remaining(waiting, elapsed, seconds)
                names = ", ".join(cell.name for cell, _ in elapsed)
                text = "" if left is None else f"{left / jobs / 60:.0f} min remaining"
                progress.update(bar, description=escape(names) or "Cells", remaining=text)
        finally:
            pool.shutdown(cancel_futures=True)
    return failures


def _make_pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that are started afresh: threads and a GPU do not survive a fork."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(os.getpid(), _threads(jobs)))


def _remaining(
    waiting: Iterable[Cell], running: Iterable[tuple[Cell, float]], seconds: Mapping[str, list[float]]
) -> float | None:
    """Seconds of work that is left, as finished cells of the same system took; ``None`` before one is finished."""
    if not seconds:
        return None
    mean = {system: fmean(values) for system, values in seconds.items()}
    average = fmean(mean.values())
    left = sum(mean.get(cell.system, average) for cell in waiting)
    return left + sum(max(0.0, mean.get(cell.system, average) - elapsed) for cell, elapsed in running)


def _threads(jobs: int) -> int:
    return max(1, torch.get_num_threads() // jobs)


def _start(parent: int, threads: int) -> None:
    """Prepare a process: its share of the processor's cores, and its end when the main process has gone."""
    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
