"""``ncmtl compare`` as a whole, on a small corpus."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from lightning_ncmtl.cli import main

SETTINGS: dict[str, Any] = {
    "seeds": [1, 2],
    "jobs": 2,
    "common": {
        "data": {
            "source": {
                "class_path": "lightning_ncmtl.datamodules.sources.Synthetic",
                "init_args": {"num_domains": 4, "num_groups": 2, "train_documents": 40, "test_documents": 10},
            },
            "validation_size": 20,
        },
        "model": {
            "init_args": {
                "cluster_features": [8, 4],
                "num_clusters": [2, 4],
                "encoder": {
                    "class_path": "lightning_ncmtl.encoders.NGram",
                    "init_args": {"embedding_dim": 8, "num_buckets": 50},
                },
            }
        },
        "clustering": {"warmup_epochs": 1, "freeze_after_epochs": 2},
        "report": {"pictures": False},
        "trainer": {"max_epochs": 2},
    },
    "systems": {
        "NCMTL": {},
        "HardShare": {"model": {"class_path": "lightning_ncmtl.HardShare", "init_args": {"features": [8, 4]}}},
        "TF-IDF": {"tfidf": {"per_domain": True}},
    },
    "sweeps": {
        "grid": {
            "of": "NCMTL",
            "figure": "grid",
            "values": {
                "1, 2": {"model": {"init_args": {"num_clusters": [1, 2]}}},
                "2, 2": {"model": {"init_args": {"num_clusters": [2, 2]}}},
            },
        },
        "widths": {"of": "NCMTL", "values": {"16, 8": {"model": {"init_args": {"cluster_features": [16, 8]}}}}},
        "planted": {
            "of": "NCMTL",
            "figure": "recovery",
            "settings": {"trainer": {"max_epochs": 1}, "clustering": {"warmup_epochs": 0}},
            "values": {0.9: {"data": {"source": {"init_args": {"agreement": 0.9}}}}},
        },
    },
}


def write(path: Path, **changes: Any) -> str:
    (path / "compare.yaml").write_text(
        yaml.safe_dump({"output": str(path / "out"), **SETTINGS, **changes}, sort_keys=False)
    )
    return str(path / "compare.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    main(["compare", "--config", write(folder), "--", "--trainer.accelerator=cpu"])
    return folder


def test_there_is_a_row_for_each_cell(folder: Path) -> None:
    table = pd.read_csv(folder / "out" / "results.csv")
    names = ["NCMTL", "HardShare", "TF-IDF", "grid: 1, 2", "grid: 2, 2", "widths: 16, 8", "planted: 0.9"]
    assert list(zip(table["seed"], table["system"], strict=True)) == [(s, name) for s in (1, 2) for name in names]
    assert table["accuracy"].between(0, 1).all()
    domains = [f"accuracy/domain{number:02d}" for number in range(4)]
    np.testing.assert_allclose(table[domains].mean(axis=1), table["accuracy"], atol=1e-6)
    best = table[table["system"] != "TF-IDF"]
    assert (best["accuracy"] >= best["last_epoch_accuracy"]).all()
    assert best["best_epoch"].isin([1, 2]).all()
    # embedding 500 x 8 and 50 x 8; layers 4 x (8 x 8 + 8) and 4 x (8 x 4 + 4); heads 4 x (4 x 2 + 2)
    assert set(table.loc[table["system"].isin(["NCMTL", "HardShare"]), "parameters"]) == {4000 + 400 + 288 + 144 + 40}
    # ... and with two sets of 8 x 8 + 8, or one if all tasks are equal
    shared = 4000 + 400 + 144 + 144 + 40
    assert set(table.loc[table["system"] == "NCMTL", "shared_parameters"]) <= {shared, shared - 72}


def test_outcomes_of_documents_give_the_accuracies(folder: Path) -> None:
    for cell in (folder / "out" / "cells").glob("*/*"):
        result = json.loads((cell / "result.json").read_text())
        arrays = np.load(cell / "outcomes.npz")
        assert len(np.unique(arrays["val_document"])) == 4 * 20
        for task, domain in enumerate(result["domains"]):
            correct = arrays["val_correct"][arrays["val_domain"] == task]
            assert correct.mean() == pytest.approx(result["val"][f"accuracy/{domain}"], abs=1e-6)
        if result["curves"]:
            assert max(result["curves"][""]) == pytest.approx(result["val"]["accuracy"], abs=1e-6)
        assert not (cell / "checkpoints").exists()


def test_the_report_has_tables_and_figures(folder: Path) -> None:
    text = (folder / "out" / "report.md").read_text()
    titles = ["Accuracy", "Accuracy by domain", "Differences", "Variations", "Clusters", "Copies"]
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == titles
    assert "14 trainings with the seeds 1, 2" in text
    assert "before its warm-up ends, NCMTL is HardShare" in text
    assert "**" in text
    assert "nan" not in text
    pairs = pd.read_csv(folder / "out" / "pairs.csv")
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [
        ("NCMTL", "HardShare"),
        ("NCMTL", "TF-IDF"),
        ("HardShare", "TF-IDF"),
    ]
    table = pd.read_csv(folder / "out" / "results.csv").groupby("system")["accuracy"].mean()
    assert pairs["difference"][1] == pytest.approx(100 * (table["NCMTL"] - table["TF-IDF"]), abs=1e-4)
    figures = {file.stem for file in (folder / "out" / "figures").iterdir()}
    assert figures == {
        "accuracy", "differences", "epochs", "clusters-ncmtl", "stability", "sweep-grid", "sweep-widths", "recovery"
    }  # fmt: skip


def test_finished_cells_are_kept(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = {file: file.stat().st_mtime_ns for file in (folder / "out").glob("cells/*/*/result.json")}
    again = next(file for file in results if "ncmtl/seed-2" in str(file))
    text = json.loads(again.read_text())
    again.unlink()
    main(["compare", "--config", write(folder), "--", "--trainer.accelerator=cpu"])
    changed = [file for file, time in results.items() if file.stat().st_mtime_ns != time]
    assert changed == [again]
    found = json.loads(again.read_text())
    assert found["val"] == text["val"]  # and the seed decides
    assert found["clusters"] == text["clusters"]
    assert "14/14" in capfd.readouterr().out


def test_other_settings_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--config", write(folder, test=True)])
    assert "holds a result of other settings: delete it" in capsys.readouterr().err


def test_folds_times_seeds_and_average_weights(tmp_path: Path) -> None:
    """Documents of a fold are the same for all seeds; an average of weights is evaluated as it was chosen."""
    ema = {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    systems = {"NCMTL": {}, "averaged": {"trainer": {"callbacks": [ema]}}}
    common = {**SETTINGS["common"], "data": {**SETTINGS["common"]["data"], "folds": 2}}
    main(["compare", "--config", write(tmp_path, systems=systems, common=common, sweeps={}, folds=[0, 1])])
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert (pairs["cells"][0], pairs["folds"][0]) == (4, 2)
    for cell in (tmp_path / "out" / "cells" / "averaged").iterdir():
        result = json.loads((cell / "result.json").read_text())
        assert max(result["curves"][""]) == pytest.approx(result["val"]["accuracy"], abs=1e-6)
        assert result["clustered_from_epoch"] == 2


def test_the_test_split_folds_and_a_cell_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The failure is reported at the end, and the others are there."""
    systems = {
        "NCMTL": {"data": {"folds": 2}},
        "TF-IDF": {"data": {"folds": 2}, "tfidf": None},
        "too many": {"data": {"folds": 2}, "model": {"init_args": {"num_clusters": [2, 9]}}},
    }
    config = write(tmp_path, systems=systems, sweeps={}, seeds=[1], folds=[0, 1], test=True, jobs=1)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--config", config, "--baseline", "TF-IDF"])
    error = capsys.readouterr().err
    assert "2 of 6 cells failed, the first is too many, seed 1, fold 0: num_clusters must be between 1 and" in error
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table["fold"].tolist() == [0, 0, 1, 1]
    cell = tmp_path / "out" / "cells" / "ncmtl" / "seed-1-fold-1"
    arrays = np.load(cell / "outcomes.npz")
    assert len(arrays["test_correct"]) == 4 * 10
    result = json.loads((cell / "result.json").read_text())
    assert table["accuracy"][2] == result["test"]["accuracy"]
    assert table["validation_accuracy"][2] == result["val"]["accuracy"]
    folds = [set(np.load(cell.parent / f"seed-1-fold-{fold}" / "outcomes.npz")["val_document"]) for fold in (0, 1)]
    assert folds[0].isdisjoint(folds[1])
    assert len(folds[0] | folds[1]) == 4 * 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "needs systems, seeds and folds"),
        ({"systems": ["NCMTL"]}, "needs systems, a mapping of names to settings"),
        ({"systems": {"NCMTL": [1]}}, "needs a name and a mapping of settings, found 'NCMTL': [1]"),
        ({"sweeps": {"s": {"of": "NCMTL", "values": {}, "figure": "pie"}}}, "has the figure 'pie': choose grid, line"),
        ({"folds": [0, 1]}, "the fold 1 of 'NCMTL' needs data.folds above it, found None"),
        ({"jobs": 0}, "jobs must be at least 1, found 0"),
        ({"baseline": "X"}, "baseline must be one of the systems NCMTL, HardShare, TF-IDF, found 'X'"),
        ({"color": "red"}, "unknown settings in the configuration of the comparison: color"),
        ({"sweeps": {"s": {"off": "NCMTL"}}}, "a sweep needs of, values and perhaps figure"),
        ({"systems": {"T": {"tfidf": {"degree": 3}}}, "sweeps": {}}, "'T' has the tfidf settings {'degree': 3}"),
        (
            {"systems": {"N": {"model": {"init_args": {"width": 3}}}}, "sweeps": {}},
            "the settings of 'N' cannot be used: ",
        ),
    ],
)
def test_bad_settings_are_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--config", write(tmp_path, **changes)])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/cells/*/*/result.json"))


