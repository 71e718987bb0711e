import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lightning_ncmtl.comparison.plan import LOG, RESULT, Cell
from lightning_ncmtl.comparison.runner import run_all

SCRIPTS = {
    "finishes": "import sys; open(sys.argv[1], 'w').write(sys.argv[2])",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "is wrong": "import sys; print('first'); sys.exit('ncmtl: error: wrong')",
    "is silent": "import sys; sys.exit(3)",
}


def make(folder: Path, name: str) -> Cell:
    return Cell(name, 1, None, folder / name.replace(" ", "-"), ())


def command(cell: Cell) -> list[str]:
    result = {"seconds": 1.0, "val": {"accuracy": 0.5}, "fingerprint": cell.fingerprint}
    return [sys.executable, "-c", SCRIPTS[cell.system], str(cell.directory / RESULT), json.dumps(result)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_cell_that_ends_badly_takes_no_other_with_it(tmp_path: Path, jobs: int) -> None:
    cells = [make(tmp_path, name) for name in SCRIPTS]
    console = Console(width=80, record=True, quiet=True)
    assert run_all(cells, command, jobs, console) == {
        "is killed, seed 1": "killed by signal 9, perhaps for its memory: fewer jobs need less",
        "is wrong, seed 1": "wrong",
        "is silent, seed 1": "exit status 3",
    }
    assert cells[0].read_result() is not None
    assert (tmp_path / "is-wrong" / "log.txt").read_text() == "first\nncmtl: error: wrong\n"


def test_finished_cells_do_not_run_again_and_equal_ones_run_once(tmp_path: Path) -> None:
    started = []

    def counting(cell: Cell) -> list[str]:
        started.append(cell.system)
        return command(cell)

    first = make(tmp_path, "finishes")
    same = Cell("finishes", 1, None, first.directory, (), sweep="sweep", value="1")
    assert run_all([first, same], counting, 2, Console(quiet=True)) == {}
    assert run_all([first, same], counting, 2, Console(quiet=True)) == {}
    assert started == ["finishes"]


def test_the_log_of_another_process_is_kept(tmp_path: Path) -> None:
    """Which may still run the cell, where the comparison that started it was killed; the cell itself empties it."""
    cell = make(tmp_path, "is wrong")
    cell.directory.mkdir()
    (cell.directory / LOG).write_text("of another process\n")
    assert run_all([cell], command, 1, Console(quiet=True)) == {"is wrong, seed 1": "wrong"}
    assert (cell.directory / LOG).read_text() == "of another process\nfirst\nncmtl: error: wrong\n"
