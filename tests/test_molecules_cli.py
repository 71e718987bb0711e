"""The command line on molecules: the configuration of Tox21, a checkpoint, new molecules."""

import json
from pathlib import Path

import pytest
from table_files import Row, write_csv

from lightning_ncmtl.main import main

ROOT = Path(__file__).parents[1]
RINGS = ["C1CCCCC1", "c1ccccc1", "c1ccncc1", "C1CC1", "c1ccoc1", "C1CCNCC1", "c1ccc2ccccc2c1", "C1COCCN1"]


def molecules() -> list[Row]:
    """Alcohols are active in one assay, and long ones in both."""
    rows = [
        {"smiles": f"{'O' * alcohol}{'C' * length}{ring}", "NR-A": alcohol, "SR-B": int(length > 3)}
        for ring in RINGS
        for length in range(1, 7)
        for alcohol in (0, 1)
    ]
    return [*rows, {"smiles": "no molecule", "NR-A": 1, "SR-B": 1}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    write_csv(folder / "assays.csv", molecules())
    configs = [f"--config={ROOT}/lightning_cli.yaml", f"--config={ROOT}/configs/tox21.yaml"]
    small = ["--trainer.max_epochs=15", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    small += ["--data.batches.size=16", "--data.source.bits=256", "--report.pictures=false"]
    small += ["--model.optimizer.lr=0.01", "--model.encoder.dropout=0", "--model.dropout=0"]
    small += ["--clustering.num_clusters=2"]  # from the first step, so that the best epoch has clusters
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *configs, *small, "--data.source.path=assays.csv", "--run_dir=run"])
    return folder


def test_new_molecules_are_predicted_from_the_checkpoint_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.ckpt").write_bytes((folder / "run/checkpoints/best.ckpt").read_bytes())
    smiles = [row["smiles"] for row in molecules()[:-1]]
    write_csv(tmp_path / "new.csv", [{"smiles": text} for text in smiles])
    monkeypatch.chdir(tmp_path)
    main(["predict", "--ckpt_path=best.ckpt", "--data.predict_path=new.csv", "--run_dir=out"])
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(line["smiles"], [*line["predictions"]]) for line in lines] == [(text, ["NR-A", "SR-B"]) for text in smiles]
    right = [line["predictions"]["NR-A"]["prediction"] == int(line["smiles"].startswith("O")) for line in lines]
    assert sum(right) > 0.9 * len(right)
    main(["export", "--ckpt_path=best.ckpt", "--output=small"])
    main(["predict", "--model=small", "--data.predict_path=new.csv", "--run_dir=again"])
    again = [json.loads(line) for line in (tmp_path / "again/predictions.jsonl").read_text().splitlines()]
    assert [(one["smiles"], one["predictions"].keys()) for one in again] == [
        (one["smiles"], one["predictions"].keys()) for one in lines
    ]
    for one, other in zip(lines, again, strict=True):
        for task, found in one["predictions"].items():
            assert other["predictions"][task]["probabilities"] == pytest.approx(found["probabilities"], abs=1e-5)


def test_what_is_no_molecule_cannot_be_predicted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "new.csv", [{"smiles": "CCO"}, {"smiles": "C1CC"}])
    with pytest.raises(SystemExit):
        main(["predict", f"--ckpt_path={folder}/run/checkpoints/best.ckpt", "--data.predict_path=new.csv"])
    expected = "new.csv:3: expected the SMILES of a molecule in 'smiles', found 'C1CC'; predict needs all features"
    assert expected in capsys.readouterr().err
