import json
from pathlib import Path
from typing import Any

import pytest

import lightning_ncmtl
from lightning_ncmtl.comparison.plan import Sweep, hash_code, plan
from lightning_ncmtl.errors import InputError

SYSTEMS: dict[str, dict[str, Any]] = {"A": {"trainer": {"max_epochs": 1}}, "B": {}}


def make(path: Path, **changes: Any) -> list[Any]:
    settings: dict[str, Any] = {
        "systems": SYSTEMS, "sweeps": {}, "common": {"data": {"batch_size": 4}}, "configs": [], "arguments": [],
        "seeds": [1, 2], "folds": None, "splits": None, "test": False, "output": path,
    }  # fmt: skip
    return plan(**{**settings, **changes})


def test_cells_are_systems_and_sweeps_times_seeds_times_folds(tmp_path: Path) -> None:
    sweep = Sweep("A", {"x": {"trainer": {"max_epochs": 3}}}, settings={"seed_everything": 5})
    cells = make(tmp_path, sweeps={"epochs": sweep}, folds=[0, 3])
    assert [(cell.system, cell.seed, cell.fold) for cell in cells] == [
        (system, seed, fold) for fold in (0, 3) for seed in (1, 2) for system in ("A", "B", "epochs: x")
    ]
    assert len({cell.directory for cell in cells}) == 12
    assert cells[2].settings == (
        {"data": {"batch_size": 4}},
        {"trainer": {"max_epochs": 1}},
        {"seed_everything": 5},
        {"trainer": {"max_epochs": 3}},
    )
    assert (cells[2].sweep, cells[2].value, cells[0].sweep) == ("epochs", "x", None)


def test_splits_take_the_place_of_seeds_and_folds(tmp_path: Path) -> None:
    cells = make(tmp_path, splits=[4, 7])
    found = [(cell.system, cell.seed, cell.fold, cell.split, cell.part) for cell in cells]
    assert found == [(system, number, None, number, number) for number in (4, 7) for system in ("A", "B")]
    assert cells[3].name == "B, split 7"
    assert cells[3].key == "b/split-7"
    [other] = make(tmp_path, systems={"B": {}}, seeds=[7])
    assert cells[3].fingerprint != other.fingerprint
    assert "split" not in other.fingerprint  # results from before there were any still count


def test_equal_settings_are_trained_once(tmp_path: Path) -> None:
    values = {"x": {"trainer": {"max_epochs": 3}}, "as it is": {}}
    sweeps = {"one": Sweep("A", values), "other": Sweep("A", values), "settings": Sweep("A", values, {"a": {"b": 1}})}
    cells = {cell.system: cell.directory for cell in make(tmp_path, sweeps=sweeps, seeds=[1])}
    assert cells["one: x"] == cells["other: x"] != cells["settings: x"]
    assert cells["one: as it is"] == cells["other: as it is"]
    assert len(set(cells.values())) == 6


def test_a_finished_cell_belongs_to_its_settings(tmp_path: Path) -> None:
    config = tmp_path / "base.yaml"
    config.write_text("seed_everything: 3\n")
    [cell] = make(tmp_path, systems={"A": {}}, seeds=[1], configs=[str(config)])
    assert cell.read_result() is None
    cell.directory.mkdir(parents=True)
    (cell.directory / "result.json").write_text(json.dumps({"fingerprint": cell.fingerprint}))
    names = {"system": "A", "seed": 1, "fold": None, "split": None, "sweep": None, "value": None}
    assert cell.read_result() == {"fingerprint": cell.fingerprint, **names}
    config.write_text("# comments do not count\nseed_everything: 3\n")
    assert cell.read_result() is not None
    for changes in ({"systems": {"A": {"x": 1}}}, {"arguments": ["--y"]}, {"test": True}, {"common": {}}):
        [other] = make(tmp_path, **{"systems": {"A": {}}, "seeds": [1], "configs": [str(config)], **changes})
        with pytest.raises(InputError, match="holds a result of other settings: delete it"):
            other.read_result()
    config.write_text("seed_everything: 4\n")
    with pytest.raises(InputError, match="of other settings"):
        cell.read_result()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "needs systems, seeds and folds"),
        ({"seeds": []}, "needs systems, seeds and folds"),
        ({"folds": []}, "needs systems, seeds and folds"),
        ({"seeds": [1, 1]}, r"seeds must differ, found \[1, 1\]"),
        ({"folds": [2, 2]}, r"folds must differ, found \[2, 2\]"),
        ({"splits": []}, "needs systems, seeds and folds"),
        ({"splits": [3, 3]}, r"splits must differ, found \[3, 3\]"),
        ({"configs": ["nowhere.yaml"]}, "'nowhere.yaml' does not exist"),
        ({"systems": {"äöü": {}}}, "need letters or digits"),
        ({"sweeps": {"s": Sweep("A", {}, figure="pie")}}, "has the figure 'pie': choose grid, line, recovery"),
        ({"sweeps": {"s": Sweep("C", {})}}, "the sweep 's' is of 'C', which is none of A, B"),
        ({"systems": {"A b": {}, "A-B": {}}}, "need letters or digits in which they differ"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path, **changes)


def test_the_hash_is_of_all_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the folders that are links in a checkout."""
    (tmp_path / "package").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "package" / "folder").symlink_to(tmp_path / "folder")
    monkeypatch.setattr(lightning_ncmtl, "__file__", str(tmp_path / "package" / "__init__.py"))
    found = set()
    for place in ("package", "folder", "folder"):
        found.add(hash_code.__wrapped__())
        (tmp_path / place / f"file{len(found)}.py").write_text(f"{len(found)}")
    assert len({*found, hash_code.__wrapped__()}) == 4
