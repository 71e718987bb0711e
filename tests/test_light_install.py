"""The callback needs little: other packages are not imported, and need not be installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_ncmtl

# What the extras bring, and what is slow to import
HEAVY = {
    "accelerate", "datasets", "filelock", "huggingface_hub", "jsonargparse", "matplotlib", "pandas", "pyarrow", "rdkit",
    "sklearn", "tabulate", "tensorboard", "tokenizers", "torchjd", "transformers", "yaml",
}  # fmt: skip

# Lightning imports some of them by itself, if they are there. They are hidden once it has.
HIDDEN = f"""
import sys
from importlib.machinery import PathFinder
import torch, pytorch_lightning as pl, torchmetrics.functional.clustering
from pytorch_lightning import cli
heavy = {sorted(HEAVY)}
before = set(sys.modules)
for name in before:
    if name.split(".")[0] in heavy:
        del sys.modules[name]
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name.split(".")[0] in heavy else find_spec(name, *args)
"""

TRAINS = """
from lightning_ncmtl import ClusterLinear, NetworkClustering, NetworkClusteringCallback
from lightning_ncmtl.callbacks import ClusterReport

class Project(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(3, 1) for _ in range(4))

    def training_step(self, batch, batch_idx):
        return sum((head(batch) - n % 2).square().mean() for n, head in enumerate(self.heads))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)

clustering = NetworkClusteringCallback(2, "heads", warmup_epochs=1)
data = torch.utils.data.DataLoader(torch.randn(64, 3), batch_size=8)
settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
pl.Trainer(max_epochs=2, callbacks=[clustering, ClusterReport()], **settings).fit(Project(), data)
print("found", clustering.assignments["heads"].tolist())
print("new", len([n for n in set(sys.modules) - before if not n.startswith("lightning_ncmtl")]))
"""


def run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", HIDDEN + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)


def test_the_callback_trains_without_what_the_extras_bring(tmp_path: Path) -> None:
    result = run(TRAINS, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "found [0, 1, 0, 1]" in result.stdout or "found [1, 0, 1, 0]" in result.stdout
    assert "ClusterReport draws no pictures, which need matplotlib: pip install matplotlib" in result.stderr
    new = int(result.stdout.split("new ")[1])
    assert new < 150, f"{new} more modules than Lightning imports"  # mostly parts of torch, scipy and rich


RUNS = """
from lightning_ncmtl.main import main
for command in ("fit", "compare"):
    try:
        main([command])
    except SystemExit as error:
        print(error.code)
"""


def test_the_command_line_says_what_to_install(tmp_path: Path) -> None:
    result = run(RUNS, tmp_path)
    assert result.stdout.split() == ["2", "2"]
    lines = [line for line in result.stderr.splitlines() if line.startswith("ncmtl: error: this command needs ")]
    for line, extra in zip(lines, ("text", "compare"), strict=True):
        assert line.endswith(f"which is not installed: pip install 'lightning-ncmtl[{extra}]'")


def test_clustering_does_not_wait_for_lightning() -> None:
    code = "import sys, lightning_ncmtl; from lightning_ncmtl import NetworkClustering, TaskLinear; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=True)
    assert not {name.split(".")[0] for name in result.stdout.split()} & (HEAVY | {"pytorch_lightning", "lightning"})


def test_all_names_are_there() -> None:
    assert set(lightning_ncmtl.__all__) <= set(dir(lightning_ncmtl))
    assert all(getattr(lightning_ncmtl, name).__name__ == name for name in lightning_ncmtl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightning_ncmtl.nothing  # noqa: B018


def test_the_trainer_of_hugging_face_says_what_to_install(tmp_path: Path) -> None:
    result = run("import lightning_ncmtl.hugging_face", tmp_path)
    expected = "InputError: lightning_ncmtl.hugging_face needs accelerate, which is not installed: pip install"
    assert expected in result.stderr.splitlines()[-1]
