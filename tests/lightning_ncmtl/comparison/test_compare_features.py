"""``ncmtl compare`` on rows of features, by the area under the ROC curve."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from in_process import InProcess
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from table_files import write_csv

from lightning_ncmtl.comparison import runner
from lightning_ncmtl.main import main

TASKS, ROWS = 4, 60
SOURCE = "lightning_ncmtl.datamodules.sources.FeatureTables"
SETTINGS: dict[str, Any] = {
    "seeds": [1, 2],
    "test": True,
    "common": {
        "data": {
            "source": {
                "class_path": SOURCE,
                "init_args": {"path": "rows.csv", "task": "field", "label": "mine"},
            },
            "split": {"validation_size": 0.3, "test_size": 0.3},
        },
        "model": {
            "init_args": {
                "encoder": {"class_path": "lightning_ncmtl.encoders.Identity"},
                "cluster_features": [8],
                "num_clusters": [2],
                "metrics": ["AveragePrecision", "AUROC"],
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.03}},
            }
        },
        "checkpoint": {"monitor": "val/AUROC"},
        "report": {"pictures": False},
        "trainer": {"max_epochs": 4, "accelerator": "cpu"},
    },
    "systems": {
        "NCMTL": {},
        "HardShare": {"model": {"class_path": "lightning_ncmtl.HardShare", "init_args": {"features": [8]}}},
        "forest": {"reference": {"model": "RandomForestClassifier", "per_task": True, "n_estimators": 5}},
    },
}


FIXED = {"validation_size": 9, "test_size": None}


def write_rows(folder: Path) -> None:
    """Tasks 0 and 2 agree on what is a mine, and so do 1 and 3; one in four is."""
    rng = np.random.default_rng(0)
    rows = []
    for task in range(TASKS):
        x = rng.standard_normal((ROWS, 3))
        score = x[:, task % 2] - x[:, 2] + 0.7 * rng.standard_normal(ROWS)
        mines = score > np.quantile(score, 0.75)
        rows += [{"field": f"f{task}", **dict(zip("abc", row, strict=True)), "mine": int(mine)}
                 for row, mine in zip(x.tolist(), mines, strict=True)]  # fmt: skip
    write_csv(folder / "rows.csv", rows)


def compare(*more: str, **changes: Any) -> None:
    Path("compare.yaml").write_text(yaml.safe_dump({"output": "out", **SETTINGS, **changes}, sort_keys=False))
    main(["compare", "--config", "compare.yaml", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("features")
    write_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_start", InProcess)
        patch.chdir(folder)
        compare()
        yield folder


def cells(folder: Path, system: str) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Each result, and the metrics that were logged."""
    found = sorted((folder / "out" / "cells" / system).glob("*/result.json"))
    assert found
    return [(json.loads(file.read_text()), pd.read_csv(file.with_name("metrics.csv"))) for file in found]


def test_the_best_epoch_and_what_is_reported_are_those_of_the_metric(folder: Path) -> None:
    for result, logged in cells(folder, "ncmtl") + cells(folder, "hardshare"):
        curve = logged.dropna(subset=["val/AUROC"])["val/AUROC"].tolist()[:4]  # and what was evaluated at last
        assert result["curves"][""] == pytest.approx(curve)
        assert result["val"]["AUROC"] == pytest.approx(max(curve))
        assert result["best_epoch"] == 1 + int(np.argmax(curve))
        assert result["last"]["AUROC"] == pytest.approx(curve[-1])
        assert {"AUROC", "AveragePrecision", "accuracy", "AUROC/f3", "skipped"} <= result["test"].keys()
        assert result["test"]["AUROC"] == pytest.approx(np.mean([result["test"][f"AUROC/f{n}"] for n in range(TASKS)]))
    table = pd.read_csv(folder / "out" / "results.csv")
    names = ["AUROC", "validation_AUROC", "last_epoch_AUROC", "best_epoch", "accuracy", "AveragePrecision", "AUROC/f0"]
    assert set(names) <= set(table.columns)
    assert "accuracy_clean" not in list(table.columns)[:8]
    expected = [result["test"]["AUROC"] for result, _ in cells(folder, "ncmtl")]
    assert table.loc[table["system"] == "NCMTL", "AUROC"].tolist() == pytest.approx(expected)


