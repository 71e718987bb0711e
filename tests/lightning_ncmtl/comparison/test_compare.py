"""``ncmtl compare`` as a whole, on a small corpus."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from in_process import InProcess

from lightning_ncmtl.comparison import runner
from lightning_ncmtl.comparison.plan import hash_code
from lightning_ncmtl.main import main

SETTINGS: dict[str, Any] = {
    "seeds": [1, 2],
    "jobs": 2,
    "common": {
        "data": {
            "source": {
                "class_path": "lightning_ncmtl.datamodules.sources.Synthetic",
                "init_args": {"num_domains": 4, "num_groups": 2, "train_documents": 40, "test_documents": 10},
            },
            "split": {"validation_size": 20},
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
        "clustering": {"warmup": "apart", "warmup_epochs": 1, "freeze_after_epochs": 2},
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
        "widths": {
            "of": "NCMTL",
            "settings": {"clustering": {"warmup": "shared"}},
            "values": {"16, 8": {"model": {"init_args": {"cluster_features": [16, 8]}}}},
        },
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


@pytest.fixture(scope="module", autouse=True)
def _in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_start", InProcess)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, _in_process: None) -> Path:
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
    titles = [
        "Accuracy",
        "Accuracy by domain",
        "Differences",
        "Variations",
        "Evidence for clusters",
        "Clusters",
        "Copies",
    ]
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == titles
    assert "14 trainings with the seeds 1, 2" in text
    assert "before its warm-up ends, NCMTL has no clusters" in text
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
        "accuracy", "differences", "epochs", "clusters-ncmtl", "agreement", "stability", "sweep-grid", "sweep-widths",
        "recovery",
    }  # fmt: skip


def test_evidence_is_that_of_the_trainings(folder: Path) -> None:
    table = pd.read_csv(folder / "out" / "results.csv").set_index("system")
    columns = ["agreement", "agreement_error", "p_value", "clusters_found"]
    assert table.loc[["HardShare", "TF-IDF"], columns].isna().all(axis=None)
    found = table.loc["widths: 16, 8"]
    cells = sorted((folder / "out" / "cells" / "widths-16-8").iterdir())
    for cell, row in zip(cells, found[columns].itertuples(index=False), strict=True):
        evidence = json.loads((cell / "result.json").read_text())["evidence"]
        assert evidence == json.loads((cell / "clusters.json").read_text())["evidence"]
        assert row == pytest.approx([evidence[name] for name in [*columns[:3], "num_clusters"]], nan_ok=True)
    section = (folder / "out" / "report.md").read_text().split("## Evidence for clusters")[1].split("##")[0]
    (line,) = [line for line in section.splitlines() if line.startswith("| widths: 16, 8 ")]
    assert f"| {found['agreement'].mean():.2f} " in line
    assert f"| {', '.join(f'{p:.3g}' for p in found['p_value'])} " in line
    assert "| 1, 2 " in line
    assert "HardShare" not in section


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
    common = {**SETTINGS["common"], "data": {**SETTINGS["common"]["data"], "split": {"folds": 2}}}
    main(["compare", "--config", write(tmp_path, systems=systems, common=common, sweeps={}, folds=[0, 1])])
    assert "8 trainings with the seeds 1, 2 on the folds 0, 1." in (tmp_path / "out" / "report.md").read_text()
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert (pairs["cells"][0], pairs["folds"][0]) == (4, 2)
    for cell in (tmp_path / "out" / "cells" / "averaged").iterdir():
        result = json.loads((cell / "result.json").read_text())
        assert max(result["curves"][""]) == pytest.approx(result["val"]["accuracy"], abs=1e-6)
        assert result["clustered_from_epoch"] == 2


def test_the_test_split_folds_and_a_cell_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The failure is reported at the end, and the others are there."""
    systems = {
        "NCMTL": {"data": {"split": {"folds": 2}}},
        "TF-IDF": {"data": {"split": {"folds": 2}}, "tfidf": None},
        "too many": {"data": {"split": {"folds": 2}}, "model": {"init_args": {"num_clusters": [2, 9]}}},
    }
    config = write(tmp_path, systems=systems, sweeps={}, seeds=[1], folds=[0, 1], test=True, jobs=1)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--config", config, "--baseline", "TF-IDF"])
    error = capsys.readouterr().err
    assert (
        "2 of 6 cells failed, the first is too many, seed 1, fold 0: num_clusters must be 'auto' or between 1 and"
        in error
    )
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
        ({"folds": [0, 1]}, "the fold 1 of 'NCMTL' needs data.split.folds above it, found None"),
        ({"jobs": 0}, "jobs must be at least 1, found 0"),
        ({"baseline": "X"}, "baseline must be one of the systems NCMTL, HardShare, TF-IDF, found 'X'"),
        ({"color": "red"}, "unknown settings in the configuration of the comparison: color"),
        ({"sweeps": {"s": {"off": "NCMTL"}}}, "a sweep needs of, values and perhaps figure"),
        ({"systems": {"T": {"tfidf": {"degree": 3}}}, "sweeps": {}}, "'T' has the tfidf settings {'degree': 3}"),
        (
            {"systems": {"NCMTL": {}, "T": {"reference": {"model": "LogisticRegression"}}}, "sweeps": {}},
            "error: 'T': reference reads features, and the data has texts: choose tfidf",
        ),
        (
            {"systems": {"N": {"model": {"init_args": {"width": 3}}}}, "sweeps": {}},
            "the settings of 'N' cannot be used: model: lightning_ncmtl.NCMTL has no 'width'",
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
        assert re.search(r"the configuration .*(missing.yaml|bad.yaml:1) cannot be read", capsys.readouterr().err)


def test_a_cell_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each line of a dry run makes its cell; then the comparison itself only reports."""
    config = write(tmp_path, systems={"TF-IDF": {"tfidf": None}}, sweeps={}, jobs=1)
    compare = ["compare", "--config", config, "--dry_run", "--", "--data.split.validation_size=10"]
    main(compare)
    lines = capfd.readouterr().out.splitlines()
    assert [shlex.split(line)[-4:] for line in lines] == [
        ["--cell", f"tf-idf/seed-{seed}", "--", "--data.split.validation_size=10"] for seed in (1, 2)
    ]
    assert not list(tmp_path.glob("out/cells/*/*/result.json"))
    directory = tmp_path / "out" / "cells" / "tf-idf" / "seed-1"
    log = directory / "log.txt"
    directory.mkdir()
    log.write_text("of another process\n")
    with FileLock(directory / ".lock"), pytest.raises(SystemExit, match="2"):
        main(shlex.split(lines[0])[3:])
    assert "another process runs tf-idf, seed 1: wait for it" in capfd.readouterr().err.lower()
    assert log.read_text() == "of another process\n"
    subprocess.run(lines[0], shell=True, check=True, capture_output=True)
    assert log.read_text() == ""  # it began anew
    main(compare)
    assert capfd.readouterr().out.splitlines() == lines[1:]
    with pytest.raises(SystemExit, match="2"):
        main(shlex.split(lines[0])[3:])
    assert "the cell 'tf-idf/seed-1' is finished: delete" in capfd.readouterr().err
    main(shlex.split(lines[1])[3:])
    monkeypatch.setattr(runner, "_start", None)  # nothing is left to run
    compare.remove("--dry_run")
    main(compare)
    assert (tmp_path / "out" / "report.md").is_file()
    with pytest.raises(SystemExit, match="2"):
        main([*compare[:3], "--cell", "tf-idf/seed-3"])
    assert "there is no cell 'tf-idf/seed-3': choose one of tf-idf/seed-1, tf-idf/seed-2" in capfd.readouterr().err


def test_an_interrupted_comparison_ends_its_cells(tmp_path: Path) -> None:
    config = write(tmp_path, systems={"NCMTL": {"trainer": {"max_epochs": 10_000}}}, sweeps={}, seeds=[1], jobs=1)
    command = [sys.executable, "-m", "lightning_ncmtl", "compare", "--config", config]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # In the background of a shell, where the tests may run, processes ignore the signal.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, **pipes, preexec_fn=heed) as process:
        checkpoint = tmp_path / "out" / "cells" / "ncmtl" / "seed-1" / "best.ckpt"
        while not checkpoint.exists():  # it trains
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert "interrupted; the same command goes on" in process.communicate()[1]
    assert process.returncode == 130
    with FileLock(checkpoint.parent / ".lock", timeout=0):  # which the cell held
        pass


def test_results_of_other_code_are_told(folder: Path) -> None:
    file = next((folder / "out").glob("cells/ncmtl/*/result.json"))
    result = json.loads(file.read_text())
    assert result["code"] == hash_code()
    file.write_text(json.dumps({**result, "code": "0.0.1+abc"}))
    main(["compare", "--config", write(folder), "--", "--trainer.accelerator=cpu"])
    file.write_text(json.dumps(result))
    text = (folder / "out" / "report.md").read_text()
    assert f"1 of 14 results comes from other code than this ({hash_code()}): 0.0.1+abc." in text


def test_the_console_is_readable_at_80_columns(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["compare", "--config", write(folder), "--", "--trainer.accelerator=cpu"])
    shown = capfd.readouterr().out
    for word in ("system", "accuracy", "parameters", "cells", "HardShare", "TF-IDF"):
        assert word in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80 or "report.md" in max(shown.splitlines(), key=len)
