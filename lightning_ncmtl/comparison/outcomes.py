"""What an evaluation says of its documents, and of each domain."""

from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer
from lightning_ncmtl.metrics import MAX_LOGGED_TASKS, WORST, TaskMetrics

Outcome: TypeAlias = dict[str, "np.ndarray[Any, Any]"]  # ``domain``, ``document``, ``correct``: ``[n]`` each
Found: TypeAlias = tuple[dict[str, Any], dict[str, Outcome]]  # what goes into a result, and outcomes by stage


class Outcomes(Callback):
    """Collects what the last evaluation says: which documents were classified correctly, and metrics."""

    def __init__(self) -> None:
        self.numbers: list[int] = []  # the tasks that predict these

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts: list[Outcome] = []

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.numbers = pl_module.regression_tasks  # type: ignore[assignment]
        self.metrics: TaskMetrics = pl_module.metrics  # type: ignore[assignment]

    on_test_end = on_validation_end

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        part = {"domain": outputs["task_ids"], "document": outputs["index"], "correct": outputs["correct"]}
        if "clean" in batch:
            part["clean"] = outputs["clean"]
        # Copies: what workers of a loader made is memory that they share, of which there is a limited number
        self.parts.append({name: values.cpu().numpy().copy() for name, values in part.items()})

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    def arrays(self) -> Outcome:
        """All documents, by number; those with several labels once in each domain.

        Where there are domains of both kinds, those whose labels are classes: others are neither right nor wrong.
        """
        arrays = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        if self.numbers and len(self.numbers) < len(self.metrics.task_names):
            classes = ~np.isin(arrays["domain"], self.numbers)
            arrays = {name: values[classes] for name, values in arrays.items()}
        order = np.lexsort((arrays["domain"], arrays["document"]))
        return {name: values[order] for name, values in arrays.items()}

    def values(self, domains: list[str]) -> dict[str, float]:
        """As :func:`values_of`."""
        return values_of(self.arrays(), domains, self.metrics)


def values_of(outcome: Outcome, domains: list[str], metrics: TaskMetrics) -> dict[str, float]:
    """Of each domain, and averages, as :class:`TaskMetrics` names them; metrics from what it has computed last."""
    table = pd.DataFrame(outcome)
    parts = {"accuracy": table} | ({"accuracy_clean": table[table["clean"]]} if "clean" in table else {})
    # Of accuracies not those of TaskMetrics, which are rounded to float32: differences between cells would be, too
    values = {name: part.groupby("domain")["correct"].mean() for name, part in parts.items()}
    values = values if "accuracy" in metrics.per_task else {}
    others = [*metrics.scores, *({"rmse"} & metrics.per_task.keys())]
    values |= {name: pd.Series(metrics.per_task[name].tolist()).dropna() for name in others}
    found: dict[str, float] = {name: float(value) for name, value in metrics.overall.items()}
    for name, each in values.items():
        if len(each):
            found |= {name: each.mean(), **{f"{name}/{domains[task]}": value for task, value in each.items()}}
        if len(domains) > MAX_LOGGED_TASKS and name not in others:
            found[f"{name}_worst_{WORST}"] = each.nsmallest(WORST).mean()
    return {name: float(value) for name, value in found.items()}
