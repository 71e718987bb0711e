"""Both packages of Lightning, together and each alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support/one_package.py"


@pytest.mark.parametrize(
    ("package", "hidden", "ours"),
    [
        ("lightning.pytorch", [], "pytorch_lightning"),
        ("lightning.pytorch", ["pytorch_lightning", "lightning_fabric"], "lightning.pytorch"),
        ("pytorch_lightning", ["lightning"], "pytorch_lightning"),
    ],
)
def test_the_callback_fits_into_a_project(tmp_path: Path, package: str, hidden: list[str], ours: str) -> None:
    command = [sys.executable, str(SCRIPT), package, ",".join(hidden)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("{"))
    found = json.loads(line)
    assert found["assignment"] in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert found["saved"] == found["assignment"]
    assert found["callback"]
    assert found["ours"].startswith(ours)
    for name in hidden:
        assert name not in found["loaded"]
