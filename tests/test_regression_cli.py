"""The command line on tasks that predict numbers, beside tasks with classes: training, new rows, comparisons."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from in_process import InProcess
from ranks import on_ranks
from refusals import refusal
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, root_mean_squared_error
from table_files import Row, write_csv

from lightning_ncmtl.comparison import runner
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.main import main

ROOT = Path(__file__).parents[1]
TASKS, FEATURES = 10, 4
SETTINGS: dict[str, Any] = {
    "seed_everything": 1,
    "data": {
        "source": {
            "class_path": "lightning_ncmtl.datamodules.sources.FeatureTables",
            "init_args": {"path": "rows.csv", "task": "plant", "label": "yield", "id": "row"},
        },
        "split": {"validation_size": 0.2, "test_size": 0.2},
        "batches": {"size": 32},
        "labels": {"regression": [f"p{task}" for task in range(8)]},
    },
    "model": {
        "init_args": {
            "encoder": {"class_path": "lightning_ncmtl.encoders.Identity"},
            "cluster_features": [16],
            "metrics": ["R2Score"],
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        }
    },
    "clustering": {"warmup_epochs": 6},
    "checkpoint": {"monitor": "val/rmse"},
    "report": {"pictures": False},
    "trainer": {"max_epochs": 12, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
}


def rows(count: int = 60) -> list[Row]:
    """Tasks p0 to p7 have numbers with units of their own, p8 and p9 classes; even and odd ones agree."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((2, FEATURES))
    table: list[Row] = []
    for task in range(TASKS):
        x = rng.standard_normal((count, FEATURES))
        score = x @ weights[task % 2] + 0.1 * rng.standard_normal(count)
        labels = (score > 0).astype(int) if task > 7 else 10 * task + 10.0**task / 100 * score
        for number in range(count):
            features = dict(zip("abcd", x[number].tolist(), strict=True))
            table.append({"row": f"{task}-{number}", "plant": f"p{task}", **features, "yield": labels[number].item()})
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up rows, ``small.yaml`` and the run ``run``."""
    folder = tmp_path_factory.mktemp("regression")
    write_csv(folder / "rows.csv", rows())
    (folder / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *configs(), "--run_dir", "run"])
    return folder


def configs() -> list[str]:
    return [f"--config={file}" for file in (ROOT / "lightning_cli.yaml", "small.yaml")]


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_both_kinds_are_learned_and_their_groups_are_found(folder: Path) -> None:
    last = [row for row in metrics(folder / "run") if row["val/rmse"]][-1]
    values = {name: float(value) for name, value in last.items() if name.startswith("val/") and value}
    assert values["val/R2Score"] > 0.9
    assert values["val/R2Score_pooled"] > 0.9
    assert values["val/accuracy"] > 0.8
    assert {name for name in values if "/p" in name and "accuracy/" in name} == {"val/accuracy/p8", "val/accuracy/p9"}
    assert "val/rmse/p8" not in values
    assert values["val/rmse/p7"] > 1000  # in the units of labels with a standard deviation of some 200,000
    assignment = json.loads((folder / "run/clusters.json").read_text())["layers"]["cluster_layers.0"]["assignment"]
    found = [assignment[f"p{task}"] for task in range(8)]
    assert len({(cluster, task % 2) for task, cluster in enumerate(found)}) == 2


def test_new_rows_are_predicted_in_the_units_of_the_labels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.ckpt").write_bytes((folder / "run/checkpoints/best.ckpt").read_bytes())
    table = rows()
    write_csv(tmp_path / "new.csv", [{name: row[name] for name in row if name != "yield"} for row in table])
    monkeypatch.chdir(tmp_path)
    main(["export", "--ckpt_path", "best.ckpt", "--output", "small"])
    found = {}
    for name, model in (("one", ["--ckpt_path", "best.ckpt"]), ("two", ["--model", "small"])):
        main(["predict", *model, "--data.predict_path", "new.csv", "--run_dir", name])
        found[name] = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
    for ours, theirs, row in zip(found["one"], found["two"], table, strict=True):
        assert (ours["row"], ours["domain"]) == (theirs["row"], theirs["domain"]) == (row["row"], row["plant"])
        if row["plant"] in ("p8", "p9"):
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)
            assert list(ours["probabilities"]) == ["0", "1"]
            assert ours["prediction"] in (0, 1)
        else:
            assert list(ours) == ["row", "domain", "prediction"]
            assert ours["prediction"] == pytest.approx(theirs["prediction"], rel=1e-5)
    for task in range(8):
        labels = [row["yield"] for row in table if row["plant"] == f"p{task}"]
        assert r2_score(labels, [each["prediction"] for each in found["one"] if each["domain"] == f"p{task}"]) > 0.9


def _test(rank: int, folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *arguments])


def test_two_processes_agree_with_one(folder: Path) -> None:
    _test(0, folder, "--run_dir", "test1")
    ddp = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    on_ranks(2, _test, folder, "--run_dir", "test2", *ddp)
    (one,), (two,) = metrics(folder / "test1"), metrics(folder / "test2")
    assert one.keys() == two.keys()
    for name in one:
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.labels.regression", "true", "--checkpoint.monitor", "val/accuracy"], "and no task has classes"),
        (["--data.labels.regression", "false"], "model.metrics has 'R2Score', which is a metric of numbers"),
        (["--data.labels.regression", "[p77]"], "data.labels.regression has 'p77', which is none of the domains p0"),
        (["--data.labels.weights", "{2: 3.0}"], r"data.labels.weights has 2, which is none of the classes [0, 1]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert message in refusal(["fit", *configs(), *arguments], capsys)


def compare(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, **changes: Any) -> None:
    """In this process, with all tasks that predict numbers, for two epochs."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(runner, "_start", InProcess)
    data = {"domains": [f"p{task}" for task in range(8)], "labels": {"regression": True}}
    systems = {
        "NCMTL": {},
        "pooled": {"clustering": {"num_clusters": 1}},
        "ridge": {"reference": {"model": "Ridge", "per_task": True}},
    }
    settings = {
        "output": output,
        "splits": [1, 2],
        "test": True,
        "configs": [str(ROOT / "lightning_cli.yaml"), "small.yaml"],
        "common": {"data": data, "trainer": {"max_epochs": 2}, "clustering": {"warmup_epochs": 1}},
        "systems": systems,
    }
    Path("compare.yaml").write_text(yaml.safe_dump({**settings, **changes}, sort_keys=False))
    main(["compare", "--config", "compare.yaml"])


