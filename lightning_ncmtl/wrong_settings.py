"""Settings that cannot be used, told in one line: in files, and what the parser says of others."""

import difflib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_ncmtl import encoders, modules
from lightning_ncmtl.datamodules import sources
from lightning_ncmtl.errors import InputError, find_message

_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null",
    "list": "a list", "Sequence": "a list", "Iterable": "a list", "dict": "a mapping",
}  # fmt: skip
_GROUPS = ["data", "clustering", "report", "checkpoint", "predictions", "trainer"]
_GROUPS += ["data.split", "data.labels", "data.text", "data.batches"]
_SHOWN = 80  # characters of a value
_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"class_path[ =]'([^']+)'")
_VALUE = re.compile(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?(?:\n|$)")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = set()
        for name in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if name.value in found:
                raise yaml.MarkedYAMLError(problem=f"{name.value!r} stands here twice", problem_mark=name.start_mark)
            found.add(name.value)
        return super().construct_mapping(node, deep)


def read_file(file: str) -> dict[str, Any]:
    """The content of a configuration file.

    Raises:
        InputError: If it is no YAML, a key stands twice at one place, or it is no mapping of settings.
    """
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise InputError(f"the configuration {file}{line} cannot be read: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the configuration {file} cannot be read: {error}") from error
    if not isinstance(content, dict | None):
        raise InputError(
            f"the configuration {file} must have settings, such as 'seed_everything: 1', found {_short(content)}"
        )
    return content or {}


def check_files(arguments: Sequence[str]) -> None:
    """Refuse configuration files that are no mappings of settings.

    Args:
        arguments: All arguments of a command.

    Raises:
        InputError: As :func:`read_file`.
    """
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            value = value if equals else next(iter(arguments[place + 1 :]), "")
            if not re.search(r"[\n:{]", value) and Path(value).is_file():  # it may also be given as text
                read_file(value)


def parse(parser: ArgumentParser, arguments: Sequence[str], inner: ArgumentParser) -> Namespace:
    """The settings that arguments make.

    Args:
        parser: Made with ``exit_on_error=False``.
        arguments: What it parses.
        inner: The parser of the subcommand, or the same.

    Raises:
        InputError: If it refuses them, in one line.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        names = list(inner.get_defaults().keys())
        known = {*names, *(name.partition(".")[0] for name in names)}
        raise InputError(find_message(error) or explain(str(error), known)) from error


def check_groups(settings: Namespace) -> None:
    """Refuse a value where a group of settings belongs, and a seed that is none; the parser takes both.

    Args:
        settings: Those of a subcommand.

    Raises:
        InputError: With the group, and what stands there.
    """
    for name in _GROUPS:
        if not isinstance(group := settings[name], Namespace):
            raise InputError(f"{name} must be a mapping of settings, found {_short(group)}")
    if not 0 <= int(settings.seed_everything) < 2**32:
        raise InputError(f"seed_everything must be from 0 to {2**32 - 1}, found {settings.seed_everything}")


def explain_value(error: ValueError) -> str:
    """What a class says of a value that it does not take: the first reason.

    Args:
        error: Of making an object from settings, perhaps wrapped by jsonargparse.

    Raises:
        ValueError: The error itself, if it was not a class that refused a value.
    """
    first: BaseException = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    if not isinstance(first, ValueError):
        raise error
    return f"a setting was refused: {first}"


def explain(message: str, known: Iterable[str] = ()) -> str:
    """What is wrong, in one line.

    Args:
        message: What jsonargparse says: a tree of what was tried.
        known: The names of all settings.
    """
    if match := re.search(r"unrecognized arguments: (.*)", message):
        return _explain_unknown(match[1].split()[0], known)
    if match := re.search(r"does not accept option '([^']*)'", message):
        return f"there is no setting {match[1]!r}{suggest(match[1], known, 0.75)}"
    names = _nested(message)
    if not names:
        return " ".join(message.split())[: 4 * _SHOWN]
    setting = ".".join(names)
    value = _VALUE.search(message)
    inner = message if value is None else message[: value.end()]  # what surrounds it repeats that nothing fits
    found = "" if value is None else value[1]
    kind = ["", *_CLASS.findall(message)][-1]
    if match := re.search(r"Option '([^']*)' is not accepted", message):
        return f"{setting}: {kind} has no {match[1]!r}{suggest(match[1], _settings_of(kind))}"
    if match := re.search(r"arguments are required: (.*)", message):
        return f"{setting}: {kind} needs {match[1]}: set --{setting}.{match[1].split(',')[0]}"
    if match := re.search(r"Unable to load config ['\"](.*)['\"]", message):
        return f"{setting} must be a mapping of settings, or a file of them, found {_short(match[1])}"
    kinds = re.findall(r"Expected an? ([^\n]*?)(?:\. Got value.*)?(?:\n|$)", inner)
    wanted = dict.fromkeys(word for each in kinds for word in _words(each, found))
    path = re.search(r"Expected a dot import path string: (.*)", inner)
    if re.search("has no attribute|No module named", message) or (path and not {"a number", "a text"} & {*wanted}):
        text = kind if path is None else path[1]
        near = suggest(text.rpartition(".")[2], _classes(setting.rpartition(".")[2]))
        return f"{setting}: there is no class {text!r} for it{near}"
    if "a number" in wanted:
        wanted.pop("a whole number", None)
    *first, last = wanted if {*wanted} - {"null"} else ["the name of a class, or its class_path and init_args"]
    return f"{setting} must be {' or '.join(filter(None, [', '.join(first), last]))}, found {_short(found)}"


def _nested(message: str) -> list[str]:
    """The names of the settings, each within the one before, that the parser was at."""
    found: list[str] = []
    depth = -1
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip(" -"))
        for name in _KEY.findall(line):
            if indent > depth and name not in found:
                found.append(name)
                depth = indent
    return found


def _words(kind: str, value: str) -> list[str]:
    """A type in words; none of what is no value that anybody types."""
    if match := re.match(r"typing\.Literal\[(.*)\]", kind):
        return [each.strip("'") for each in match[1].split(", ")]
    match = re.match(r"<class '(?:.*\.)?(\w+)'>", kind)
    word = _WORDS.get(match[1], "") if match else ""
    if word == "a list" and re.fullmatch(r"[\w.+-]+", value):
        word += f" such as [{value}]"
    return [word] if word else []


def _explain_unknown(first: str, known: Iterable[str]) -> str:
    if first.startswith("-"):
        near = suggest(first.partition("=")[0], [f"--{name}" for name in known], 0.8)
        return f"there is no option {first}{near or ' (--help_all shows all)'}"
    way_out = "options are such as --trainer.max_epochs 5"
    if Path(first).exists():
        way_out = "put quotes around a pattern of files, which the shell replaces otherwise"
    return f"{first!r} belongs to no option: {way_out}"


def suggest(name: str, among: Iterable[str], alike: float = 0.6) -> str:
    """What was meant, or what there is, if that is not much; for the end of a message.

    Args:
        name: What was found.
        among: What there is.
        alike: How alike two names are that may be mistaken for each other, as :mod:`difflib` has it.
    """
    names = sorted(among)
    if near := difflib.get_close_matches(name, names, 1, alike):
        return f": did you mean {near[0]}?"
    return f": choose one of {', '.join(names)}" if 0 < len(names) <= 20 else ""


def _settings_of(kind: str) -> set[str]:
    """The arguments of a class, or nothing if it cannot be found."""
    try:
        place, _, name = kind.rpartition(".")
        classes = getattr(import_module(place), name).__mro__
    except (ImportError, AttributeError, ValueError):
        return set()
    names = {name for each in classes if "__init__" in vars(each) for name in inspect.signature(each).parameters}
    return names - {"args", "kwargs", "settings", "params", "defaults"}


def _classes(setting: str) -> set[str]:
    """The classes that are known by their names alone."""
    if setting == "optimizer":
        return {name for name in vars(torch.optim) if name[:1].isupper()} - {"Optimizer"}
    places = {"source": sources.__all__, "encoder": encoders.__all__, "model": modules.__all__}
    return {name for name in places.get(setting, ()) if name[:1].isupper()} - {"Source", "MultiTaskModule"}


def _short(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
