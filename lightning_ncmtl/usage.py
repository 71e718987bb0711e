"""Help, and what can be refused, before anything is imported that takes seconds."""

import ast
import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_ncmtl.errors import InputError

# In a checkout it is at the root, in an installed package within
_PLACES = [folder / "lightning_cli.yaml" for folder in Path(__file__).parents[:2]]
DEFAULT_CONFIG = next((place for place in _PLACES if place.is_file()), _PLACES[0])

SUBCOMMANDS = {
    "fit": "Train a model; what comes of it goes to a run directory.",
    "validate": "Evaluate a checkpoint on validation data.",
    "test": "Evaluate a checkpoint on test data.",
    "predict": "Write the predictions of a checkpoint, or of an exported model, to a file.",
    "export": "Save a trained model with one set of weights per cluster.",
    "compare": "Train systems x seeds x folds and report tables, tests and figures.",
    "doctor": "Tell which versions, devices and build of FAISS there are, and whether it runs.",
}
_GROUPS = {
    "seed_everything": "of the weights, the order of documents and the clustering",
    "data": "where documents or tables come from, how they are divided, read and drawn",
    "model": "the system and its encoder, optimizer and metrics",
    "clustering": "when and how tasks are grouped",
    "report": "what is shown of clusters and tasks",
    "checkpoint": "which epochs are kept",
    "predictions": "where predictions go",
    "trainer": "Lightning's Trainer: length, devices, precision, loggers",
}
_OPTIONS = {
    "--config FILE": "settings as YAML; several stack, and later ones win",
    "--run_dir FOLDER": "where all files of the run go; runs/TIME by default",
    "--ckpt_path FILE": "a checkpoint, with its settings: fit goes on from it",
    "--print_config": "print all settings as YAML, and stop",
    "--help_all": "each setting with its type and default",
}
_MORE_OPTIONS = {
    "predict": {
        "--model FOLDER": "an exported model, in the place of a checkpoint",
        "--data.predict_path FILE": "what to predict",
        "--predictions.path FILE": "where to; predictions.jsonl in the run directory by default",
    },
    "export": {"--output FOLDER": "where to; compact in the run directory by default"},
}
# Lightning's own, which need no word in the help
_HIDDEN = {"fit": ["weights_only"], "predict": ["return_predictions", "weights_only"], "export": ["output"]}
_HIDDEN |= {name: ["verbose", "weights_only"] for name in ("validate", "test")}


def known(subcommand: str) -> set[str]:
    """The first words of all options that a subcommand of Lightning's command line has."""
    own = {option.split()[0].lstrip("-") for option in _OPTIONS} - {"help_all"}
    return own | {*_GROUPS, *_HIDDEN[subcommand], "help"}


def describe() -> str:
    """The page of ``ncmtl --help``."""
    lines = [f"  {name:<10}{about}" for name, about in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: ncmtl SUBCOMMAND [options]\n\nNetwork clustering for multi-task learning.\n\nsubcommands:",
            *lines,
            "\nThe options of each: ncmtl SUBCOMMAND --help",
        ]
    )


def describe_subcommand(subcommand: str) -> str:
    """The page of ``ncmtl SUBCOMMAND --help``."""
    if subcommand == "doctor":
        return f"usage: ncmtl doctor\n\n{SUBCOMMANDS[subcommand]}"
    if subcommand == "compare":
        return f"usage: {usage(subcommand)}\n\n{_arguments_of_compare()}"
    options = {**_MORE_OPTIONS.get(subcommand, {}), **_OPTIONS}
    return "\n".join(
        [
            f"usage: {usage(subcommand)}",
            "",
            SUBCOMMANDS[subcommand],
            "",
            "options:",
            *(f"  {option:<26}{about}" for option, about in options.items()),
            "",
            "groups of settings:",
            *(f"  {name:<26}{about}" for name, about in _GROUPS.items()),
            "",
            "Each setting is an option, too: --trainer.max_epochs 5. Of a class: --data.source.help Tables.",
            f"The default settings ({DEFAULT_CONFIG}):",
            "",
            DEFAULT_CONFIG.read_text(encoding="utf-8"),
        ]
    )


def usage(subcommand: str) -> str:
    """How a subcommand is called, in a line."""
    own = " [--dry_run] [-- SETTINGS OF FIT]" if subcommand == "compare" else ""
    return f"ncmtl {subcommand} [--config FILE]... [--SETTING VALUE]...{own}"


def check(subcommand: str, arguments: Sequence[str]) -> None:
    """Refuse options that do not exist and files that are not there.

    Args:
        subcommand: One that Lightning's command line has.
        arguments: The arguments behind it.

    Raises:
        InputError: With the option that was meant, if one is near.
    """
    names = known(subcommand)
    for place, argument in enumerate(arguments):
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not re.fullmatch(r"[\w.+]+", name):
            continue
        first = name.split(".")[0].rstrip("+")
        if not any(each.startswith(first) for each in names):  # an option may be shortened
            raise InputError(f"unknown option --{name}{_suggest(name, names)} (ncmtl {subcommand} --help shows all)")
        if name in ("config", "ckpt_path"):
            value = value if equals else next(iter(arguments[place + 1 :]), "")
            # A configuration may also be given as text
            if not re.search(r"[\n:{]", value) and value not in ("null", "") and not Path(value).is_file():
                what = "the checkpoint" if name == "ckpt_path" else "the configuration"
                raise InputError(f"{what} {value!r} does not exist: set --{name} to a file")


def _suggest(name: str, names: set[str]) -> str:
    """What was meant: a setting without its group, or a group whose name is near."""
    inner = [each for each in _default_settings() if each.endswith(f".{name}")]
    group, dot, rest = name.partition(".")
    near = [f"{each}{dot}{rest}" for each in difflib.get_close_matches(group, names, n=1)]
    return f": did you mean --{(inner + near)[0]}?" if inner or near else ""


def _default_settings() -> list[str]:
    """The names of the settings in the default configuration, as options have them."""
    found: list[str] = []
    path: list[str] = []
    for line in DEFAULT_CONFIG.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)(\w+):", line):
            path[len(match[1]) // 2 :] = [match[2]]
            found.append(".".join(path))
    return found


def _arguments_of_compare() -> str:
    """What the docstring of ``compare`` says, read from its file, as importing it takes seconds."""
    spec = find_spec("lightning_ncmtl.comparison")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    text = next(
        ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "compare"
    )
    assert text is not None
    text = re.sub(r":\w+:`([^`]*)`", r"\1", text.partition("\nRaises:")[0]).replace("``", "")
    skipped = ("arguments:", "command:")
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(skipped)).strip()
