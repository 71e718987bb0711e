"""``ncmtl compare``: systems x seeds x folds, or systems x splits, in tables, tests and figures."""

import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from lightning_ncmtl.cli import find_option
from lightning_ncmtl.comparison.cell import check, run
from lightning_ncmtl.comparison.plan import Cell, Sweep, plan
from lightning_ncmtl.comparison.report import write_report
from lightning_ncmtl.comparison.runner import find_unfinished, run_all
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.wrong_settings import parse, read_file, suggest


def compare(
    systems: dict[str, dict[str, Any] | None],
    output: str,
    configs: list[str] | None = None,
    common: dict[str, Any] | None = None,
    sweeps: dict[str, Sweep] | None = None,
    seeds: list[int] | None = None,
    folds: list[int] | None = None,
    splits: int | list[int] | None = None,
    baseline: str | None = None,
    test: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
    cell: str | None = None,
    arguments: list[str] | None = None,
    command: Sequence[str] = (),
) -> None:
    """Train every system with every seed on every fold, and report.

    Each training is a cell, with a directory of its own in the output. Finished cells are kept: the same command goes
    on where it was stopped, and with more seeds, systems or folds it runs only what is new. The best
    epoch of a cell is chosen by what its checkpoint monitors. Where that is one of the model's metrics, such as
    ``val/AUROC``, systems are compared by it, else by accuracy.

    Args:
        systems: For each system its settings, which stack on ``common``: those of ``ncmtl fit``; or, for a
            reference from outside, ``tfidf`` with the arguments of :class:`lightning_ncmtl.comparison.tfidf.TFIDF` (of
            texts), or ``reference`` with those of :class:`lightning_ncmtl.comparison.reference.Reference` (features).
        output: Folder for everything.
        configs: Configuration files of ``ncmtl fit`` for all systems, which stack.
        common: Settings for all systems, which stack on these.
        sweeps: One system with one thing varied; their cells are in ``results.csv`` and in figures of their own.
        seeds: Seeds of the trainings; 1, 2 and 3 by default.
        folds: Which folds (``data.split.fold``) evaluate in turn, where ``data.split.folds`` divides the documents.
        splits: In the place of seeds and folds, how often to divide the documents anew, at random: 10 for the splits 1
            to 10, or their numbers. Each number is ``data.split.seed`` and the seed of the training, of all systems.
        baseline: The system that figures compare the others with; the first by default.
        test: Evaluate the chosen epoch of each cell on the test split, once, and report that instead of validation.
        jobs: Trainings at a time, each in a process of its own with its share of the cores.
        dry_run: Run nothing, but print the commands of the cells that are not finished, a line each. When all have run,
            the comparison without it reports.
        cell: Run this cell and nothing else, without a report; its name is that of its folder, such as
            ``ncmtl/seed-1``.
        arguments: Arguments of ``ncmtl fit`` for all cells; on the command line behind ``--``.
        command: The arguments of this command, of which those of each cell are made.

    Raises:
        InputError: Before anything is trained, if a setting cannot be used; behind the report, if a cell failed.
    """
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, found {jobs}")
    if baseline is not None and baseline not in systems:
        raise InputError(f"baseline must be one of the systems {', '.join(systems)}, found {baseline!r}")
    if splits is not None and (seeds is not None or folds is not None):
        raise InputError(
            f"splits take the place of seeds and folds, found {splits=}, {seeds=}, {folds=}: leave out one or the other"
        )
    cells = plan(
        systems={name: settings or {} for name, settings in systems.items()},
        sweeps=sweeps or {},
        common=common or {},
        configs=configs or [],
        arguments=arguments or [],
        seeds=[1, 2, 3] if seeds is None else seeds,
        folds=folds,
        splits=list(range(1, splits + 1)) if isinstance(splits, int) else splits,
        test=test,
        output=Path(output),
    )
    if cell is not None:
        _run_one(cells, cell)
        return
    unfinished = find_unfinished(cells)
    check({one.system: one for one in unfinished}.values())
    if dry_run:
        for one in unfinished:
            print(shlex.join(_command_of(one, command)))
        return
    console = Console()
    failures = run_all(cells, lambda one: _command_of(one, command), jobs, console)
    finished = [one for one in cells if one.read_result() is not None]
    if any(one.sweep is None for one in finished):
        write_report(finished, sweeps or {}, Path(output), baseline or next(iter(systems)), console)
    if failures:
        name, failure = next(iter(failures.items()))
        raise InputError(f"{len(failures)} of {len(cells)} cells failed, the first is {name}: {failure}")


