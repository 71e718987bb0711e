from pathlib import Path

from lightning_ncmtl.comparison.cell import _curves


def test_curves_are_of_what_was_logged(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,val/accuracy,val/AUROC,val/AUROC/a\n0,1,0.5,0.25\n0,,,\n1,0,0.75,0.5\n")
    expected = {"epochs": [1, 2], "curves": {"": [0.5, 0.75], "a": [0.25, 0.5]}}
    assert _curves(file, ["a", "b"], "AUROC") == expected
    assert _curves(file, ["a"], "accuracy")["curves"] == {"": [1, 0]}
