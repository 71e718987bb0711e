"""Running one cell of a comparison, through the same command line as ``ncmtl fit``."""

import contextlib
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from filelock import FileLock, Timeout

from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.cli import NCMTLCLI, RUN_DIR, make_cli
from lightning_ncmtl.compaction import compact
from lightning_ncmtl.comparison.measure import Measure, calibrated, find_measure
from lightning_ncmtl.comparison.plan import LOG, OUTCOMES, RESULT, Cell, hash_code
from lightning_ncmtl.comparison.reference import REFERENCES, Reference, find_reference
from lightning_ncmtl.comparison.tfidf import TFIDF
from lightning_ncmtl.compatibility import (
    Callback,
    LightningModule,
    Trainer,
    WeightAveraging,
    attributes,
    find_callbacks,
)
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.metrics import MAX_LOGGED_TASKS, UNLABELLED, WORST, TaskMetrics

_LOCK = ".lock"  # held by the process that runs a cell
_Outcome: TypeAlias = dict[str, "np.ndarray[Any, Any]"]  # ``domain``, ``document``, ``correct``: ``[n]`` each
_Found: TypeAlias = tuple[dict[str, Any], dict[str, _Outcome]]  # what goes into the result, and outcomes by stage


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
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed):
                cli.parse_arguments(cli.parser, _arguments(cell))
        except SystemExit as error:  # jsonargparse has printed what is wrong
            text = printed.getvalue().split("error: ")[-1].strip()
            raise InputError(f"the settings of {cell.system!r} cannot be used: {text}") from error
        settings = cli.config.fit
        find_reference(cell, settings.data.source)
        metrics = settings.model.init_args.get("metrics") or []
        measures[find_measure(settings.checkpoint.monitor, metrics).name] = cell.system
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
    data, model = cli.datamodule, find_reference(cell, cli.config.fit.data.source)
    measure = find_measure(attributes(cli.trainer).checkpoint_callback.monitor, cli.model.metrics.scores)
    start = time.monotonic()
    if model is None:
        result, outcomes = _train(cli, cell, measure)
    else:
        result, outcomes = _refer(model, cli, cell.test)
    for stage in outcomes:
        if measure.name not in result[stage]:
            raise InputError(f"no task has {stage} documents of each of its classes, which {measure.name} needs")
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


def _train(cli: NCMTLCLI, cell: Cell, measure: Measure) -> _Found:
    """What is known of the training, and of its best epoch by stage."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if trainer.world_size > 1:
        raise InputError(f"a cell trains on one device, found {trainer.world_size}: set trainer.devices to 1")
    collector, callbacks = _Outcomes(), attributes(trainer).callbacks
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
            result["compact_parameters"] = _count_trained(compact(model, clustering.assignments))
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


def _refer(model: TFIDF | Reference, cli: NCMTLCLI, test: bool) -> _Found:
    """As :func:`_train`, for a reference; of the network there is what all networks have."""
    data, network = cli.datamodule, cli.model
    data.setup("fit")
    documents = _labelled(data, "train")
    model.fit(_inputs(data, documents), *(documents[name].to_numpy() for name in ("task_ids", "labels")))
    if test:
        data.setup("test")
    result: dict[str, Any] = {"parameters": model.parameters, "clusters": {}, "ari": None, "curves": {}}
    if isinstance(model, Reference):  # the scores of TFIDF are no probabilities
        network.metrics = calibrated(network.metrics)
    outcomes = {}
    for stage, split in (("val", "validation"), ("test", "test"))[: 1 + test]:
        documents = _labelled(data, split)
        names = {"domain": "task_ids", "document": "index", "clean": "clean"}
        outcome = {ours: documents[name].to_numpy() for ours, name in names.items() if name in documents}
        tasks, labels = (torch.tensor(documents[name].to_numpy()) for name in ("task_ids", "labels"))
        scores = model.logits(_inputs(data, documents), outcome["domain"], data.num_classes)
        logits = network.masked(torch.tensor(scores), tasks)
        network.metrics.reset()
        network.metrics.update(logits, labels, tasks)
        network.metrics.compute()
        outcomes[stage] = outcome | {"correct": (logits.argmax(1) == labels).numpy()}
        result[stage] = _values(outcomes[stage], data.domains, network.metrics)
    return result | {"last": result["val"]}, outcomes


def _inputs(data: MultiDomainDataModule, documents: pd.DataFrame) -> Any:
    """What a reference reads of documents: texts, or standardised features ``[n, F]``."""
    return documents["text"] if data.scaling is None else data.scaling(pa.array(documents["features"])).numpy()


def _labelled(data: MultiDomainDataModule, split: str) -> pd.DataFrame:
    """The documents of a split that have a label, by number; those with several once in each domain."""
    documents: Any = data.documents(split).to_pandas()  # type: ignore[arg-type]
    known = documents.explode(["task_ids", "labels"]).dropna(subset=["labels"])  # not those without any label
    rows: pd.DataFrame = known.astype({"task_ids": int, "labels": int})
    return rows[rows["labels"] != UNLABELLED].sort_values(["index", "task_ids"])


class _Outcomes(Callback):
    """Collects what the last evaluation says: which documents were classified correctly, and metrics."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts: list[_Outcome] = []

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics: TaskMetrics = pl_module.metrics  # type: ignore[assignment]

    on_test_end = on_validation_end

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        part = {"domain": outputs["task_ids"], "document": outputs["index"], "correct": outputs["correct"]}
        if "clean" in batch:
            part["clean"] = batch["clean"][batch["labels"] != UNLABELLED]
        self.parts.append({name: values.cpu().numpy() for name, values in part.items()})

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    def arrays(self) -> _Outcome:
        """All documents, by number; those with several labels once in each domain."""
        arrays = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.lexsort((arrays["domain"], arrays["document"]))
        return {name: values[order] for name, values in arrays.items()}

    def values(self, domains: list[str]) -> dict[str, float]:
        """As :func:`_values`."""
        return _values(self.arrays(), domains, self.metrics)


def _values(outcome: _Outcome, domains: list[str], metrics: TaskMetrics) -> dict[str, float]:
    """Of each domain, and averages, as :class:`TaskMetrics` names them; metrics from what it has computed last."""
    table = pd.DataFrame(outcome)
    parts = {"accuracy": table} | ({"accuracy_clean": table[table["clean"]]} if "clean" in table else {})
    # Of accuracies not those of TaskMetrics, which are rounded to float32: differences between cells would be, too
    values = {name: part.groupby("domain")["correct"].mean() for name, part in parts.items()}
    values |= {name: pd.Series(metrics.per_task[name].tolist()).dropna() for name in metrics.scores}
    found: dict[str, float] = {}
    for name, each in values.items():
        if name in metrics.scores:
            found["skipped"] = len(domains) - len(each)
        if len(each):
            found |= {name: each.mean(), **{f"{name}/{domains[task]}": value for task, value in each.items()}}
        if len(domains) > MAX_LOGGED_TASKS and name not in metrics.scores:
            found[f"{name}_worst_{WORST}"] = each.nsmallest(WORST).mean()
    return {name: float(value) for name, value in found.items()}


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
