"""The benchmark against LibMTL trains the same network on both sides."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_ncmtl.datamodules import TextSettings
from lightning_ncmtl.datamodules.sources import Synthetic

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "libmtl.py"
IS_THERE = importlib.util.find_spec("LibMTL") is not None
needs_libmtl = pytest.mark.skipif(not IS_THERE, reason="LibMTL is not installed")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("libmtl")


@needs_libmtl
@pytest.mark.filterwarnings("ignore")  # of LibMTL
def test_without_dropout_and_clustering_both_train_the_same(benchmark: ModuleType, tmp_path: Path) -> None:
    source = Synthetic(num_domains=4, num_groups=2, train_documents=40, test_documents=21, opinion_words=12)
    encoder = {"embedding_dim": 8, "hidden_size": 4, "num_layers": 1, "dropout": 0.0}
    corpus = benchmark.Corpus(source, TextSettings(vocab_size=400), 11, encoder, (8, 6), (2, 3), 0.01)
    case = benchmark.Case(corpus, 1, None, str(tmp_path), documents=3, steps=30)
    data = benchmark.make_data(case)
    batch = next(iter(data.val_dataloader()))
    expected = benchmark.train(benchmark.PLAIN, case, data)(batch)
    before = benchmark.train(benchmark.PLAIN, case._replace(steps=1), data)(batch)
    assert (before - expected).abs().max() > 0.05
    for system in (benchmark.PER_TASK, benchmark.ONE_PASS):
        torch.testing.assert_close(benchmark.train(system, case, data)(batch), expected, rtol=0, atol=1e-4)


@needs_libmtl
def test_its_smallest_case_runs() -> None:
    smallest = ["--documents", "1", "--rounds", "1", "--steps", "2", "--seeds", "0"]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *smallest], capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n| 14 |") == 6


@pytest.mark.skipif(IS_THERE, reason="LibMTL is installed")
def test_it_says_how_to_install_libmtl() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("LibMTL is not there: pip install --target FOLDER --no-deps libmtl==1.1.5")
    assert result.stderr.count("\n") == 1
