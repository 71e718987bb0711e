"""Running one cell of a comparison, through the same command line as ``ncmtl fit``."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout

from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.cli import NCMTLCLI, RUN_DIR, make_cli
from lightning_ncmtl.compaction import compact
from lightning_ncmtl.comparison.measure import Measure, calibrated, find_measure
from lightning_ncmtl.comparison.outcomes import Found, Outcomes
from lightning_ncmtl.comparison.plan import LOG, OUTCOMES, RESULT, Cell, hash_code
from lightning_ncmtl.comparison.reference import REFERENCES, find_reference, refer
from lightning_ncmtl.compatibility import (
    LightningModule,
    Trainer,
    WeightAveraging,
    attributes,
    find_callbacks,
)
from lightning_ncmtl.errors import InputError

_LOCK = ".lock"  # held by the process that runs a cell


class _Objects(NCMTLCLI):
    """Makes trainer, model and data, and leaves the rest to the caller."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class _Settings(_Objects):
    """Only parses."""

    def instantiate_classes(self) -> None:
        pass


def check(cells: Iterable[Cell]) -> None:
    """Parse the settings of cells.

    Raises:
        InputError: If they cannot be used.
    """
    cli = make_cli(["fit"], _Settings)  # one for all, as it takes longer to make than to parse
    measures: dict[str, str] = {}
    for cell in cells:
        try:
            cli.parse_arguments(cli.parser, _arguments(cell))
        except InputError as error:
            raise InputError(f"the settings of {cell.system!r} cannot be used: {error}") from error
        settings = cli.config.fit
        find_reference(cell, settings.data)
        metrics = settings.model.init_args.get("metrics") or []
        classes = settings.data.labels.regression is not True
        measures[find_measure(settings.checkpoint.monitor, metrics, classes).name] = cell.system
        split = settings.data.split
        if cell.split is not None and split.folds is None and split.test_size is None and split.validation_size >= 1:
            raise InputError(
                f"splits need documents that are divided at random, found data.split.validation_size "
                f"{split.validation_size} of {cell.system!r}: set it, or data.split.test_size, to a share such as 0.2"
            )
        folds = split.folds
        if cell.fold is not None and (folds is None or not 0 <= cell.fold < folds):
            raise InputError(f"the fold {cell.fold} of {cell.system!r} needs data.split.folds above it, found {folds}")
    if len(measures) > 1:
        found = ", ".join(f"{name} ({system})" for name, system in measures.items())
        raise InputError(f"systems are compared by one metric, found {found}: set checkpoint.monitor in common")


def run(cell: Cell) -> None:
    """Train, choose the best epoch on validation documents, evaluate it, and write the result.

    Raises:
        InputError: If the settings or the data cannot be used, or another process runs the cell.
    """
    cell.directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cell.directory / _LOCK, timeout=0):
            _run(cell)
    except Timeout as error:
        raise InputError(f"another process runs {cell.name}: wait for it") from error
    finally:
        os.environ.pop(RUN_DIR, None)  # which the command line has set for processes of its own


def _run(cell: Cell) -> None:
    for file in cell.directory.iterdir():  # of an attempt that was cut short
        if file.name == LOG:
            os.truncate(file, 0)  # by now, no other process writes to it
        elif file.name != _LOCK:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    cli = make_cli(_arguments(cell), _Objects, save_last=False)
    data, model = cli.datamodule, find_reference(cell, cli.config.fit.data)
    monitor = attributes(cli.trainer).checkpoint_callback.monitor
    measure = find_measure(monitor, cli.model.metrics.scores, classes=cli.model.num_classes > 0)
    start = time.monotonic()
    if model is None:
        result, outcomes = _train(cli, cell, measure)
    else:
        result, outcomes = refer(model, data, cli.model, cell.test)
    for stage in outcomes:
        if measure.name not in result[stage]:
            what = "documents of each of its classes, or two different numbers"
            raise InputError(f"no task has {stage} {what}, which {measure.name} needs")
    result |= {
        "measure": asdict(measure),
        "seconds": time.monotonic() - start,
        "domains": data.domains,
        "folds": data.split.folds,
        "copies": data.copies,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": "CPU" if model is not None else _device(cli.trainer),
            "threads": torch.get_num_threads(),
        },
        "code": hash_code(),
        "fingerprint": cell.fingerprint,
    }
    if data.source.multi_label:  # the outcome of a document in each of its domains has a number of its own
        for found in outcomes.values():
            found["document"] = found["document"] * data.num_tasks + found["domain"]
    arrays: Any = {f"{stage}_{name}": values for stage, found in outcomes.items() for name, values in found.items()}
    np.savez_compressed(cell.directory / OUTCOMES, **arrays)
    partial = cell.directory / f"{RESULT}.partial"
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(cell.directory / RESULT)  # last, and at once: where it exists, the cell is finished


