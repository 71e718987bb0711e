"""Every example runs, and finds what its docstring says."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"
PARAMETERS = "parameters of the heads: (.+) before and (.+) after"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_finds_the_groups(tmp_path: Path, script: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in one order on any machine
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    indices = numbers("adjusted Rand index:? (.+)", result.stdout)
    assert indices
    assert min(indices) >= 0.9
    CHECKS[script.stem](result.stdout, tmp_path)


@pytest.mark.parametrize("name", ["plain_loop", "fabric", "hugging_face"])
def test_examples_of_loops_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40


def check_module_dict(output: str, folder: Path) -> None:
    pairs = re.findall(r"(\d)  (heat|cold|rain|weekend)$", output, re.MULTILINE)
    assert len(pairs) == 12
    assert len(set(pairs)) == len(dict(pairs)) == 4  # one group in each cluster
    head = (32 * 16 + 16) + (16 + 1)
    assert numbers(PARAMETERS, output) == [12 * head, 4 * head]
    assert numbers("difference of a prediction: (.+)", output) == [0]
    assert not list(folder.iterdir())


def check_many_tasks(output: str, folder: Path) -> None:
    (sizes,) = re.findall(r"tags per cluster: (\[.+\])", output)
    assert len(json.loads(sizes)) == 6
    assert sum(json.loads(sizes)) == 120
    alone, together = numbers("accuracy: (.+) without network clustering, (.+) with", output)
    assert 0.8 < alone < together < 0.9
    assert not list(folder.iterdir())


def check_lightning_package(output: str, folder: Path) -> None:
    (run,) = folder.glob("runs/*")
    layers = json.loads((run / "clusters.json").read_text())["layers"]
    per_epoch = 4000 // 32
    for layer in layers.values():
        assert layer["trace"][0][0] == 2 * per_epoch + 1  # found before the stop after three epochs, and kept
        assert layer["frozen_at_step"] == 4 * per_epoch + 1
    places = {station: station.split()[1] for station in layers["heads.*.0"]["assignment"]}
    assert set(places.values()) == {"office", "park", "arena"}
    assert len(set(zip(layers["heads.*.0"]["assignment"].values(), places.values(), strict=True))) == 3

    hidden, last = 64 * 8 + 8, 8 + 1
    assert numbers(PARAMETERS, output) == [18 * (hidden + last), 3 * hidden + 6 * last]
    assert numbers("difference of a prediction: (.+)", output) == [0]
    compact = load_file(run / "compact/model.safetensors")
    assert sum(weight.numel() for weight in compact.values()) == (6 * 64 + 64) + 3 * hidden + 6 * last
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6 * per_epoch
    for name, weight in compact.items():
        assert weight.equal(checkpoint["state_dict"][name])


def check_feature_tables(output: str, folder: Path) -> None:
    (auto,), (all_share,), (nothing,) = (numbers(f"{name} *AUROC (.+)", output) for name in ("auto", "K = 1", "K = N"))
    assert auto > nothing + 0.02 > all_share + 0.1
    assert "evidence for 3 clusters" in output
    clusters = [line.split(": ")[1].split(", ") for line in output.splitlines() if line.startswith("cluster ")]
    expected = [{f"hospital{number:02d}" for number in range(kind, 24, 3)} for kind in range(3)]
    assert sorted(map(set, clusters), key=min) == expected
    assert not list(folder.iterdir())


def check_plain_loop(output: str, folder: Path) -> None:
    assert not list(folder.iterdir())


def check_fabric(output: str, folder: Path) -> None:
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]
    again = kill_and_go_on("fabric", folder / "again", output)
    assert (folder / "last.ckpt").read_bytes() == (again / "last.ckpt").read_bytes()


def check_hugging_face(output: str, folder: Path) -> None:
    again = kill_and_go_on("hugging_face", folder / "again", output)
    ours, theirs = (each / "run/checkpoint-600" for each in (folder, again))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    states = [torch.load(each / "optimizer.pt", weights_only=True)["state"] for each in (ours, theirs)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def kill_and_go_on(name: str, folder: Path, output: str) -> Path:
    """Run an example that is killed in the middle, and again, which must print the same at its end."""
    folder.mkdir()
    script = str(EXAMPLES / f"{name}.py")
    for code in (KILLED, "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"):
        result = subprocess.run(
            [sys.executable, "-c", code, script],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert result.returncode == (-signal.SIGKILL if code == KILLED else 0), result.stderr
    assert result.stdout.splitlines()[-2:] == output.splitlines()[-2:]
    return folder


KILLED = """
import os, runpy, signal, sys
from lightning_ncmtl import NetworkClustering

step = NetworkClustering.step

def step_or_die(self, *args):
    step(self, *args)
    if self.steps == 227:
        os.kill(os.getpid(), signal.SIGKILL)

NetworkClustering.step = step_or_die
runpy.run_path(sys.argv[1], run_name="__main__")
"""

CHECKS = {
    "plain_loop": check_plain_loop,
    "fabric": check_fabric,
    "hugging_face": check_hugging_face,
    "feature_tables": check_feature_tables,
    "module_dict": check_module_dict,
    "many_tasks": check_many_tasks,
    "lightning_package": check_lightning_package,
}


def numbers(pattern: str, text: str) -> list[float]:
    """All groups of all matches."""
    return [float(group.replace(",", "")) for match in re.finditer(pattern, text) for group in match.groups()]