def test_systems_are_compared_by_their_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(folder, monkeypatch, "errors")
    table = pd.read_csv("errors/results.csv")
    assert not any("accuracy" in name for name in table)
    data = MultiDomainDataModule.load_from_checkpoint("run/checkpoints/best.ckpt", weights_only=True)
    ridge = table[table["system"] == "ridge"].set_index("split")
    for split in (1, 2):
        settings = dict(data.hparams) | {"domains": [f"p{task}" for task in range(8)], "classes": None}
        parts = {"split": {**settings["split"], "seed": split}, "labels": {"regression": True}}
        anew = MultiDomainDataModule(**{**settings, **parts, "source": data.source})
        anew.setup("fit")
        anew.setup("test")
        assert anew.scaling is not None
        train, test = (anew.documents(stage).to_pandas() for stage in ("train", "test"))
        errors = []
        for task in range(8):
            mine = [frame[frame["task_ids"].map(lambda ids, task=task: ids[0] == task)] for frame in (train, test)]
            x = [np.stack(frame["features"]) for frame in mine]
            x = [(part - anew.scaling.mean) / anew.scaling.deviation for part in x]
            y = [np.concatenate(list(frame["values"])) for frame in mine]
            errors.append(root_mean_squared_error(y[1], Ridge().fit(x[0], y[0]).predict(x[1])))
            assert ridge.loc[split, f"rmse/p{task}"] == pytest.approx(errors[-1], rel=1e-4)
        assert ridge.loc[split, "rmse"] == pytest.approx(np.mean(errors), rel=1e-4)
    report = Path("errors/report.md").read_text()
    assert "Rmse on test documents" in report
    best = [line for line in report.splitlines() if line.startswith("| ridge")]
    assert "**" in best[0], "the smallest error is the best"


def test_the_pooled_metric_may_be_compared_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = {"monitor": "val/R2Score_pooled"}
    common = {"trainer": {"max_epochs": 2}, "clustering": {"warmup_epochs": 1}, "checkpoint": monitor}
    compare(
        folder,
        monkeypatch,
        "mixed",
        common=common,
        systems={"NCMTL": {}, "pooled": {"clustering": {"num_clusters": 1}}},
    )
    table = pd.read_csv("mixed/results.csv")
    assert {"R2Score_pooled", "last_epoch_R2Score_pooled", "R2Score/p3", "accuracy/p8", "rmse/p3"} <= set(table)
    assert table["skipped"].eq(0).all()
    assert "R2Score_pooled on test documents" in Path("mixed/report.md").read_text()


def test_a_reference_is_for_one_kind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"trainer": {"max_epochs": 2}, "clustering": {"warmup_epochs": 1}}
    with pytest.raises(SystemExit, match="2"):
        compare(folder, monkeypatch, "kinds", common=common, systems={"ridge": {"reference": {"model": "Ridge"}}})
    assert "a reference is for tasks of one kind: choose data.domains that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("regression", "model", "message"),
    [
        (
            True,
            "RandomForestClassifier",
            "'other': the labels are numbers: choose a regressor, found RandomForestClassifier",
        ),
        (False, "Ridge", "'other': the labels are classes: choose a classifier, found Ridge"),
    ],
)
def test_a_reference_of_the_wrong_kind_is_refused_before_anything_trains(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    regression: bool,
    model: str,
    message: str,
) -> None:
    common = {"data": {"labels": {"regression": regression}}}
    systems = {"NCMTL": {}, "other": {"reference": {"model": model}}}
    with pytest.raises(SystemExit, match="2"):
        compare(folder, monkeypatch, f"wrong-{model}", common=common, systems=systems)
    assert message in capsys.readouterr().err
    assert not list(Path(f"wrong-{model}").glob("cells/*/*/result.json"))
