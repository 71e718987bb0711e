"""``ncmtl doctor`` says what there is, and what is missing."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from lightning_ncmtl import doctor
from lightning_ncmtl.clustering import _faiss
from lightning_ncmtl.main import main


def test_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 + 2 * torch.cuda.device_count()  # a line for each, and whether FAISS runs there
    text = "\n".join(lines)
    for name in ("pytorch-lightning", "torchmetrics", "datasets", "pandas", "torchjd"):
        assert f"{name} {version(name)}" in text
    assert re.search(r"^FAISS .*runs on the CPU$", text, re.MULTILINE)


def test_what_is_missing_is_told_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> str:
        if name in ("pandas", "tabulate", "lightning"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without)
    monkeypatch.setattr(_faiss, "faiss", None)
    lines = dict(doctor.diagnose())
    assert lines["compare"] == "without pandas, tabulate: pip install 'lightning-ncmtl[compare]'"
    assert "lightning 2" not in lines["Lightning"].replace("pytorch-lightning", "")
    assert "needs FAISS" in lines["FAISS"]


def test_a_build_that_fails_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_faiss, "_why_not_on_gpu", lambda device: "FAISS fails (no kernel)" if device.index else None)
    lines = _faiss.describe_faiss([torch.device("cuda", 0), torch.device("cuda", 1)])
    assert lines[1:] == ["cuda:0: runs", "cuda:1: copies weights to the CPU, as FAISS fails (no kernel)"]


def test_it_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "now"])
    assert "doctor takes no arguments, found 'now'" in capsys.readouterr().err
