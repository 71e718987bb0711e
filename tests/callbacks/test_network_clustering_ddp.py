"""Several processes with gloo: ranks stay bitwise equal after every step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "support/ddp_fit.py"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(
    ("project", "ranks", "option", "launcher", "steps"),
    [
        ("ncmtl", 2, "none", [], 4 * 8),  # 116 documents in global batches of 16
        ("ncmtl", 3, "none", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"], 4 * 5),
        ("heads", 3, "none", [], 4 * 7),  # 33 documents on each rank, in batches of 5
        ("present_heads", 2, "find_unused", [], 4 * 10),
        ("heads", 2, "spawn", [], 4 * 10),
        ("heads", 2, "averages", [], 4 * 10),
    ],
)
def test_ranks_stay_equal(
    tmp_path: Path, project: str, ranks: int, option: str, launcher: list[str], steps: int
) -> None:
    command = [sys.executable, *launcher, str(SCRIPT), str(tmp_path), project, str(ranks), option]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    assert all(other == found[0] for other in found)
    assert found[0]["ranks"] == ranks
    assert found[0]["steps"] == steps
    assert found[0]["unequal"] == 0
    assert found[0]["unshared"] == 0
    for layer in found[0]["clusters"].values():
        assert set(layer["assignment"]) == set(range(layer["num_clusters"]))
        assert layer["frozen_at_step"] is not None
