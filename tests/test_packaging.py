"""The wheel works without the repository: the right packages, the default configuration, the types."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder: Path, links: bool) -> Path:
    """A wheel, made from the source distribution, so that both are tested; or of a checkout where links are texts."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "results", "runs", "data")
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignored)
    if not links:
        for link in [path for path in source.rglob("*") if path.is_symlink()]:
            target = str(link.readlink())
            link.unlink()
            link.write_text(target)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"), links=True)


def read(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name.removeprefix("lightning_ncmtl/") for name in names if ".dist-info" not in name}
    expected = {str(file.relative_to(ROOT / "lightning_ncmtl")) for file in (ROOT / "lightning_ncmtl").rglob("*.py")}
    for folder in ("callbacks", "datamodules"):  # not all Pythons look into links
        expected |= {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*.py")}
    page = {f"callbacks/page/{name}" for name in ("page.html.j2", "charts.html.j2", "page.css", "page.js")}
    assert ours == expected | page | {"py.typed", "lightning_cli.yaml", "comparison/report.md.j2"}
    assert len(names) == len(set(names))
    assert read(wheel)["lightning_ncmtl/lightning_cli.yaml"] == (ROOT / "lightning_cli.yaml").read_bytes()


def test_a_checkout_without_links_makes_the_same(wheel: Path, tmp_path: Path) -> None:
    assert read(build(tmp_path, links=False)) == read(wheel)


def test_the_default_experiment_runs_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from lightning_ncmtl import main; print(main.__file__); "
        "main.main()"
    )
    settings = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--run_dir", "run"]
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "site"), "fit", *settings],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(tmp_path / "site") in result.stdout
    assert (tmp_path / "empty/run/clusters.json").is_file()
    assert (tmp_path / "empty/run/config.yaml").is_file()
    assert (tmp_path / "empty/run/report.html").is_file()
