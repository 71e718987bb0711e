"""What a comparison consists of: cells, each one system trained with one seed on one fold, or on one split."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from glob import escape, glob
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

import lightning_ncmtl
from lightning_ncmtl.errors import InputError

RESULT, OUTCOMES, LOG = "result.json", "outcomes.npz", "log.txt"
NAMES = ["system", "sweep", "value", "seed", "fold", "split"]  # what tells a cell
Figure = Literal["grid", "line", "recovery"]


@dataclass
class Sweep:
    """One system with one thing varied.

    Args:
        of: The system.
        values: For each value, settings that stack on the others.
        settings: Settings for all values, which stack on those of the system.
        figure: How it is drawn: ``line``, accuracy over the values; ``grid``, accuracy over the numbers of clusters of
            the first two layers; ``recovery``, agreement of the clusters with planted groups over the values.
    """

    of: str
    values: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    figure: Figure = "line"


@dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        system: Name of the system; ``SWEEP: VALUE`` in a sweep.
        seed: Its seed.
        fold: The part of the data that evaluates, where the data has folds.
        split: The seed by which the data is divided, where the comparison is over splits; that of the training, too.
        directory: Where its files go.
        settings: What stacks on the configuration files, one after the other.
        configs: The configuration files.
        arguments: Arguments of ``ncmtl fit`` for all cells.
        test: Whether to evaluate the chosen epoch on the test split, too.
        sweep: The sweep that it belongs to.
        value: The value of the sweep.
    """

    system: str
    seed: int
    fold: int | None
    directory: Path
    settings: tuple[dict[str, Any], ...] = field(hash=False)
    configs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    test: bool = False
    sweep: str | None = None
    value: str | None = None
    split: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        if self.split is not None:
            return f"{self.system}, split {self.split}"
        return f"{self.system}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def part(self) -> int | None:
        """What tells the documents that evaluate: the fold or the split."""
        return self.fold if self.split is None else self.split

    @property
    def key(self) -> str:
        """For the command line: the end of its directory."""
        return "/".join(self.directory.parts[-2:])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide the result, as plain values; not the data files, nor the code."""
        configs = [yaml.safe_load(Path(config).read_text(encoding="utf-8")) for config in self.configs]
        plain = {"configs": configs, "settings": self.settings, "arguments": list(self.arguments), "test": self.test}
        division = {"fold": self.fold} if self.split is None else {"split": self.split}
        made: dict[str, Any] = json.loads(json.dumps({**plain, "seed": self.seed, **division}))
        return made

    def read_result(self) -> dict[str, Any] | None:
        """The result, if the cell has been finished, with the names of the cell.

        Raises:
            InputError: If it was run with other settings.
        """
        file = self.directory / RESULT
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{str(self.directory)!r} holds a result of other settings: delete it, or choose another output"
            )
        return found | {name: getattr(self, name) for name in NAMES}


def plan(
    systems: Mapping[str, dict[str, Any]],
    sweeps: Mapping[str, Sweep],
    common: dict[str, Any],
    configs: Sequence[str],
    arguments: Sequence[str],
    seeds: Sequence[int],
    folds: Sequence[int] | None,
    splits: Sequence[int] | None,
    test: bool,
    output: Path,
) -> list[Cell]:
    """All cells: seed by seed, so that there is something to see early. Cells with equal settings share a directory.

    Splits take the place of seeds and folds.

    Raises:
        InputError: If there is nothing to run, names clash, or a file is missing.
    """
    for config in configs:
        if not Path(config).is_file():
            raise InputError(f"the configuration {config!r} does not exist: correct it in configs")
    if not systems or not seeds or folds == [] or splits == []:
        raise InputError(f"a comparison needs systems, seeds and folds (or null), found {seeds=}, {folds=}, {splits=}")
    for name, values in (("seeds", seeds), ("folds", folds or ()), ("splits", splits or ())):
        if len(set(values)) < len(values):
            raise InputError(f"{name} must differ, found {list(values)}")
    entries: list[dict[str, Any]] = [{"system": name, "settings": (common, own)} for name, own in systems.items()]
    for sweep, what in sweeps.items():
        if what.figure not in get_args(Figure):
            raise InputError(
                f"the sweep {sweep!r} has the figure {what.figure!r}: choose {', '.join(get_args(Figure))}"
            )
        if what.of not in systems:
            raise InputError(f"the sweep {sweep!r} is of {what.of!r}, which is none of {', '.join(systems)}")
        base = (common, systems[what.of], what.settings)
        entries += [
            {"system": f"{sweep}: {value}", "settings": (*base, more or {}), "sweep": sweep, "value": str(value)}
            for value, more in what.values.items()
        ]
    names = [entry["system"] for entry in entries]
    folders = [folder_of(name) for name in names]
    if len(set(folders)) < len(folders) or "" in folders:
        raise InputError(f"names of systems need letters or digits in which they differ, found {names}")
    first: dict[str, str] = {}  # the folder of the first with these settings
    for entry, folder in zip(entries, folders, strict=True):
        entry["directory"] = output / "cells" / first.setdefault(json.dumps(entry["settings"]), folder)
    shared = {"configs": tuple(configs), "arguments": tuple(arguments), "test": test}
    runs: dict[str, dict[str, int | None]] = {
        f"seed-{seed}" + ("" if fold is None else f"-fold-{fold}"): {"seed": seed, "fold": fold}
        for fold in ([None] if folds is None else folds)
        for seed in seeds
    }
    if splits is not None:
        runs = {f"split-{split}": {"seed": split, "fold": None, "split": split} for split in splits}
    return [
        Cell(**entry | shared | run | {"directory": entry["directory"] / last})
        for last, run in runs.items()
        for entry in entries
    ]


def folder_of(name: str) -> str:
    """A name as it can stand in a path."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def hash_code() -> str:
    """The version of this package, and a hash of its source: what results say of the code that made them."""
    # Of a checkout, too, in which some folders are links: unlike pathlib, glob follows them.
    files = sorted(glob(f"{escape(str(Path(lightning_ncmtl.__file__).parent))}/**/*.py", recursive=True))
    digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    return f"{lightning_ncmtl.__version__}+{digest[:12]}"
