"""The clusters found, as a table on the screen and as ``clusters.json`` in the run directory."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torchmetrics.functional.clustering import adjusted_rand_score

from lightning_ncmtl._lightning import Callback, LightningModule, Trainer
from lightning_ncmtl.callbacks.network_clustering import NetworkClusteringCallback


class ClusterReport(Callback):
    """At the end of training, shows which tasks share each layer and how well each task does.

    It writes ``clusters.json`` beside the logs (``trainer.log_dir``)::

        {"layers": {NAME: {"num_clusters": K, "assignment": {TASK: k}, "frozen_at_step": int | null,
                           "trace": [[step, [a_0, ..., a_N-1]], ...]}},
         "planted": {TASK: group} | null, "ari": {NAME: float} | null}

    The adjusted Rand index (Hubert & Arabie, 1985) compares the clusters with groups that the data module knows
    (its ``planted_groups``): 1 for the same groups, about 0 for unrelated ones.
    """

    def __init__(self) -> None:
        self._directory: Path | None = None  # known once training starts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._directory = Path(trainer.log_dir or trainer.default_root_dir)  # on all ranks: it is broadcast

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted training leaves its clusters, too."""
        if trainer.is_global_zero and self._directory is not None:
            self._write(self.report(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        report = self.report(trainer)
        self._write(report)
        console = Console()
        console.print(_cluster_table(report))
        if accuracy := _accuracies(trainer):
            console.print(_accuracy_table(accuracy))
        console.print(f"Run directory: {escape(str(self._directory))}", soft_wrap=True)

    def _write(self, report: dict[str, Any]) -> None:
        assert self._directory is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "clusters.json").write_text(json.dumps(report) + "\n", encoding="utf-8")

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """The content of ``clusters.json``."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callback = next((c for c in callbacks if isinstance(c, NetworkClusteringCallback)), None)
        layers = {} if callback is None else callback.summary()
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        planted = getattr(datamodule, "planted_groups", None)
        tasks = getattr(datamodule, "domains", None)
        for layer in layers.values():
            found = layer["assignment"]
            names = tasks if tasks and len(tasks) == len(found) else [str(task) for task in range(len(found))]
            layer["assignment"] = dict(zip(names, found, strict=True))
        ari = None
        if planted is not None:
            groups = torch.tensor(list(planted.values()))
            with torch.sparse.check_sparse_tensor_invariants(False):  # else the metric's sparse matrix warns
                ari = {
                    name: float(adjusted_rand_score(torch.tensor(list(layer["assignment"].values())), groups))
                    for name, layer in layers.items()
                    if layer["assignment"]
                }
        return {"layers": layers, "planted": planted, "ari": ari}


def _accuracies(trainer: Trainer) -> dict[str, float]:
    """Accuracy of the last validation, by task; the average under ``""``."""
    prefix = "val/accuracy"
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix).removeprefix("/"): value for name, value in metrics.items()}


def _cluster_table(report: dict[str, Any]) -> Table:
    table = Table("layer", "clusters", title="Clusters", title_justify="left")
    for name, layer in report["layers"].items():
        heading = [name, f"{layer['num_clusters']} clusters"]
        if report["ari"] and name in report["ari"]:
            heading.append(f"ARI {report['ari'][name]:.3f}")
        if layer["frozen_at_step"] is not None:
            heading.append(f"frozen at step {layer['frozen_at_step']}")
        members: dict[int, list[str]] = {}
        for task, cluster in layer["assignment"].items():
            members.setdefault(cluster, []).append(task)
        inner = Table.grid(padding=(0, 2))
        if not members:
            inner.add_row("not clustered")
        elif len(members) == len(layer["assignment"]):
            inner.add_row("each task by itself")
        else:
            for cluster, tasks in sorted(members.items()):
                inner.add_row(str(cluster), escape(", ".join(tasks)))
        table.add_row("\n".join(heading), inner)
        table.add_section()
    return table


def _accuracy_table(accuracy: dict[str, float]) -> Table:
    table = Table("task", "accuracy", title="Validation", title_justify="left")
    for task, value in sorted(accuracy.items()):
        if task:
            table.add_row(escape(task), f"{value:.3f}")
    table.add_section()
    if "" in accuracy:
        table.add_row("average", f"{accuracy['']:.3f}")
    return table
