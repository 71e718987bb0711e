"""Several processes with gloo: ranks stay bitwise equal after every step."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ddp_fit
import pytest
import torch
from ranks import on_ranks


def forked(*arguments: object) -> None:
    """On ranks that exist before the trainer does."""
    on_ranks(int(arguments[2]), on_rank, *arguments)


def on_rank(rank: int, *arguments: object) -> None:
    ddp_fit.main(*arguments)


def started_by_torchrun(*arguments: object) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments[2]}"]
    command = [sys.executable, *launcher, ddp_fit.__file__, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(
    ("project", "ranks", "option", "warmup", "run", "steps"),
    [
        ("ncmtl", 2, "none", "apart", forked, 4 * 8),  # 116 documents in global batches of 16
        ("ncmtl", 2, "none", "shared", forked, 4 * 8),
        ("ncmtl", 3, "none", "shared", forked, 4 * 6),  # 3 of each half
        ("heads", 2, "none", "shared", started_by_torchrun, 4 * 10),
        ("heads", 3, "none", "apart", forked, 4 * 7),  # 33 documents on each rank, in batches of 5
        ("present_heads", 2, "find_unused", "apart", forked, 4 * 10),
        ("present_heads", 2, "find_unused", "shared", forked, 4 * 10),
        ("rows", 2, "none", "shared", forked, 4 * 10),
        ("heads", 2, "spawn", "apart", ddp_fit.main, 4 * 10),
        ("heads", 2, "averages", "apart", forked, 4 * 10),
        ("heads", 2, "averages", "shared", forked, 4 * 10),
    ],
)
def test_ranks_stay_equal(
    tmp_path: Path, project: str, ranks: int, option: str, warmup: str, run: Callable[..., None], steps: int
) -> None:
    run(tmp_path, project, ranks, option, warmup)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    assert all(other == found[0] for other in found)
    assert found[0]["ranks"] == ranks
    assert found[0]["steps"] == steps
    assert found[0]["unequal"] == 0
    assert found[0]["unshared"] == 0
    for layer in found[0]["clusters"].values():
        assert set(layer["assignment"]) == set(range(layer["num_clusters"]))
        assert layer["frozen_at_step"] is not None