def test_where_nothing_is_monitored_the_last_epoch_is_evaluated_by_the_first_metric(folder: Path) -> None:
    model = SETTINGS["common"]["model"]["init_args"]
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1.0}}  # of which later epochs are not better
    common = {"checkpoint": {"monitor": None}, "model": {"init_args": model | {"optimizer": optimizer}}}
    compare(output="last", seeds=[1], common=SETTINGS["common"] | common)
    results = [json.loads(file.read_text()) for file in Path("last/cells").glob("[nh]*/seed-1/result.json")]
    assert any(np.argmax(result["curves"][""]) < 3 for result in results)
    for result in results:
        assert result["best_epoch"] == 4
        assert {name: value for name, value in result["val"].items() if "Calibration" not in name} == result["last"]
        assert result["val"]["AveragePrecision"] == pytest.approx(result["curves"][""][-1])
        assert result["measure"] == {"name": "AveragePrecision", "higher_is_better": True, "monitored": False}
    text = Path("last/report.md").read_text()
    assert "No epoch was chosen: the last one was evaluated, once." in text
    assert "| system    | last epoch " in text
    assert "best epoch" not in text


def test_a_reference_has_the_same_rows_and_metrics(folder: Path) -> None:
    """Against scikit-learn by hand, from the rows that the networks have tested."""
    table = pd.read_csv("rows.csv")
    for seed in (1, 2):
        directory = folder / "out" / "cells" / "forest" / f"seed-{seed}"
        arrays, same = (
            np.load(directory / "outcomes.npz"),
            np.load(directory.parents[1] / f"ncmtl/seed-{seed}/outcomes.npz"),
        )
        for name in ("val_document", "val_domain", "test_document", "test_domain"):
            assert np.array_equal(arrays[name], same[name])
        test = table.iloc[arrays["test_document"]]
        train = table.drop(index=[*arrays["test_document"], *arrays["val_document"]])
        mean, deviation = train[[*"abc"]].mean(), train[[*"abc"]].std(ddof=0)
        result = json.loads((directory / "result.json").read_text())
        for task in range(TASKS):
            mine, theirs = (part[part["field"] == f"f{task}"] for part in (train, test))
            x, y = (((part[[*"abc"]] - mean) / deviation).to_numpy(np.float32) for part in (mine, theirs))
            forest = RandomForestClassifier(5, random_state=seed).fit(x, mine["mine"])
            expected = roc_auc_score(theirs["mine"], forest.predict_proba(y)[:, 1])
            assert result["test"][f"AUROC/f{task}"] == pytest.approx(expected)
        assert result["curves"] == {}


def test_differences_of_the_metric_are_tested_over_cells(folder: Path) -> None:
    table = pd.read_csv(folder / "out" / "results.csv").pivot(index="seed", columns="system", values="AUROC")
    pair = pd.read_csv(folder / "out" / "pairs.csv").iloc[0]
    exact = stats.ttest_rel(table["NCMTL"], table["HardShare"])
    assert pair["difference"] == pytest.approx((table["NCMTL"] - table["HardShare"]).mean())
    assert pair["p_t"] == pytest.approx(exact.pvalue)
    assert (pair["low"], pair["high"]) == pytest.approx(tuple(exact.confidence_interval()))