def test_unreadable_configurations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("systems: [")
    for file in (tmp_path / "bad.yaml", tmp_path / "missing.yaml"):
        with pytest.raises(SystemExit, match="2"):
            main(["compare", "--config", str(file)])
        assert "cannot read the configuration" in capsys.readouterr().err


def test_a_killed_comparison_goes_on(tmp_path: Path) -> None:
    """Its processes end with it, and what was finished is kept."""
    config = write(tmp_path, systems={"NCMTL": {}}, sweeps={}, seeds=[1, 2, 3, 4, 5, 6], jobs=1)
    code = "import sys; from lightning_ncmtl.cli import main\nif __name__ == '__main__': main(sys.argv[1:])"
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), "compare", "--config", config]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "out" / "cells" / "ncmtl"
    while not (cells / "seed-1" / "result.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    while not (cells / "seed-2" / "config.yaml").exists():  # in the middle of the second
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)
    finished = {file: file.stat().st_mtime_ns for file in cells.glob("*/result.json")}
    assert 1 <= len(finished) < 6
    time.sleep(2)
    assert set(cells.glob("*/result.json")) == set(finished)  # nobody goes on in the background
    subprocess.run(command, check=True, capture_output=True)
    assert len(list(cells.glob("*/result.json"))) == 6
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())
