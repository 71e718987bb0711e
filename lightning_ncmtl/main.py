"""The command ``ncmtl``: which of its subcommands runs."""

import os
import sys
from importlib import import_module
from typing import Any

from lightning_ncmtl import __version__
from lightning_ncmtl.errors import InputError, find_message, forget_left_out
from lightning_ncmtl.usage import SUBCOMMANDS, check, describe, describe_subcommand


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; those of the process by default.
    """
    arguments = sys.argv[1:] if args is None else args
    forget_left_out()
    try:
        _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # what reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tells it once more at its end
        sys.exit(141)
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
    first, *others = arguments or ["--help"]
    if first in ("-h", "--help"):
        print(describe())
    elif first == "--version":
        print(__version__)
    elif first.startswith("-"):  # a configuration for several subcommands
        _load("lightning_ncmtl.cli", extra="text").main(arguments)
    elif first not in SUBCOMMANDS:
        raise InputError(f"unknown subcommand {first!r}: choose one of {', '.join(SUBCOMMANDS)}")
    elif {"-h", "--help"}.intersection(others):
        print(describe_subcommand(first))
    elif first == "doctor":
        _load("lightning_ncmtl.doctor").main(others)
    elif first == "compare":
        _load("lightning_ncmtl.comparison", extra="compare").main(others)
    else:
        others = ["--help" if argument == "--help_all" else argument for argument in others]
        check(first, others)
        _load("lightning_ncmtl.cli", extra="text").main([first, *others])


def _load(module: str, extra: str = "") -> Any:
    """Import what a subcommand needs, which other uses of this package do without."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lightning_ncmtl"):
            raise
        raise InputError(
            f"this command needs {error.name}, which is not installed: pip install 'lightning-ncmtl[{extra}]'"
        ) from error
