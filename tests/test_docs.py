"""What the documentation shows works: Python code runs, commands and settings are understood, names and links exist.

Links and names on the pages of the site are checked where it is built (``make docs``); here is what that does not see.
"""

import importlib
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from operator import attrgetter
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from lightning_ncmtl import cli, comparison
from lightning_ncmtl.cli import NCMTLCLI
from lightning_ncmtl.usage import SUBCOMMANDS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def find_commands() -> list[str]:
    """Each command line that starts with ``ncmtl`` and has arguments, once."""
    found = set()
    for page in PAGES:
        for block in blocks(page, "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            found |= {line.removeprefix(".venv/bin/") for line in lines}
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        found |= set(re.findall(r"`([^`]+)`", text))
    commands = {shlex.join(shlex.split(line, comments=True)) for line in found if line.startswith("ncmtl ")}
    return sorted(line for line in commands if " -" in line and "SUBCOMMAND" not in line)


@pytest.fixture(scope="module")
def command_line() -> Iterator[NCMTLCLI]:
    """A command line that reads arguments, but opens no checkpoint, and has made nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_config_of", lambda checkpoint, subcommand: "{}")
        patch.setattr(cli, "find_folder", lambda subcommand, model, _: model if subcommand == "predict" else None)
        patch.setattr(cli, "config_of", lambda folder: {})
        patch.setattr(NCMTLCLI, "instantiate_classes", lambda self: None)
        patch.setattr(NCMTLCLI, "_run_subcommand", lambda self, name: None)
        patch.setattr(comparison, "check", lambda cells: None)
        patch.chdir(ROOT)
        yield cli.make_cli(["fit"])


# That of the README has a test of its own
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code of a page, from the top down, prints what the comment behind each ``print`` says."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    code = "\n".join(blocks(page, "python"))
    with redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    expected = [line.rpartition("#")[2] for line in code.splitlines() if line.startswith("print(")]
    assert out.getvalue().split() == " ".join(expected).split()


@pytest.mark.parametrize("command", find_commands())
def test_commands_are_understood(command: str, command_line: NCMTLCLI) -> None:
    arguments = shlex.split(command.replace("runs/TIME-fit/config.yaml", "lightning_cli.yaml"))[1:]
    if arguments[-1] in ("--help", "--help_all"):
        assert set(arguments[:-1]) <= SUBCOMMANDS.keys()
        return
    if arguments[0] == "compare":
        behind = arguments.index("--") if "--" in arguments else len(arguments)
        comparison.main([*arguments[1:behind], "--dry_run"])
        content = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text())
        configs = [*content.get("configs", []), yaml.safe_dump(content["common"])]
        arguments = ["fit", *(word for config in configs for word in ("--config", config)), *arguments[behind + 1 :]]
    command_line.parse_arguments(command_line.parser, arguments)


SETTINGS = [
    pytest.param(content, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, content in enumerate(yaml.safe_load(block) for block in blocks(page, "yaml"))
    if content.keys() <= {"common", "data", "model"}
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_are_understood(settings: dict[str, Any], command_line: NCMTLCLI) -> None:
    arguments = ["fit", "--config", yaml.safe_dump(settings.get("common", settings))]
    command_line.parse_arguments(command_line.parser, arguments)


def test_every_subcommand_is_explained() -> None:
    first_cells = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    assert SUBCOMMANDS.keys() <= set(re.findall(r"`(\w+)`", " ".join(first_cells)))


def test_there_are_commands_and_settings() -> None:
    assert len(find_commands()) > 20
    assert len(SETTINGS) >= 5


def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_the_readme() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else README
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def find_modules() -> list[str]:
    """Those of the package, also in folders that it has links to."""
    folders = {"lightning_ncmtl": "", "callbacks": "lightning_ncmtl.", "datamodules": "lightning_ncmtl."}
    files = [(prefix, file) for folder, prefix in folders.items() for file in (ROOT / folder).rglob("*.py")]
    names = {prefix + ".".join(file.relative_to(ROOT).with_suffix("").parts) for prefix, file in files}
    return sorted(name.removesuffix(".__init__") for name in names if "__main__" not in name)


def has(place: object, name: str) -> bool:
    try:
        attrgetter(name)(place)
    except AttributeError:
        return False
    return True


def exists(name: str, module: ModuleType) -> bool:
    """Whether a name in a docstring means something there: in full, in the module, or in a class of it."""
    places = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    fields = {field for place in places for field in getattr(place, "__annotations__", {})}
    return name in fields or locate(name) is not None or any(has(place, name) for place in places)


@pytest.mark.parametrize("name", find_modules())
def test_names_in_docstrings_exist(name: str) -> None:
    """Also in what has no page: private files, comments."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    for role in re.findall(r":(?:attr|class|data|func|meth|mod):`~?\.?([\w.]+)`", Path(module.__file__).read_text()):
        assert exists(role, module), f"{name}: {role}"