def test_splits_are_dealt_anew_and_alike_for_all_systems(folder: Path) -> None:
    compare(output="splits", splits=2, seeds=None)
    table = pd.read_csv("splits/results.csv")
    assert table[["system", "split", "seed"]].to_numpy().tolist() == [
        [system, split, split] for split in (1, 2) for system in ("NCMTL", "HardShare", "forest")
    ]
    places = {}
    for system in ("ncmtl", "hardshare", "forest"):
        for split in (1, 2):
            arrays = np.load(f"splits/cells/{system}/split-{split}/outcomes.npz")
            assert not set(arrays["val_document"]) & set(arrays["test_document"])
            places.setdefault(split, set()).add(tuple(arrays["test_document"]))
    assert [len(found) for found in places.values()] == [1, 1]
    assert places[1] != places[2]
    pair = pd.read_csv("splits/pairs.csv").iloc[0]
    assert (pair["cells"], pair["folds"]) == (2, 2)
    values = table.pivot(index="split", columns="system", values="AUROC")
    differences = values["NCMTL"] - values["HardShare"]
    # Of 60 rows of a task 18 test, and of the others 30 % validate; one in four is positive, and both are rounded
    trained = json.loads(Path("splits/cells/ncmtl/split-1/result.json").read_text())["copies"]
    counts = {name: sum(task[name] for task in trained.values()) for name in ("train", "validation", "test")}
    assert sum(counts.values()) == TASKS * ROWS
    t = differences.mean() / np.sqrt(differences.var() * (1 / 2 + counts["test"] / counts["train"]))
    assert pair["p_t"] == pytest.approx(2 * stats.t.sf(abs(t), 1))
    text = Path("splits/report.md").read_text()
    assert "6 trainings on the random splits 1, 2, each number being the seed of the training, too." in text
    assert "over the cells, corrected for training sets that overlap (Nadeau & Bengio, 2003)." in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"splits": 2},
            "splits take the place of seeds and folds, found splits=2, seeds=[1, 2], folds=None: leave out",
        ),
        (
            {
                "splits": 2,
                "seeds": None,
                "systems": {"N": {"data": {"split": {"validation_size": 9, "test_size": None}}}},
            },
            "splits need documents that are divided at random, found data.split.validation_size 9 of 'N': set it, or",
        ),
        ({"splits": 0, "seeds": None}, "needs systems, seeds and folds (or null), found"),
    ],
)
def test_splits_that_cannot_be_are_refused(
    folder: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare(output="refused", **changes)
    assert message in capsys.readouterr().err


def test_the_report_is_of_the_metric(folder: Path) -> None:
    text = (folder / "out" / "report.md").read_text()
    assert "## AUROC\n\nAUROC on test documents, averaged over domains" in text
    assert "## AUROC by domain" in text
    assert "paired t-test over the cells. *p, domains*: Wilcoxon" in text
    assert "in percent" not in text
    assert "bootstrap" not in text
    assert "nan" not in text
    assert {"AUROC", "differences", "epochs"} <= {file.stem for file in (folder / "out" / "figures").iterdir()}


def test_the_report_says_how_far_probabilities_are_from_frequencies(folder: Path) -> None:
    """Of networks and references, though no model was asked for it."""
    table = pd.read_csv(folder / "out" / "results.csv")
    assert table["CalibrationError"].between(0.01, 0.6).all()
    each = table[[f"CalibrationError/f{task}" for task in range(TASKS)]]
    assert table["CalibrationError"].tolist() == pytest.approx(each.mean(axis=1).tolist())
    text = (folder / "out" / "report.md").read_text()
    assert "*ECE* is the expected calibration error of the best epoch" in text
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    place = header.index("ECE")
    means = table.groupby("system", sort=False)["CalibrationError"].mean()
    shown = {row[0]: row[place] for row in rows[: len(means)]}
    for system, mean in means.items():
        assert shown[system].strip("*").startswith(f"{mean:.3f} ± ")
        assert shown[system].startswith("**") == (mean == means.min())  # lower is better
    result, _ = cells(folder, "ncmtl")[0]
    assert "CalibrationError" in result["val"].keys() & result["test"].keys()


def test_systems_of_different_metrics_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"checkpoint": {"monitor": "val/accuracy"}}
    with pytest.raises(SystemExit, match="2"):
        compare(systems={**SETTINGS["systems"], "by accuracy": other}, output="other")
    error = capsys.readouterr().err
    assert "one metric, found AUROC (forest), accuracy (by accuracy): set checkpoint.monitor in common" in error
    with pytest.raises(SystemExit, match="2"):
        compare(systems={**SETTINGS["systems"], "by accuracy": other})  # when the others have finished
    error = capsys.readouterr().err
    assert "the best epochs of some systems were chosen by AUROC, of others by accuracy" in error


