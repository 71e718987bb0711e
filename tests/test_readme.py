"""The README's Python code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    logits = names["MyModel"]()(torch.randn(3, 100), torch.tensor([0, 19, 0]))
    assert logits.shape == (3, 2)


def test_the_files_that_it_names_exist() -> None:
    for path in re.findall(r"`((?:configs|lightning_ncmtl)/[\w/]+\.\w+)`", README):
        assert (Path(__file__).parents[1] / path).is_file(), path
