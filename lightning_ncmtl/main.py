"""The command ``ncmtl``: which of its subcommands runs."""

import sys
from importlib import import_module
from typing import Any

from lightning_ncmtl.errors import InputError, find_message, forget_left_out

SUBCOMMANDS = {
    "fit": "Train a model; what comes of it goes to a run directory.",
    "validate": "Evaluate a checkpoint on validation data.",
    "test": "Evaluate a checkpoint on test data.",
    "predict": "Write the predictions of a checkpoint, or of an exported model, to a file.",
    "export": "Save a trained model with one set of weights per cluster.",
    "compare": "Train systems x seeds x folds and report tables, tests and figures.",
}


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; those of the process by default.
    """
    arguments = sys.argv[1:] if args is None else args
    forget_left_out()
    try:
        _run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:  # Lightning exits with 1 after Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(130)
        raise
    except Exception as error:
        if (message := find_message(error)) is None:
            raise
        print(f"ncmtl: error: {message}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> None:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print("usage: ncmtl SUBCOMMAND [options]\n\nNetwork clustering for multi-task learning.\n\nsubcommands:")
        print("\n".join(f"  {name:<10}{about}" for name, about in SUBCOMMANDS.items()))
        print("\nThe options of each: ncmtl SUBCOMMAND --help")
    elif first == "compare":
        _load("lightning_ncmtl.comparison", extra="compare").main(arguments[1:])
    elif first in SUBCOMMANDS or first.startswith("-"):
        _load("lightning_ncmtl.cli", extra="text").main(arguments)
    else:
        raise InputError(f"unknown subcommand {first!r}: choose one of {', '.join(SUBCOMMANDS)}")


def _load(module: str, extra: str) -> Any:
    """Import what a subcommand needs, which other uses of this package do without."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lightning_ncmtl"):
            raise
        raise InputError(
            f"this command needs {error.name}, which is not installed: pip install 'lightning-ncmtl[{extra}]'"
        ) from error
