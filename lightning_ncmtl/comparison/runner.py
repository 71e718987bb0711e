"""Running the cells of a comparison: each a command in a process of its own, some of them at a time."""

import math
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from lightning_ncmtl.comparison.measure import measure_of
from lightning_ncmtl.comparison.plan import LOG, Cell


def run_all(cells: list[Cell], command: Callable[[Cell], list[str]], jobs: int, console: Console) -> dict[str, str]:
    """Run the cells that are not finished.

    Args:
        cells: All cells.
        command: The command that runs a cell. What it prints goes to ``log.txt`` beside the cell's result.
        jobs: How many run at a time, each with its share of the processor's cores.
        console: Where progress is shown.

    Returns:
        What went wrong, by the names of cells.
    """
    waiting = find_unfinished(cells)
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    failures: dict[str, str] = {}
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    # Cells take minutes: the remaining time is told from all of this run, not from the last 30 seconds.
    progress = Progress("{task.description}", *columns, console=console, speed_estimate_period=math.inf)
    with progress:
        total = len({cell.directory for cell in cells})
        bar = progress.add_task("Cells", total=total, completed=total - len(waiting))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell] = _start(command(cell), cell.directory, jobs)
                time.sleep(0.2)
                for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                    code = running.pop(cell).returncode
                    if (result := cell.read_result()) is None:
                        failures[cell.name] = failure = _explain(code, cell.directory)
                        console.print(f"{escape(cell.name)}: failed, {escape(failure)}", style="red", soft_wrap=True)
                    else:
                        value = result["val"][measure_of(result).name]
                        console.print(f"{escape(cell.name)}: {value:.4f} in {result['seconds']:.0f} s")
                    progress.advance(bar)
                progress.update(bar, description=escape(", ".join(cell.name for cell in running)) or "Cells")
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return failures


def find_unfinished(cells: Iterable[Cell]) -> list[Cell]:
    """The cells without a result, one for each directory: those of one directory are the same training."""
    return list({cell.directory: cell for cell in cells if cell.read_result() is None}.values())


def _start(command: list[str], directory: Path, jobs: int) -> "subprocess.Popen[bytes]":
    directory.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    # Behind what is there: another process may run the cell, and write to it. The cell empties it.
    with (directory / LOG).open("a") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )


def _explain(code: int, directory: Path) -> str:
    """Why a process ended without a result."""
    if code < 0:
        return f"killed by signal {-code}, perhaps for its memory: fewer jobs need less"
    lines = (directory / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ncmtl: error: ") if lines else f"exit status {code}"