def _run_one(cells: Sequence[Cell], key: str) -> None:
    found = [one for one in cells if one.key == key]
    if not found:
        raise InputError(f"there is no cell {key!r}: choose one of {', '.join(dict.fromkeys(c.key for c in cells))}")
    if found[0].read_result() is not None:
        raise InputError(f"the cell {key!r} is finished: delete {str(found[0].directory)!r} to run it anew")
    run(found[0])


def _command_of(cell: Cell, command: Sequence[str]) -> list[str]:
    own = [word for word in command if word != "--dry_run"]
    behind = own.index("--") if "--" in own else len(own)
    return [sys.executable, "-m", "lightning_ncmtl", "compare", *own[:behind], "--cell", cell.key, *own[behind:]]


def main(args: list[str]) -> None:
    """Run ``ncmtl compare``.

    Args:
        args: Its arguments; those behind ``--`` go to every ``ncmtl fit``.

    Raises:
        InputError: If the configuration cannot be used.
    """
    about = "Systems x seeds x folds (or x splits), in tables and figures. Arguments behind -- go to every ncmtl fit."
    parser = ArgumentParser(prog="ncmtl compare", description=about, exit_on_error=False)
    parser.add_argument("--config", required=True, help="A YAML file with systems, common, sweeps and all below.")
    parser.add_function_arguments(compare, skip={"systems", "common", "sweeps", "dry_run", "arguments", "command"})
    about = "Run nothing, but print the command of each cell that is not finished: for Slurm, GNU parallel or a look."
    parser.add_argument("--dry_run", action="store_true", help=about)
    behind = args.index("--") if "--" in args else len(args)
    # Settings for ncmtl fit are not parsed here: class paths in them would be completed with defaults.
    config, rest = _read(find_option("--config", args[:behind]))
    parser.set_defaults(config)
    values = parse(parser, args[:behind], parser).as_dict()
    values.pop("config")
    try:
        compare(**values, **rest, arguments=args[behind + 1 :], command=args)
    except KeyboardInterrupt:
        print("ncmtl: interrupted; the same command goes on with the next cell", file=sys.stderr)
        sys.exit(130)


def _read(file: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration: what the parser checks, and the settings for ``ncmtl fit``."""
    if file is None:
        return {}, {}  # --help, or an error that the parser reports
    content = read_file(file)
    if not isinstance(content.get("systems"), dict):
        raise InputError(f"the configuration {file!r} needs systems, a mapping of names to settings")
    known = inspect.signature(compare).parameters.keys() - {"arguments", "command"}
    if unknown := content.keys() - known:
        meant = suggest(min(unknown), known)
        raise InputError(
            f"unknown settings in the configuration of the comparison: {', '.join(sorted(unknown))}{meant}"
        )
    rest = {name: content.pop(name, None) or {} for name in ("systems", "common", "sweeps")}
    for name, value in [*rest.items(), *rest["systems"].items(), *rest["sweeps"].items()]:
        if not isinstance(name, str) or not isinstance(value, dict | None):
            raise InputError(f"{file!r} needs a name and a mapping of settings, found {name!r}: {str(value)[:60]}")
    try:
        rest["sweeps"] = {name: Sweep(**sweep) for name, sweep in rest["sweeps"].items()}
    except TypeError as error:
        raise InputError(f"a sweep needs of, values and perhaps figure: {error}") from error
    return content, rest
