"""Running one cell of a comparison, through the same command line as ``ncmtl fit``."""

import contextlib
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout

from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.cli import NCMTLCLI, RUN_DIR, make_cli
from lightning_ncmtl.compaction import compact
from lightning_ncmtl.comparison.plan import OUTCOMES, RESULT, Cell, hash_code
from lightning_ncmtl.comparison.tfidf import TFIDF
from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer, WeightAveraging
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.metrics import UNLABELLED, TaskMetrics

_SEVERAL_LABELS = "ncmtl compare needs one label per document"
_LOCK = ".lock"  # held by the process that runs a cell
_Arrays: TypeAlias = dict[str, "np.ndarray[Any, Any]"]


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
    for cell in cells:
        reference(cell)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed):
                cli.parse_arguments(cli.parser, _arguments(cell))
        except SystemExit as error:  # jsonargparse has printed what is wrong
            text = printed.getvalue().split("error: ")[-1].strip()
            raise InputError(f"the settings of {cell.system!r} cannot be used: {text}") from error
        folds = cli.config.fit.data.split.folds
        if cell.fold is not None and (folds is None or not 0 <= cell.fold < folds):
            raise InputError(f"the fold {cell.fold} of {cell.system!r} needs data.split.folds above it, found {folds}")


def reference(cell: Cell) -> TFIDF | None:
    """The linear model that a cell consists of, if it is not a network."""
    found = [settings["tfidf"] for settings in cell.settings if "tfidf" in settings]
    try:
        return TFIDF(**(found[-1] or {})) if found else None
    except TypeError as error:
        raise InputError(f"{cell.system!r} has the tfidf settings {found[-1]}: {error}") from error


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
        if file.name not in ("log.txt", _LOCK):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    cli = make_cli(_arguments(cell), _Objects, save_last=False)
    model = reference(cell)
    start = time.monotonic()
    result, outcomes = _train(cli, cell) if model is None else _refer(model, cli.datamodule, cell.test)
    result |= {
        "seconds": time.monotonic() - start,
        "domains": cli.datamodule.domains,
        "folds": cli.datamodule.split.folds,
        "copies": cli.datamodule.copies,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": "CPU" if model is not None else _device(cli.trainer),
            "threads": torch.get_num_threads(),
        },
        "code": hash_code(),
        "fingerprint": cell.fingerprint,
    }
    np.savez_compressed(cell.directory / OUTCOMES, **outcomes)  # type: ignore[arg-type]
    partial = cell.directory / f"{RESULT}.partial"
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(cell.directory / RESULT)  # last, and at once: where it exists, the cell is finished


def _train(cli: NCMTLCLI, cell: Cell) -> tuple[dict[str, Any], _Arrays]:
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if trainer.world_size > 1:
        raise InputError(f"a cell trains on one device, found {trainer.world_size}: set trainer.devices to 1")
    trainer.callbacks.append(_OneLabel())  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    if not trainer.state.finished:
        raise InputError("the training was interrupted")
    clustering = next((c for c in trainer.callbacks if isinstance(c, NetworkClusteringCallback)), None)  # type: ignore[attr-defined]
    report = next(c for c in trainer.callbacks if isinstance(c, ClusterReport)).report(trainer)  # type: ignore[attr-defined]
    result = {
        "last": _metrics(trainer, "val"),
        **_curves(cell.directory / "metrics.csv", data.domains),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "clusters": {
            name: {"num_clusters": layer["num_clusters"], "assignment": list(layer["assignment"].values())}
            for name, layer in report["layers"].items()
        },
        "ari": report["ari"],
    }
    if clustering is not None and clustering.assignments:
        small = compact(model, clustering.assignments)
        result["compact_parameters"] = sum(p.numel() for p in small.parameters() if p.requires_grad)
        first = max(layer["trace"][0][0] for layer in report["layers"].values() if layer["trace"])
        result["clustered_from_epoch"] = 1 + (first - 1) * trainer.current_epoch // max(1, trainer.global_step)
    outcomes: _Arrays = {}
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    # An average of weights is in the checkpoint; the callback would put the last one in its place.
    for callback in [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]:  # type: ignore[attr-defined]
        trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
    for stage in ("val", "test")[: 1 + cell.test]:
        collected = _Outcomes()
        trainer.callbacks.append(collected)  # type: ignore[attr-defined]
        (trainer.validate if stage == "val" else trainer.test)(model, datamodule=data, ckpt_path=best, verbose=False)
        trainer.callbacks.remove(collected)  # type: ignore[attr-defined]
        result[stage] = _metrics(trainer, stage)
        outcomes |= {f"{stage}_{name}": values for name, values in collected.arrays().items()}
    Path(best).unlink()
    return result, outcomes


