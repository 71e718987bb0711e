"""``make gpu`` makes its report of what ran; on a machine without a GPU it says so."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
MACHINE = {"card": "none at all", "commit": "abc"}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line_and_fails() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "make gpu needs a GPU, and torch sees none: install a torch for CUDA, see docs/gpu.md"
    ]


def test_the_training_is_there_where_the_data_is(benchmark: ModuleType) -> None:
    parts = [benchmark.plan(folder, "file", "run") for folder in (None, "folder")]
    assert [len(each) for each in parts] == [4, 5]
    assert "--data.source.path=folder" in parts[1][4].command
    for part in parts[1]:  # what it names is there
        script = part.command[0]
        assert script == "-m" or (SCRIPT.parents[1] / script).exists()


def test_the_report_has_what_ran_and_what_failed(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/accuracy,val/loss\n0,1,,\n0,2,0.5,0.7\n1,4,0.75,0.6\n")
    tests, kmeans, layers, _, training = benchmark.plan("folder", None, str(tmp_path))
    outcomes = [
        (tests, benchmark.Outcome(0, "....\n12 passed in 3.00s\n", "", 3.2)),
        (kmeans, benchmark.Outcome(0, "a machine\n\n| N |\n| --- |\n| 14 |\n", "a warning\n", 61.0)),
        (layers, benchmark.Outcome(1, "| tasks |\n| --- |\n", "Traceback\nRuntimeError: no memory\n", 2.0)),
        (training, benchmark.Outcome(0, "done\n", "", 100.0)),
    ]
    found = benchmark.make_report(MACHINE, outcomes, tmp_path)
    assert "| card | none at all |" in found
    assert "12 passed in 3.00s" in found
    assert "`python benchmarks/kmeans.py --device cuda`, 61 s\n\na machine\n\n| N |\n| --- |\n| 14 |\n" in found
    assert "a warning" not in found
    assert "**Failed** with exit status 1" in found
    assert "RuntimeError: no memory" in found
    assert "| 0 | 0.5 | 0.7 |\n| 1 | 0.75 | 0.6 |" in found
    assert "Clustering in a training" not in found  # which did not run


def test_a_command_is_shown_and_kept(benchmark: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    found = benchmark.run(["-c", "import sys; print('here'); print('there', file=sys.stderr); sys.exit(3)"])
    assert found[:3] == (3, "here\n", "there\n")
    assert capfd.readouterr().out == "here\n"