def _train(cli: NCMTLCLI, cell: Cell, measure: Measure) -> Found:
    """What is known of the training, and of its best epoch by stage."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if trainer.world_size > 1:
        raise InputError(f"a cell trains on one device, found {trainer.world_size}: set trainer.devices to 1")
    collector, callbacks = Outcomes(), attributes(trainer).callbacks
    callbacks.append(collector)
    trainer.fit(model, datamodule=data)
    if not trainer.state.finished:
        raise InputError("the training was interrupted")
    report = find_callbacks(trainer, ClusterReport)[0].report(trainer)
    result = {
        "last": collector.values(data.domains),
        **_curves(cell.directory / "metrics.csv", data.domains, measure.name),
        "parameters": _count_trained(model),
        "clusters": {
            name: {"num_clusters": layer["num_clusters"], "assignment": list(layer["assignment"].values())}
            for name, layer in report["layers"].items()
        },
        "evidence": report["evidence"],
        "ari": report["ari"],
    }
    for clustering in find_callbacks(trainer, NetworkClusteringCallback):
        if clustering.assignments:
            result["compact_parameters"] = _count_trained(compact(model, clustering.assignments, clustering.targets))
            first = max(layer["trace"][0][0] for layer in report["layers"].values() if layer["trace"])
            result["clustered_from_epoch"] = 1 + (first - 1) * trainer.current_epoch // max(1, trainer.global_step)
    best = attributes(trainer).checkpoint_callback.best_model_path
    result["best_epoch"] = 1 + torch.load(best, map_location="cpu", weights_only=True, mmap=True)["epoch"]
    # An average of weights is in the checkpoint; the callback would put the last one in its place.
    for averaging in find_callbacks(trainer, WeightAveraging):
        callbacks.remove(averaging)
    model.metrics = calibrated(model.metrics)
    outcomes = {}
    for stage, evaluate in (("val", trainer.validate), ("test", trainer.test))[: 1 + cell.test]:
        evaluate(model, datamodule=data, ckpt_path=best, verbose=False)
        outcomes[stage], result[stage] = collector.arrays(), collector.values(data.domains)
    Path(best).unlink()
    return result, outcomes


def _count_trained(model: LightningModule) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _device(trainer: Trainer) -> str:
    device: torch.device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _curves(file: Path, domains: list[str], name: str) -> dict[str, Any]:
    """A metric in validation, of each domain and the average under ``""``, and the epochs behind which it was measured.

    Of many domains only the average is logged. What was not measured is left out.
    """
    columns = {"": f"val/{name}", **{domain: f"val/{name}/{domain}" for domain in domains}}
    table = pd.read_csv(file).dropna(subset=[f"val/{name}"])
    curves = {domain: table[column].tolist() for domain, column in columns.items() if column in table}
    return {"epochs": [int(epoch) + 1 for epoch in table["epoch"]], "curves": curves}


def _arguments(cell: Cell) -> list[str]:
    cell.directory.mkdir(parents=True, exist_ok=True)
    configs = list(cell.configs)
    for number, settings in enumerate(cell.settings):
        file = cell.directory / f"settings-{number}.yaml"
        plain = {key: value for key, value in settings.items() if key not in REFERENCES}
        file.write_text(yaml.safe_dump(plain), encoding="utf-8")
        configs.append(str(file))
    return [
        "fit",
        *(f"--config={config}" for config in configs),
        "--trainer.devices=1",
        *cell.arguments,
        f"--run_dir={cell.directory}",
        *([] if cell.fold is None else [f"--data.split.fold={cell.fold}"]),
        *([] if cell.split is None else [f"--data.split.seed={cell.split}"]),
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=true",
        f"--checkpoint.dirpath={cell.directory}",
        f"--seed_everything={cell.seed}",
    ]
