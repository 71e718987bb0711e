"""Parameters sharded over several processes with gloo (FSDP2) become what they become on one."""

from pathlib import Path
from typing import Any

import pytest
import sharded_fit
import torch
from projects import unshared
from ranks import on_ranks
from sharded_fit import PROJECTS

from lightning_ncmtl.clustering import find_targets

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
    pytest.mark.filterwarnings("ignore:batches do not say of which half"),
]


def train(folder: Path, ranks: int, *runs: str) -> None:
    if ranks == 1:
        sharded_fit.main(0, folder, ranks, *runs)
    else:
        on_ranks(ranks, sharded_fit.main, folder, ranks, *runs)


def history(folder: Path, name: str, rank: int = 0) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = torch.load(folder / name / f"rank{rank}.pt")
    return found


def check(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]], tolerance: float = 1e-5) -> None:
    """Weights, residuals, losses, and exactly: assignments, traces, the step of freezing."""
    torch.testing.assert_close(found, {step: expected[step] for step in found}, rtol=0, atol=tolerance)


SHARED = ["shared", "shared_parts", "shared_stacked", "shared_layers"]
APART = ["heads", "parts", "stacked", "layers", "auto", "literal"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 1, *[f"{name},{name}" for name in APART + SHARED])
    return folder


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("names", [APART, SHARED])
def test_ranks_train_as_one_process(alone: Path, tmp_path: Path, ranks: int, names: list[str]) -> None:
    """Shards that are uneven, empty, of whole tasks or of parts of them."""
    train(tmp_path, ranks, *[f"{name},{name}" for name in names])
    moved = 0
    for name in names:
        expected, found = history(alone, name), history(tmp_path, name)
        assert list(found) == list(range(1, 25))
        check(found, expected)
        for rank in range(1, ranks):
            check(history(tmp_path, name, rank), found, tolerance=0)
        moved += sum(len(layer["trace"]) > 1 for layer in found[24]["layers"].values())
        module = PROJECTS[name][0]()
        for step in found.values():
            module.load_state_dict(step["weights"], strict=False)
            for target in find_targets(module, list(step["layers"])):
                if (assignment := step["layers"][target.name]["assignment"]) is not None:
                    assert unshared(target.read(), assignment) == 0
    assert moved > 1 or names == SHARED


def test_checkpoints_go_on_with_any_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    """From the middle of training, when there are residuals; both forms that Lightning saves."""
    (tmp_path / "one").symlink_to(alone / "layers")
    (tmp_path / "parts").symlink_to(alone / "parts")
    train(tmp_path, 2, "layers,file", "layers,folder", "layers,file-2,file", "layers,folder-2,folder", "parts,parts-2")
    train(tmp_path, 3, "layers,file-3,file", "layers,folder-3,folder", "layers,one-3,one", "parts,parts-3,parts-2")
    train(tmp_path, 1, "layers,file-1,file")
    expected = history(tmp_path, "one")
    assert expected[12]["layers"]["cluster"]["residual"].any()
    assert expected[12]["layers"]["cluster"]["trace"] != expected[24]["layers"]["cluster"]["trace"]
    for name in ("file-1", "file-2", "file-3", "folder-2", "folder-3", "one-3"):
        found = history(tmp_path, name)
        assert list(found) == list(range(13, 25))
        check(found, expected)
    check(history(tmp_path, "parts-3"), history(tmp_path, "parts"))


def test_a_shared_warm_up_goes_on_with_any_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    """From its middle."""
    for name in SHARED:
        (tmp_path / name).symlink_to(alone / name)
    stacked, layers, parts = "shared_stacked", "shared_layers", "shared_parts"
    train(tmp_path, 2, f"{stacked},stacked-2", f"{layers},layers-2,{layers}", f"{parts},folder-2")
    train(tmp_path, 3, f"{stacked},stacked-3,stacked-2", f"{layers},layers-3,{layers}", f"{parts},parts-3,folder-2")
    train(tmp_path, 1, f"{stacked},stacked-1,stacked-2")
    for name, runs in {
        stacked: ("stacked-1", "stacked-3"),
        layers: ("layers-2", "layers-3"),
        parts: ("parts-3",),
    }.items():
        expected = history(tmp_path, name)
        assert expected[12]["warmup"]["views"][0]["halves"].any()
        assert expected[24]["warmup"] is None
        for run in runs:
            found = history(tmp_path, run)
            assert list(found) == list(range(13, 25))
            check(found, expected)


def test_what_one_rank_finds_broken_stops_all(tmp_path: Path) -> None:
    train(
        tmp_path,
        2,
        "broken,broken",
        "shared_broken,shared_broken",
        "faiss,faiss",
        "mixed,mixed",
        "mixed_layers,mixed_layers",
        "without,without",
        "shared,resumed,without",
    )
    for name, message in (
        ("broken", "heads has weights that are not finite (NaN or infinity) after step 2, of the tasks cat:"),
        ("shared_broken", "heads have weights that are not finite (NaN or infinity) in the warm-up, of 6 tasks:"),
        ("faiss", "FAISS needs whole weights, found sharded ones: choose the backend 'gram'"),
        ("mixed", "all parameters of the target 'heads' must be sharded over the same device mesh: that of heads.ant."),
        ("resumed", "the training began without network clustering, and the tasks of heads differ by now, which a"),
        ("mixed_layers", "all parameters of the target 'experts, binary' must be sharded over the same device mesh"),
    ):
        for rank in range(2):
            assert (tmp_path / name / f"error{rank}.txt").read_text().startswith(message)
