"""The clusters found: a table on the screen; a page, ``clusters.json`` and pictures in the run directory."""

import json
import re
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lightning_ncmtl.callbacks._tables import cluster_table, evidence_line, score_table, write_task_table
from lightning_ncmtl.callbacks.network_clustering import NetworkClusteringCallback
from lightning_ncmtl.callbacks.page.follow import RunPage
from lightning_ncmtl.clustering.evidence import Evidence
from lightning_ncmtl.compatibility import (
    Callback,
    LightningModule,
    Trainer,
    attributes,
    find_callbacks,
    rank_zero_warn,
)
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.metrics import TaskMetrics
from lightning_ncmtl.whole_files import whole

_MAX_POINTS = 2000  # of the clustering loss that are kept per layer


class ClusterReport(Callback):
    """At the end of training, shows which tasks share each layer and how well each task does.

    Beside the logs (``trainer.log_dir``) it writes ``report.html``, a page for people in one file, which needs neither
    a network nor matplotlib: what was found and how sure that is, what was trained, what each task reached, the
    clusters, curves of the loss and of all that is logged as ``val...`` or ``train...``, and what to do next. After an
    evaluation by the same trainer it has those values, too; in a run directory of its own, an evaluation writes its
    own page.

    And for programs ``clusters.json``::

        {"layers": {NAME: {"num_clusters": K, "assignment": {TASK: k}, "frozen_at_step": int | null,
                           "trace": [[step, [a_0, ..., a_N-1]], ...]}},
         "evidence": {"num_clusters": K, "p_value": float, "agreement": float, "agreement_error": float | null,
                      "gains": {"2": float, ...}} | null,
         "planted": {TASK: group} | null, "ari": {NAME: float} | null}

    The adjusted Rand index (Hubert & Arabie, 1985) compares the clusters with groups that the data module knows
    (its ``planted_groups``): 1 for the same groups, about 0 for unrelated ones.

    After a shared warm-up, ``evidence`` says how sure the clusters are, for all layers together (see
    :class:`lightning_ncmtl.clustering.evidence.Evidence`): the number of clusters that there is evidence for, which
    need not be that of a layer whose number was given; its p-value; the agreement of both halves of the data and the
    standard error of it, null where tasks are too few; and the gain of each number of clusters tried. The table says it
    in a line under its title.

    In ``pictures/``, and for TensorBoard, too, if it is among the loggers: ``flow.png``, the tasks' way through the
    layers (the paper, Fig. 4); ``coclustering-NAME.png``, how long each two tasks shared a cluster of a layer; and
    ``history.png``, the clustering loss and the changes of cluster over the steps of training. Where there is evidence,
    ``evidence.png`` shows how similar the tasks are in each half of the data, and the clusters of the first layer in
    which there was a choice.

    Where a model of this package has more than 50 tasks, it shows some tasks of each cluster, and the tasks with the
    worst accuracies. All go to ``tasks-val.csv`` after every validation, and to ``tasks-test.csv`` after a test: a row
    for each task with ``count`` (of labels), ``accuracy`` or ``rmse``, ``loss``, perhaps ``accuracy_clean`` and
    ``planted``, and its cluster in each layer. TensorBoard gets a histogram of the accuracies.

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
        self._page = RunPage()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        fresh = stage == "fit" and trainer.global_step == 0
        if fresh:
            self._losses = {}  # a checkpoint is restored later
        self._page.begin(stage, fresh)
        if (number := len(_clusterings(trainer))) > 1:
            raise InputError(
                f"ClusterReport shows one NetworkClusteringCallback, found {number}: leave it out, and read their "
                "assignments"
            )
        if stage == "fit" and self.pictures and find_spec("matplotlib") is None:
            rank_zero_warn("ClusterReport draws no pictures, which need matplotlib: pip install matplotlib")
            self.pictures = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._directory = Path(trainer.log_dir or trainer.default_root_dir)  # on all ranks: it is broadcast

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the clustering loss, as often as it is logged; of a long training fewer and fewer points."""
        self._page.history.add_loss(outputs, trainer.accumulate_grad_batches)
        every = max(1, attributes(trainer).log_every_n_steps)
        for clustering in _clusterings(trainer):
            for name, (step, loss) in clustering.clusters.losses.items():
                points = self._losses.setdefault(name, [])
                if step % every == 0 and not (points and points[-1][0] == step):
                    points.append((step, float(loss)))
                    if len(points) > _MAX_POINTS:
                        del points[1::2]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_logged(trainer, pl_module, "train")  # of the epoch before: it is known behind its end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_logged(trainer, pl_module, "train")

    def _keep_logged(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._page.keep_logged(trainer, _metrics(pl_module), stage, _tasks(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        self._page.history.end_epoch(epoch, trainer.global_step)
        if self.every_n_epochs is not None and epoch % self.every_n_epochs == 0:
            self._show(trainer, f"epoch-{epoch}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._write_tasks(trainer, pl_module, "val")
        self._page.keep_scores(trainer, _metrics(pl_module), "val", _tasks(trainer))
        if trainer.state.fn == "fit":
            self._keep_logged(trainer, pl_module, "val")
        else:
            self._write_page(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_tasks(trainer, pl_module, "test")
        self._page.keep_scores(trainer, _metrics(pl_module), "test", _tasks(trainer))
        self._write_page(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses, "history": self._page.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = state_dict["losses"]
        if "history" in state_dict:  # checkpoints of former days have none
            self._page.history.load_state_dict(state_dict["history"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted training leaves its clusters, too."""
        if trainer.is_global_zero and self._directory is not None and _clusterings(trainer):
            self._write(self.report(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._show(trainer)
            console = Console()
            table = score_table(trainer.callback_metrics, _metrics(pl_module))
            if table.row_count:
                console.print(table)
            console.print(f"Run directory: {escape(str(self._directory))}", soft_wrap=True)
        self._write_page(trainer, pl_module)

    def _show(self, trainer: Trainer, folder: str = "") -> None:
        """Write, draw and print the clusters."""
        if trainer.is_global_zero and _clusterings(trainer):
            report = self.report(trainer)
            self._write(report)
            if self.pictures and not attributes(trainer).fast_dev_run:
                self._draw(trainer, report, folder)
            Console().print(cluster_table(report))

    def _write(self, report: dict[str, Any]) -> None:
        assert self._directory is not None
        with whole(self._directory / "clusters.json") as part:
            part.write_text(json.dumps(report) + "\n", encoding="utf-8")

    def _write_page(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = Path(trainer.log_dir or trainer.default_root_dir)  # on all ranks: it is broadcast
        if not trainer.is_global_zero or attributes(trainer).fast_dev_run:
            return
        evidence = _find_evidence(trainer)
        similarities = None if evidence is None else evidence.similarities.double().numpy()
        report, tasks = self.report(trainer), _tasks(trainer)
        file = self._page.write(trainer, pl_module, directory, report, tasks, similarities, self._losses)
        Console().print(f"Report: {escape(str(file))}", soft_wrap=True)

    def _write_tasks(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        metrics = _metrics(pl_module)
        if metrics is None or not metrics.many or attributes(trainer).fast_dev_run:
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
        write_task_table(directory / f"tasks-{stage}.csv", metrics.task_names, columns)
        for name in {"accuracy", "rmse"} & metrics.per_task.keys():
            value = metrics.per_task[name]
            for experiment in _tensorboards(trainer, "add_histogram"):
                experiment.add_histogram(f"{stage}/{name}_of_tasks", value[~value.isnan()], trainer.global_step)

    def _draw(self, trainer: Trainer, report: dict[str, Any], folder: str) -> None:
        # matplotlib is slow to import, and need not be there
        from lightning_ncmtl.callbacks.cluster_pictures import draw_coclustering, draw_flow, draw_history
        from lightning_ncmtl.callbacks.evidence_picture import draw_evidence

        layers, tasks, step = report["layers"], _tasks(trainer), trainer.global_step
        found = {name: list(layer["assignment"].values()) for name, layer in layers.items() if layer["assignment"]}
        if not found:
            return
        figures = {"flow": draw_flow(found, tasks)}
        # In layers with one cluster, or one per task, nothing was to be found out.
        traces = {name: layers[name]["trace"] for name in found if 1 < layers[name]["num_clusters"] < len(tasks)}
        for name, trace in traces.items():
            file = f"coclustering-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
            figures[file] = draw_coclustering(trace, tasks, step, name)
        if traces:
            figures["history"] = draw_history({name: self._losses.get(name, []) for name in traces}, traces, step)
        if (evidence := _find_evidence(trainer)) is not None:
            assignment = next(found[name] for name in [*traces, *found])
            figures["evidence"] = draw_evidence(evidence, assignment, tasks, evidence_line(report))
        assert self._directory is not None
        directory = self._directory / "pictures" / folder
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(directory / f"{name}.png")
            for experiment in _tensorboards(trainer, "add_figure"):
                experiment.add_figure(f"clusters/{name}", figure, step, close=False)

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """The content of ``clusters.json``."""
        layers = {name: layer for each in _clusterings(trainer) for name, layer in each.clusters.summarize().items()}
        for layer in layers.values():
            layer["assignment"] = dict(zip(_tasks(trainer), layer["assignment"], strict=False))  # empty before any
        planted = getattr(attributes(trainer).datamodule, "planted_groups", None)
        ari = None
        if planted is not None:
            from sklearn.metrics import adjusted_rand_score  # slow to import

            ari = {
                name: float(adjusted_rand_score(list(planted.values()), list(layer["assignment"].values())))
                for name, layer in layers.items()
                if layer["assignment"]
            }
        evidence = _find_evidence(trainer)
        return {"layers": layers, "evidence": evidence and _summarize(evidence), "planted": planted, "ari": ari}


def _metrics(pl_module: LightningModule) -> TaskMetrics | None:
    """Those of a model of this package."""
    metrics = getattr(pl_module, "metrics", None)
    return metrics if isinstance(metrics, TaskMetrics) else None


def _tensorboards(trainer: Trainer, method: str) -> list[Any]:
    """What loggers write with, where it has a method that TensorBoard's has."""
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [experiment for experiment in experiments if hasattr(experiment, method)]


def _clusterings(trainer: Trainer) -> list[NetworkClusteringCallback]:
    """The clustering, if there is one; of two, the report would not know which it is of."""
    return find_callbacks(trainer, NetworkClusteringCallback)


def _find_evidence(trainer: Trainer) -> Evidence | None:
    return next((each.clusters.evidence for each in _clusterings(trainer)), None)


def _summarize(evidence: Evidence) -> dict[str, Any]:
    """Plain values, without the matrices."""
    return {
        "num_clusters": evidence.num_clusters,
        "p_value": evidence.p_value,
        "agreement": evidence.agreement,
        "agreement_error": evidence.agreement_error if isfinite(evidence.agreement_error) else None,
        "gains": {str(number): gain for number, gain in evidence.gains.items()},
    }


def _tasks(trainer: Trainer) -> list[str]:
    """Names of the tasks, from the clustering or, where it has only numbers, from the data module."""
    tasks = [task for clustering in _clusterings(trainer) for task in clustering.tasks]
    domains = getattr(attributes(trainer).datamodule, "domains", None)
    numbered = tasks == [str(task) for task in range(len(tasks))]
    return list(domains) if numbered and domains and len(domains) == len(tasks) else tasks
