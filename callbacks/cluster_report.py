"""The clusters found: a table on the screen, ``clusters.json`` and pictures in the run directory."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape
from torchmetrics.functional.clustering import adjusted_rand_score

from lightning_ncmtl.callbacks._tables import accuracy_table, cluster_table, write_task_table
from lightning_ncmtl.callbacks.network_clustering import NetworkClusteringCallback
from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer, rank_zero_warn
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.metrics import TaskMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_POINTS = 2000  # of the clustering loss that are kept per layer


class ClusterReport(Callback):
    """At the end of training, shows which tasks share each layer and how well each task does.

    Beside the logs (``trainer.log_dir``) it writes ``clusters.json``::

        {"layers": {NAME: {"num_clusters": K, "assignment": {TASK: k}, "frozen_at_step": int | null,
                           "trace": [[step, [a_0, ..., a_N-1]], ...]}},
         "planted": {TASK: group} | null, "ari": {NAME: float} | null}

    The adjusted Rand index (Hubert & Arabie, 1985) compares the clusters with groups that the data module knows
    (its ``planted_groups``): 1 for the same groups, about 0 for unrelated ones.

    And in ``pictures/``, for TensorBoard, too, if it is among the loggers: ``flow.png``, the tasks' way through the
    layers (the paper, Fig. 4); ``coclustering-NAME.png``, how long each two tasks shared a cluster of a layer; and
    ``history.png``, the clustering loss and the changes of cluster over the steps of training.

    Where a model of this package has more than 50 tasks, it shows some tasks of each cluster, and the tasks with the
    worst accuracies. All go to ``tasks-val.csv`` after every validation, and to ``tasks-test.csv`` after a test: a row
    for each task with ``count`` (of labels), ``accuracy``, ``loss``, perhaps ``accuracy_clean`` and ``planted``, and
    its cluster in each layer. TensorBoard gets a histogram of the accuracies.

    Without a :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` it only shows how well each task does.

    Args:
        pictures: Whether to draw, which needs matplotlib.
        every_n_epochs: Show the table, write ``clusters.json`` and draw (into ``pictures/epoch-NUMBER``) after every
            this many epochs, too.
    """

    def __init__(self, pictures: bool = True, every_n_epochs: int | None = None) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise InputError(f"every_n_epochs must be at least 1, found {every_n_epochs}")
        self.pictures = pictures
        self.every_n_epochs = every_n_epochs
        self._directory: Path | None = None  # known once training starts
        self._losses: dict[str, list[tuple[int, float]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:
            self._losses = {}  # a checkpoint is restored later
        if stage == "fit" and self.pictures and find_spec("matplotlib") is None:
            rank_zero_warn("ClusterReport draws no pictures, which need matplotlib: pip install matplotlib")
            self.pictures = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._directory = Path(trainer.log_dir or trainer.default_root_dir)  # on all ranks: it is broadcast

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep the clustering loss, as often as it is logged; of a long training fewer and fewer points."""
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        clustering = _clustering(trainer)
        for name, (step, loss) in ({} if clustering is None else clustering.clusters.losses).items():
            points = self._losses.setdefault(name, [])
            if step % every or (points and points[-1][0] == step):
                continue
            points.append((step, float(loss)))
            if len(points) > _MAX_POINTS:
                del points[1::2]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs is not None and epoch % self.every_n_epochs == 0
        if trainer.is_global_zero and due and _clustering(trainer) is not None:
            report = self.report(trainer)
            self._write(report)
            self._draw(trainer, f"epoch-{epoch}")
            Console().print(cluster_table(report))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write_tasks(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_tasks(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = state_dict["losses"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted training leaves its clusters, too."""
        if trainer.is_global_zero and self._directory is not None and _clustering(trainer) is not None:
            self._write(self.report(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        console = Console()
        if _clustering(trainer) is not None:
            report = self.report(trainer)
            self._write(report)
            self._draw(trainer)
            console.print(cluster_table(report))
        table = accuracy_table(trainer.callback_metrics, _metrics(pl_module))
        if table.row_count:
            console.print(table)
        console.print(f"Run directory: {escape(str(self._directory))}", soft_wrap=True)

    def _write(self, report: dict[str, Any]) -> None:
        assert self._directory is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "clusters.json").write_text(json.dumps(report) + "\n", encoding="utf-8")

    def _write_tasks(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        metrics = _metrics(pl_module)
        if metrics is None or not metrics.many or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        directory = Path(trainer.log_dir or trainer.default_root_dir)  # on all ranks: it is broadcast
        if not trainer.is_global_zero:
            return
        columns: dict[str, Any] = dict(metrics.per_task)
        report = self.report(trainer)
        if report["planted"] is not None:
            columns["planted"] = [report["planted"].get(task, "") for task in metrics.task_names]
        for name, layer in report["layers"].items():
            if len(layer["assignment"]) == len(metrics.task_names):
                columns[name] = list(layer["assignment"].values())
        directory.mkdir(parents=True, exist_ok=True)
        write_task_table(directory / f"tasks-{stage}.csv", metrics.task_names, columns)
        accuracy = metrics.per_task["accuracy"]
        for experiment in _tensorboards(trainer, "add_histogram"):
            seen = accuracy[~accuracy.isnan()]
            experiment.add_histogram(f"{stage}/accuracy_of_tasks", seen, trainer.global_step)

    def _draw(self, trainer: Trainer, folder: str = "") -> None:
        if not self.pictures or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self._directory is not None
        directory = self._directory / "pictures" / folder
        for name, figure in self._figures(trainer):
            directory.mkdir(parents=True, exist_ok=True)
            figure.savefig(directory / f"{name}.png")
            for experiment in _tensorboards(trainer, "add_figure"):
                experiment.add_figure(f"clusters/{name}", figure, trainer.global_step, close=False)

    def _figures(self, trainer: Trainer) -> "Iterator[tuple[str, Figure]]":
        # matplotlib is slow to import, and need not be there
        from lightning_ncmtl.callbacks.cluster_pictures import draw_coclustering, draw_flow, draw_history

        layers, tasks = self.report(trainer)["layers"], _tasks(trainer)
        found = {name: list(layer["assignment"].values()) for name, layer in layers.items() if layer["assignment"]}
        if not found:
            return
        yield "flow", draw_flow(found, tasks)
        # In layers with one cluster, or one per task, nothing was to be found out.
        traces = {name: layers[name]["trace"] for name in found if 1 < layers[name]["num_clusters"] < len(tasks)}
        for name, trace in traces.items():
            figure = draw_coclustering(trace, tasks, trainer.global_step, name)
            yield f"coclustering-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}", figure
        if traces:
            losses = {name: self._losses.get(name, []) for name in traces}
            yield "history", draw_history(losses, traces, trainer.global_step)

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """The content of ``clusters.json``."""
        clustering = _clustering(trainer)
        layers = {} if clustering is None else clustering.clusters.summarize()
        for layer in layers.values():
            layer["assignment"] = dict(zip(_tasks(trainer), layer["assignment"], strict=False))  # empty before any
        planted = getattr(trainer.datamodule, "planted_groups", None)  # type: ignore[attr-defined]
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


def _metrics(pl_module: LightningModule) -> TaskMetrics | None:
    """Those of a model of this package."""
    metrics = getattr(pl_module, "metrics", None)
    return metrics if isinstance(metrics, TaskMetrics) else None


def _tensorboards(trainer: Trainer, method: str) -> list[Any]:
    """What loggers write with, where it has a method that TensorBoard's has."""
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [experiment for experiment in experiments if hasattr(experiment, method)]


def _clustering(trainer: Trainer) -> NetworkClusteringCallback | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, NetworkClusteringCallback)), None)


def _tasks(trainer: Trainer) -> list[str]:
    """Names of the tasks, from the clustering or, where it has only numbers, from the data module."""
    clustering = _clustering(trainer)
    tasks = [] if clustering is None else clustering.tasks
    domains = getattr(trainer.datamodule, "domains", None)  # type: ignore[attr-defined]
    numbered = tasks == [str(task) for task in range(len(tasks))]
    return list(domains) if numbered and domains and len(domains) == len(tasks) else tasks