def _refer(model: TFIDF, data: MultiDomainDataModule, test: bool) -> tuple[dict[str, Any], _Arrays]:
    data.setup("fit")
    documents = _labelled(data, "train")
    model.fit(documents["text"], documents["task_id"], documents["label"])
    result: dict[str, Any] = {"parameters": model.parameters, "clusters": {}, "ari": None, "curves": {}}
    outcomes: _Arrays = {}
    for stage, name in (("val", "validation"), ("test", "test"))[: 1 + test]:
        if stage == "test":
            data.setup("test")
        documents = _labelled(data, name)
        tasks = np.array(documents["task_id"])
        correct = model.predict(documents["text"], tasks) == np.array(documents["label"])
        result[stage] = _accuracies(tasks, correct, data.domains, "accuracy")
        if "clean" in documents.column_names:
            clean = np.array(documents["clean"])
            result[stage] |= _accuracies(tasks[clean], correct[clean], data.domains, "accuracy_clean")
        arrays = {"domain": tasks, "document": np.array(documents["index"]), "correct": correct}
        outcomes |= {f"{stage}_{name}": values for name, values in arrays.items()}
    result["last"] = result["val"]
    return result, outcomes


def _labelled(data: MultiDomainDataModule, split: str) -> Any:
    documents = data.documents(split)  # type: ignore[arg-type]
    if "labels" in documents.column_names:
        raise InputError(_SEVERAL_LABELS)
    return documents.select(np.flatnonzero(np.array(documents["label"]) != UNLABELLED))


class _OneLabel(Callback):
    """Refuses documents that may have several labels, as outcomes are told by the number of the document."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if "rows" in batch:
            raise InputError(_SEVERAL_LABELS)


class _Outcomes(Callback):
    """Collects which documents are classified correctly."""

    def __init__(self) -> None:
        self.parts: list[dict[str, np.ndarray[Any, Any]]] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        part = {"domain": outputs["task_ids"], "document": outputs["index"], "correct": outputs["correct"]}
        self.parts.append({name: values.cpu().numpy() for name, values in part.items()})

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    def arrays(self) -> _Arrays:
        """All documents, by number."""
        arrays = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.argsort(arrays["document"])
        return {name: values[order] for name, values in arrays.items()}


def _metrics(trainer: Trainer, stage: str) -> dict[str, float]:
    """Averages, as they were logged, and the values of all domains, which are not logged where there are many."""
    prefix = f"{stage}/"
    found = {
        name.removeprefix(prefix): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{prefix}accuracy")
    }
    metrics: TaskMetrics = trainer.lightning_module.metrics  # type: ignore[assignment]
    for name in [name for name in metrics.per_task if name.startswith("accuracy")]:
        values = metrics.per_task[name].tolist()
        found |= {f"{name}/{task}": value for task, value in zip(metrics.task_names, values, strict=True)}
    return found


def _accuracies(tasks: Any, correct: Any, domains: list[str], name: str) -> dict[str, float]:
    each = {
        domain: float(correct[tasks == task].mean()) for task, domain in enumerate(domains) if (tasks == task).any()
    }
    return {name: float(np.mean(list(each.values()))), **{f"{name}/{domain}": value for domain, value in each.items()}}


def _device(trainer: Trainer) -> str:
    device: torch.device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _curves(file: Path, domains: list[str]) -> dict[str, Any]:
    """Validation accuracy, of each domain and the average under ``""``, and the epochs behind which it was measured.

    Of many domains only the average is logged.
    """
    columns = {"": "val/accuracy", **{domain: f"val/accuracy/{domain}" for domain in domains}}
    table = pd.read_csv(file).dropna(subset=["val/accuracy"])
    curves = {domain: table[column].tolist() for domain, column in columns.items() if column in table}
    return {"epochs": [int(epoch) + 1 for epoch in table["epoch"]], "curves": curves}


def _arguments(cell: Cell) -> list[str]:
    cell.directory.mkdir(parents=True, exist_ok=True)
    arguments = ["fit"]
    for config in cell.configs:
        arguments += ["--config", config]
    for number, settings in enumerate(cell.settings):
        file = cell.directory / f"settings-{number}.yaml"
        plain = {key: value for key, value in settings.items() if key != "tfidf"}
        file.write_text(yaml.safe_dump(plain), encoding="utf-8")
        arguments += ["--config", str(file)]
    arguments += ["--trainer.devices=1", *cell.arguments, f"--run_dir={cell.directory}"]
    arguments += [] if cell.fold is None else [f"--data.split.fold={cell.fold}"]
    arguments += [f"--trainer.{part}=false" for part in ("enable_progress_bar", "enable_model_summary")]
    return [
        *arguments,
        "--trainer.logger=true",
        f"--checkpoint.dirpath={cell.directory}",
        f"--seed_everything={cell.seed}",
    ]
