"""Running the cells of a comparison: each a command in a process of its own, some of them at a time."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_ncmtl.comparison.plan import Cell


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
    seconds: dict[str, list[float]] = {}
    for cell in cells:
        if (result := cell.read_result()) is not None:
            seconds.setdefault(cell.system, []).append(result["seconds"])
    failures: dict[str, str] = {}
    total = len({cell.directory for cell in cells})
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remaining]}"),
        console=console,
    )
    running: dict[Cell, tuple[subprocess.Popen[bytes], float]] = {}
    with progress:
        bar = progress.add_task("Cells", total=total, completed=total - len(waiting), remaining="")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell] = (_start(command(cell), cell.directory, jobs), time.monotonic())
                time.sleep(0.2)
                for cell in [cell for cell, (process, _) in running.items() if process.poll() is not None]:
                    process, start = running.pop(cell)
                    result = cell.read_result()
                    if result is None:
                        failures[cell.name] = failure = _explain(process.returncode, cell.directory)
                        console.print(f"{escape(cell.name)}: failed, {escape(failure)}", style="red", soft_wrap=True)
                    else:
                        seconds.setdefault(cell.system, []).append(result["seconds"])
                        text = f"{result['val']['accuracy']:.4f} in {time.monotonic() - start:.0f} s"
                        console.print(f"{escape(cell.name)}: {text}")
                    progress.advance(bar)
                elapsed = [(cell, time.monotonic() - start) for cell, (_, start) in running.items()]
                left = _estimate(waiting, elapsed, seconds)
                names = ", ".join(cell.name for cell, _ in elapsed)
                text = "" if left is None else f"{left / jobs / 60:.0f} min remaining"
                progress.update(bar, description=escape(names) or "Cells", remaining=text)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()
    return failures


def find_unfinished(cells: Iterable[Cell]) -> list[Cell]:
    """The cells without a result, one for each directory: those of one directory are the same training."""
    return list({cell.directory: cell for cell in cells if cell.read_result() is None}.values())


def _start(command: list[str], directory: Path, jobs: int) -> "subprocess.Popen[bytes]":
    directory.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with (directory / "log.txt").open("w") as log:
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
    lines = (directory / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ncmtl: error: ") if lines else f"exit status {code}"


def _estimate(
    waiting: Iterable[Cell], running: Iterable[tuple[Cell, float]], seconds: Mapping[str, list[float]]
) -> float | None:
    """Seconds of work that is left, as finished cells of the same system took; ``None`` before one is finished."""
    if not seconds:
        return None
    mean = {system: fmean(values) for system, values in seconds.items()}
    average = fmean(mean.values())
    left = sum(mean.get(cell.system, average) for cell in waiting)
    return left + sum(max(0.0, mean.get(cell.system, average) - elapsed) for cell, elapsed in running)
