"""Imports go one way, and what starts with an underscore stays within its folder."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {"lightning_ncmtl": "lightning_ncmtl", "callbacks": "lightning_ncmtl/callbacks"}
PLACES |= {"datamodules": "lightning_ncmtl/datamodules"}


def find_modules() -> dict[str, Path]:
    found = {}
    for folder, package in PLACES.items():
        for file in (ROOT / folder).rglob("*.py"):
            if folder == "lightning_ncmtl" and file.relative_to(ROOT / folder).parts[0] in PLACES:
                continue  # the links
            name = ".".join([*package.split("/"), *file.relative_to(ROOT / folder).with_suffix("").parts])
            found[name.removesuffix(".__init__")] = file
    return found


MODULES = find_modules()


def find_imports(name: str) -> list[str]:
    """The full names of what a module imports from this package."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [
        f"{node.module}.{alias.name}"
        for node in nodes
        if node.module and node.module.startswith("lightning_ncmtl")
        for alias in node.names
    ]


def test_there_is_no_circle() -> None:
    edges = {
        name: {full if full in MODULES else full.rpartition(".")[0] for full in find_imports(name)} - {name}
        for name in MODULES
    }
    while leaves := [name for name, needs in edges.items() if not needs]:
        edges = {name: needs.difference(leaves) for name, needs in edges.items() if name not in leaves}
    assert edges == {}
    assert len(MODULES) > 80


def test_private_names_stay_within_their_folder() -> None:
    for name, file in MODULES.items():
        folder = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for full in find_imports(name):
            before, private, _ = full.partition("._")
            assert not private or before == folder or before == f"{folder}.{before.split('.')[-1]}", (name, full)
