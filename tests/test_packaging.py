"""The wheel works without the repository: the right packages, the default configuration, the types."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the source distribution, so that both are tested."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"lightning_ncmtl"}
    for folder, package in (("lightning_ncmtl", ""), ("callbacks", "callbacks/"), ("datamodules", "datamodules/")):
        for file in (ROOT / folder).rglob("*.py"):
            assert f"lightning_ncmtl/{package}{file.relative_to(ROOT / folder)}" in names
    assert "lightning_ncmtl/py.typed" in names
    assert (
        zipfile.ZipFile(wheel).read("lightning_ncmtl/lightning_cli.yaml") == (ROOT / "lightning_cli.yaml").read_bytes()
    )


def test_the_default_experiment_runs_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import lightning_ncmtl.cli as cli; print(cli.__file__); "
        "cli.main()"
    )
    settings = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--run_dir", "run"]
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "site"), "fit", *settings],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(tmp_path / "site") in result.stdout
    assert (tmp_path / "empty/run/clusters.json").is_file()
    assert (tmp_path / "empty/run/config.yaml").is_file()
