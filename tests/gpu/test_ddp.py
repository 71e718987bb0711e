"""Two processes on one device, that talk through gloo: a smoke test, as NCCL wants a GPU for each."""

import json
from pathlib import Path

import ddp_fit
import pytest
import torch
from on_device import DEVICE
from ranks import on_ranks


def on_rank(rank: int, *arguments: object) -> None:
    ddp_fit.main(*arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(("project", "warmup"), [("heads", "apart"), ("heads", "shared"), ("ncmtl", "shared")])
def test_ranks_stay_equal(tmp_path: Path, project: str, warmup: str) -> None:
    on_ranks(2, on_rank, tmp_path, project, 2, "none", warmup, str(DEVICE))
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0]["ranks"] == 2
    assert (found[0]["unequal"], found[0]["unshared"]) == (0, 0)
    for layer in found[0]["clusters"].values():
        assert set(layer["assignment"]) == set(range(layer["num_clusters"]))
