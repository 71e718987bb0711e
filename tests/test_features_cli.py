"""The command line on tables of features: a YAML file, a checkpoint, new rows, an exported folder."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ranks import on_ranks
from refusals import refusal
from scipy import io
from sklearn.metrics import roc_auc_score
from table_files import Row, write_csv

from lightning_ncmtl import NCMTL, load
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.main import main

ROOT = Path(__file__).parents[1]
TASKS, GROUPS, FEATURES = 8, 2, 5
SMALL = {
    "seed_everything": 1,
    "trainer": {"max_epochs": 14, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
    "clustering": {"warmup_epochs": 7},
    "model": {"init_args": {"optimizer": {"init_args": {"lr": 0.01, "weight_decay": 0.0}}}},
    "data": {"batches": {"size": 32}, "split": {"validation_size": 0.2}},
    "checkpoint": {"monitor": "auto"},
    "report": {"pictures": False},
}


def _run(rank: int, folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*arguments])


DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def planted(rows: int = 120) -> dict[str, Any]:
    """Cells of features and labels: tasks of a group agree on what is positive, up to noise."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((GROUPS, FEATURES)) * 2
    feature, label = np.empty((1, TASKS), object), np.empty((1, TASKS), object)
    for task in range(TASKS):
        x = rng.standard_normal((rows, FEATURES))
        feature[0, task] = x * 10 + 100  # far from standardised
        score = x @ weights[task % GROUPS] - 1.5 + 0.5 * rng.standard_normal(rows)
        label[0, task] = (score > 0).astype(np.uint8)[:, None]
    return {"feature": feature, "label": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up data and the run ``run``, by the configuration of Landmine."""
    folder = tmp_path_factory.mktemp("features")
    io.savemat(folder / "mines.mat", planted())
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *configs(), "--run_dir", "run"])
    return folder


def configs() -> list[str]:
    files = [ROOT / "lightning_cli.yaml", ROOT / "configs" / "landmine.yaml", "small.yaml"]
    return [*(f"--config={file}" for file in files), "--data.source.path", "mines.mat"]


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_table_trains_and_its_groups_are_found(folder: Path) -> None:
    validations = [row for row in metrics(folder / "run") if row["val/AUROC"]]
    assert len(validations) == 14
    last = {name: float(value) for name, value in validations[-1].items() if name.startswith("val/") and value}
    assert last["val/AUROC"] > 0.9
    assert last["val/AUROC"] == pytest.approx(np.mean([last[f"val/AUROC/{task}"] for task in range(1, TASKS + 1)]))
    assert {"val/accuracy", "val/AveragePrecision", "val/AveragePrecision/1"} < last.keys()
    assert last["val/skipped"] == 0
    layers = json.loads((folder / "run/clusters.json").read_text())["layers"]
    assert set(layers) == {"cluster_layers.0", "head"}
    for layer in layers.values():
        found = list(layer["assignment"].values())
        assert list(layer["assignment"]) == [str(task) for task in range(1, TASKS + 1)]
        assert len({(cluster, task % GROUPS) for task, cluster in enumerate(found)}) == GROUPS


def test_the_best_checkpoint_is_that_of_the_metric(folder: Path) -> None:
    validations = [(float(row["val/AUROC"]), int(row["epoch"])) for row in metrics(folder / "run") if row["val/AUROC"]]
    best = torch.load(folder / "run/checkpoints/best.ckpt", weights_only=True)
    value, epoch = max(validations, key=lambda pair: pair[0])
    assert best["epoch"] == epoch
    states = [state for name, state in best["callbacks"].items() if "val/AUROC" in name]
    assert float(states[0]["best_model_score"]) == pytest.approx(value)


def test_a_training_goes_on_as_if_it_had_not_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    main(["fit", *configs(), "--run_dir", "part", "--trainer.max_epochs", "9"])
    main(["fit", "--ckpt_path", "part/checkpoints/last.ckpt", "--trainer.max_epochs", "14", "--run_dir", "rest"])
    last = [torch.load(folder / run / "checkpoints/last.ckpt", weights_only=True) for run in ("run", "rest")]
    torch.testing.assert_close(last[0]["state_dict"], last[1]["state_dict"], rtol=0, atol=0)
    assert last[0]["MultiDomainDataModule"] == last[1]["MultiDomainDataModule"]


def rows_to_predict(folder: Path) -> list[Row]:
    x, y = (planted()[name] for name in ("feature", "label"))
    names = [f"feature{place + 1}" for place in range(FEATURES)]
    return [
        {
            "task": task + 1,
            "id": f"{task}-{row}",
            **dict(zip(names, x[0, task][row], strict=True)),
            "y": int(y[0, task][row, 0]),
        }
        for task in range(TASKS)
        for row in range(40)
    ]


def test_new_rows_are_predicted_from_the_checkpoint_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.ckpt").write_bytes((folder / "run/checkpoints/best.ckpt").read_bytes())
    table = rows_to_predict(folder)
    write_csv(tmp_path / "new.csv", table[::-1])
    monkeypatch.chdir(tmp_path)
    columns = ["--data.source.task", "task", "--data.source.id", "id"]
    main(["predict", "--ckpt_path", "best.ckpt", "--data.predict_path", "new.csv", "--run_dir", "out", *columns])
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(line["domain"], line["id"]) for line in lines] == [(str(row["task"]), row["id"]) for row in table[::-1]]
    positive = [line["probabilities"]["1"] for line in lines]
    assert roc_auc_score([row["y"] for row in table[::-1]], positive) > 0.85
    assert [line["prediction"] for line in lines] == [int(value > 0.5) for value in positive]

    # The same from Python, and from a compact folder, by hand
    data = MultiDomainDataModule.load_from_checkpoint("best.ckpt", weights_only=True, predict_path="new.csv")
    data.source.task = "task"  # type: ignore[attr-defined]
    data.setup("predict")
    batches = list(data.predict_dataloader())
    model = NCMTL.load_from_checkpoint("best.ckpt", weights_only=True).eval()
    with torch.no_grad():
        by_hand = [model(batch["inputs"], batch["task_ids"]).softmax(1)[:, 1] for batch in batches]
    assert torch.cat(by_hand).tolist() == pytest.approx(positive, abs=1e-6)
    main(["export", "--ckpt_path", "best.ckpt", "--output", "small"])
    compact = load("small")
    settings = json.loads((tmp_path / "small/settings.json").read_text())["data"]
    values = torch.tensor([[row[name] for name in settings["features"]] for row in table[::-1]], dtype=torch.float64)
    inputs = (values - torch.tensor(settings["scaling"]["mean"])) / torch.tensor(settings["scaling"]["deviation"])
    tasks = torch.tensor([settings["domains"].index(str(row["task"])) for row in table[::-1]])
    with torch.no_grad():
        assert compact(inputs.float(), tasks).softmax(1)[:, 1].tolist() == pytest.approx(positive, abs=1e-5)
    main(["predict", "--model", "small", "--data.predict_path", "new.csv", "--run_dir", "again", *columns])
    again = [json.loads(line) for line in (tmp_path / "again/predictions.jsonl").read_text().splitlines()]
    assert [line["probabilities"]["1"] for line in again] == pytest.approx(positive, rel=0, abs=1e-6)
    rest = {"id", "domain", "prediction"}
    assert [{key: line[key] for key in rest} for line in again] == [{key: line[key] for key in rest} for line in lines]


def test_a_wide_table_is_predicted_from_an_exported_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    table: list[Row] = [
        {"mol": f"m{n}", **{f"x{i}": x[n, i] for i in range(3)}, **{f"y{t}": int(x[n, t % 2] > 0) for t in range(4)}}
        for n in range(200)
    ]
    write_csv(tmp_path / "all.csv", table)
    source = {"path": "all.csv", "features": "x*", "label": ["y*"], "id": "mol"}
    split = {"validation_size": 0.2}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump({"data": {"source": {"init_args": source}, "split": split}}))
    shutil.copy(folder / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["fit", *configs()[:-2], "--config", "wide.yaml", "--run_dir", "run"])
    main(["export", "--ckpt_path", "run/checkpoints/last.ckpt", "--output", "small"])
    write_csv(tmp_path / "new.csv", [{name: row[name] for name in ("x2", "mol", "x1", "x0")} for row in table[:9]])
    (tmp_path / "all.csv").unlink()
    found = []
    for name, model in (("one", ["--model", "small"]), ("two", ["--ckpt_path", "run/checkpoints/last.ckpt"])):
        main(["predict", *model, "--data.predict_path", "new.csv", "--run_dir", name])
        found.append([json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()])
    for ours, theirs, row in zip(*found, table, strict=False):
        assert ours["mol"] == theirs["mol"] == row["mol"]
        assert list(ours["predictions"]) == list(theirs["predictions"]) == ["y0", "y1", "y2", "y3"]
        for task, entry in ours["predictions"].items():
            expected = theirs["predictions"][task]
            assert entry["prediction"] == expected["prediction"]
            assert entry["probabilities"] == pytest.approx(expected["probabilities"], rel=0, abs=1e-6)
    assert [len(lines) for lines in found] == [9, 9]
    predict = ["predict", "--model", "small", "--data.predict_path", "new.csv", "--data.batches.size", "2"]
    on_ranks(2, _run, tmp_path, *predict, "--run_dir", "ddp", *DDP)
    lines = [json.loads(line) for line in (tmp_path / "ddp/predictions.jsonl").read_text().splitlines()]
    for ours, theirs in zip(lines, found[0], strict=True):
        assert ours["mol"] == theirs["mol"]
        for task, entry in ours["predictions"].items():
            expected = theirs["predictions"][task]["probabilities"]
            assert entry["probabilities"] == pytest.approx(expected, rel=0, abs=1e-6)
    assert "all.csv" not in (tmp_path / "small/settings.json").read_text()


def test_two_processes_agree_with_one(folder: Path) -> None:
    test = ["test", "--ckpt_path", "run/checkpoints/best.ckpt", "--run_dir"]
    _run(0, folder, *test, "test1")
    on_ranks(2, _run, folder, *test, "test2", *DDP)
    (one,), (two,) = metrics(folder / "test1"), metrics(folder / "test2")
    assert one == two
    assert float(one["test/AUROC"]) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.encoder", "HAN"], "HAN reads texts, and the data has features: set model.encoder to"),
        (["--model.metrics", "[AUC]"], "model.metrics has 'AUC': take those of torchmetrics.classification"),
        (["--data.source.label", "class"], "no column 'class' among 'feature1', .* set data.source.label"),
        (["--data.features", "[depth]"], "FeatureTables has no feature 'depth', but 'feature1', 'feature2'"),
        (["--data.source.path", "gone.mat"], "no file matches 'gone.mat': set data.source.path"),
        (["--data.text.vectors", "glove.txt"], "FeatureTables has features, and no words: unset data.text.vectors"),
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
    line = refusal(["fit", *configs(), *arguments], capsys)
    assert re.search(message, line), line


def test_texts_are_not_for_encoders_of_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--model.encoder", "MLP"])
    assert (
        "ncmtl: error: MLP reads features, found in_features=0: for texts, set model.encoder" in capsys.readouterr().err
    )
