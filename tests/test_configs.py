"""Every configuration in the repository can be instantiated, and every key in it is explained."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import save_model

from lightning_ncmtl import cli, comparison
from lightning_ncmtl.comparison.plan import Cell
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
COMPARISONS = [path for path in FILES if "systems" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in FILES if path not in COMPARISONS]


@pytest.mark.parametrize("config", [None, *CONFIGS], ids=lambda path: "default" if path is None else path.stem)
@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_configurations_instantiate(
    config: Path | None, subcommand: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.NCMTLCLI, "_run_subcommand", lambda self, name: built.append(self))
    arguments = [subcommand, "--config", str(ROOT / "lightning_cli.yaml")]
    if config is not None:
        arguments += ["--config", str(config)]
        data = yaml.safe_load(config.read_text()).get("data", {})
        source = data.get("source", {})
        if source.get("class_path", "").endswith("FeatureTables"):
            for task in "abc":
                (tmp_path / f"{task}.csv").write_text(f"{source['init_args']['label']},depth,size\n0,1,2\n1,3,4\n")
            arguments += ["--data.source.path", str(tmp_path / "*.csv")]
        elif source.get("class_path", "").endswith("Molecules"):
            (tmp_path / "a.csv").write_text("smiles,NR-A,SR-B\nCCO,0,1\nCC,1,0\n")
            arguments += ["--data.source.path", str(tmp_path / "a.csv")]
        elif "path" in source.get("init_args", {}):
            for domain in data.get("domains", [f"domain{number}" for number in range(14)]):
                (tmp_path / f"{domain}.task.train").write_text("0\tbad\n1\tgood\n")
            arguments += ["--data.source.path", str(tmp_path)]
        if "tokenizer" in data.get("text", {}):
            folder = save_model(tmp_path / "model", vocab_size=50)
            arguments += ["--data.text.tokenizer", folder, "--model.encoder.path", folder]
    cli.main(arguments)
    (made,) = built
    assert isinstance(made.datamodule, MultiDomainDataModule)
    assert made.model.head.num_tasks == made.datamodule.num_tasks
    if made.datamodule.features is None:
        table = next(module for module in made.model.encoder.modules() if isinstance(module, torch.nn.Embedding))
        assert table.num_embeddings == made.datamodule.vocab_size
    else:
        features = torch.zeros(1, made.datamodule.num_features)
        assert made.model.encoder(features).shape == (1, made.model.encoder.out_features)
    clustering = made.config[subcommand].clustering
    if clustering.warmup_steps is None and clustering.warmup_epochs is not None:
        assert made.trainer.max_epochs > clustering.warmup_epochs


def test_optimizer_and_scheduler_come_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.NCMTLCLI, "_run_subcommand", lambda self, name: built.append(self.model))
    scheduler = ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "3"]
    cli.main(["fit", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.25", *scheduler])
    (optimizer,), (scheduler_made,) = built[0].configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert scheduler_made.step_size == 3


def test_there_are_configurations() -> None:
    names = {"fdu_mtl", "landmine", "literal", "mmtl", "ngram", "paper", "school", "tox21", "transformer"}
    assert {path.stem for path in CONFIGS} == names
    names = {"ablation", "best", "clusters", "compare", "landmine_compare", "peers", "school_compare", "tox21_compare"}
    assert {path.stem for path in COMPARISONS} == names


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_comparisons_are_understood(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All settings of all systems and sweeps are parsed."""
    planned: list[list[Cell]] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(comparison, "run_all", lambda cells, *_: planned.append(cells) or {c.name: "" for c in cells})
    with pytest.raises(InputError, match="cells failed"):
        comparison.main(["--config", str(path), "--output", str(tmp_path)])
    (cells,) = planned
    content = yaml.safe_load(path.read_text())
    systems = len(content["systems"]) + sum(len(sweep["values"]) for sweep in content.get("sweeps", {}).values())
    assert len(cells) == systems * len(content.get("splits") or content["seeds"])
    for key in content:
        lines = path.read_text().splitlines()
        above = lines[[line.split(":")[0] for line in lines].index(key) - 1]
        assert above.startswith("# "), f"{path.name}: {key}"


@pytest.mark.parametrize("path", [ROOT / "lightning_cli.yaml", *CONFIGS], ids=lambda path: path.stem)
def test_every_setting_is_explained(path: Path) -> None:
    """Each value has a comment above it; a class path has it above its key."""
    lines = path.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        key, colon, value = line.strip().partition(": ")
        if colon and value and not key.startswith(("#", "class_path")):
            assert above.strip().startswith("#"), f"{path.name}: {key}"


def test_a_checkout_reads_what_stands_at_the_root() -> None:
    assert cli.DEFAULT_CONFIG == ROOT / "lightning_cli.yaml"
    assert Path(sys.modules["lightning_ncmtl.callbacks"].__path__[0]).resolve() == ROOT / "callbacks"
