"""The README's Python code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
    logits = names["MixedBatches"]()(torch.randn(3, 100), torch.tensor([0, 19, 0]))
    assert logits.shape == (3, 2)
    assert names["same"].heads["dogs"].weight is names["same"].heads["cats"].weight
    printed = re.search(r"print\(.*#(.*)", README)
    assert printed is not None
    assert capsys.readouterr().out.split() == printed[1].split()


def test_the_files_that_it_names_exist() -> None:
    for path in re.findall(r"`((?:configs|docs|examples|lightning_ncmtl)/[\w/]+\.\w+)`", README):
        assert (Path(__file__).parents[1] / path).is_file(), path