def test_rows_with_labels_for_several_tasks(folder: Path) -> None:
    """A wide table with gaps: networks and references are evaluated on the same labels."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 3))
    rows = [{**dict(zip("abc", row, strict=True))} for row in x.tolist()]
    for place, row in enumerate(rows):
        known = rng.random(TASKS) < 0.8
        row |= {f"t{n}": int(x[place, n % 2] > 0.2) if known[n] else "" for n in range(TASKS)}
    write_csv(Path("wide.csv"), rows)
    source = {"class_path": SOURCE, "init_args": {"path": "wide.csv", "label": ["t*"]}}
    common = {**SETTINGS["common"], "data": {**SETTINGS["common"]["data"], "source": source}}
    compare(common=common, output="wide", seeds=[1], baseline="forest")
    found = {name: np.load(f"wide/cells/{name}/seed-1/outcomes.npz") for name in ("ncmtl", "hardshare", "forest")}
    ours = found["ncmtl"]
    numbers = ours["test_document"]
    assert len(set(numbers)) == len(numbers) > len(set(numbers // TASKS))
    for place, task in zip(numbers // TASKS, numbers % TASKS, strict=True):
        assert rows[place][f"t{task}"] != ""
    for arrays in found.values():
        for name in ("document", "domain"):
            assert np.array_equal(arrays[f"test_{name}"], ours[f"test_{name}"])
    table = pd.read_csv("wide/results.csv").set_index("system")
    assert table["AUROC"].between(0.6, 1).all()
    assert len(pd.read_csv("wide/pairs.csv")) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "SVM"}, "reference.model 'SVM' is no classifier of scikit-learn that tells probabilities"),
        ({"model": "LogisticRegression", "c": 3}, "'T' has the reference settings {'model': 'LogisticRegression', "),
        ({"c": 3}, "'T' has the reference settings {'c': 3}: "),
    ],
)
def test_bad_references_are_refused_before_training(
    folder: Path, settings: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare(systems={"NCMTL": {}, "T": {"reference": settings}}, output="bad", seeds=[1])
    assert message in capsys.readouterr().err
    assert not list(Path("bad").rglob("result.json"))


@pytest.mark.parametrize("shuffled", [False, True])
def test_tfidf_is_for_texts(folder: Path, capsys: pytest.CaptureFixture[str], shuffled: bool) -> None:
    """Before anything is trained, and where a cell runs by itself."""
    inner = {"class_path": SOURCE, "init_args": {"path": "rows.csv", "task": "field", "label": "mine"}}
    outer = {"class_path": "lightning_ncmtl.datamodules.sources.ShuffledDomains", "init_args": {"source": inner}}
    common = {**SETTINGS["common"], "data": {**SETTINGS["common"]["data"], "source": outer if shuffled else inner}}
    output = f"texts-{shuffled}"
    systems = {"NCMTL": {}, "T": {"tfidf": None}}
    for more in ([], ["--cell", "t/seed-1"]):
        with pytest.raises(SystemExit, match="2"):
            compare(*more, systems=systems, common=common, output=output, seeds=[1])
        message = "ncmtl: error: 'T': tfidf reads texts, and the data has features: choose reference"
        assert message in capsys.readouterr().err
    assert not list(Path(output).rglob("result.json"))


def test_a_metric_that_no_task_has_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (folder / "rows.csv").read_text().splitlines()
    (folder / "one.csv").write_text("\n".join([lines[0], *(line[:-1] + "0" for line in lines[1:])]) + "\n")
    data = {"source": {"init_args": {"path": "one.csv"}}, "classes": [0, 1]}
    with pytest.raises(SystemExit, match="2"):
        compare(systems={"NCMTL": {"data": data}}, output="one", seeds=[1])
    assert (
        "no task has val documents of each of its classes, or two different numbers, which AUROC needs"
        in capsys.readouterr().err
    )
