from typing import Any

import numpy as np
import pytest
import torch

from lightning_ncmtl.comparison.outcomes import Outcomes, values_of
from lightning_ncmtl.metrics import TaskMetrics


def test_outcomes_are_those_of_the_step() -> None:
    """Which leaves out documents without a label, as the batch does not."""
    collected: Any = Outcomes()
    labels = torch.tensor([0, -1, 1])
    batch = {"task_ids": torch.tensor([0, 1, 1]), "labels": labels, "clean": torch.tensor([True, True, False])}
    collected.on_validation_start(None, None)
    clean = batch["clean"][labels >= 0]
    step = {"index": labels, "task_ids": labels, "correct": labels, "clean": clean}
    collected.on_validation_batch_end(None, None, step, batch, 0)
    collected.on_test_start(None, None)  # of the last evaluation only
    for index in ([7, 3], [5, 3]):  # the third has two labels
        task_ids = torch.tensor([0, 1]) if index[0] == 7 else torch.tensor([0, 0])
        step = {"index": torch.tensor(index), "task_ids": task_ids, "correct": torch.tensor([True, False])}
        step["clean"] = clean
        collected.on_test_batch_end(None, None, step, batch, 0)
    arrays = collected.arrays()
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "domain": [0, 1, 0, 0],
        "document": [3, 3, 5, 7],
        "correct": [False, False, True, True],
        "clean": [False, False, True, True],
    }
    assert arrays["correct"].dtype == np.bool_


def test_what_is_kept_of_an_evaluation_is_not_the_memory_of_its_batches() -> None:
    """Workers of a loader share memory, of which as many pieces can be kept as a process may open files."""
    batch = {name: torch.zeros(4, dtype=torch.int64).share_memory_() for name in ("index", "labels", "task_ids")}
    metrics = TaskMetrics(["numbers", "classes"], ["R2Score"], [0])
    values = torch.zeros(4).share_memory_()
    metrics.update(torch.zeros(4, 3), batch["labels"], batch["task_ids"], None, values)
    states = [each for state in (metrics.logits, metrics.labels, metrics.task_ids, metrics.values) for each in state]
    assert len(states) == 4
    assert not any(state.is_shared() for state in states)
    collected: Any = Outcomes()
    collected.on_validation_start(None, None)
    step = {"index": batch["index"], "task_ids": batch["task_ids"], "correct": torch.zeros(4, dtype=torch.bool)}
    collected.on_validation_batch_end(None, None, step, batch, 0)
    assert all(values.flags.owndata for values in collected.parts[0].values())


@pytest.mark.parametrize("tasks", [3, 60])
def test_results_have_all_domains_however_many_are_logged(tasks: int) -> None:
    metrics = TaskMetrics([f"domain{task}" for task in range(tasks)], ["AUROC"])
    labels, task_ids = torch.arange(4 * tasks) % 3 % 2, torch.arange(4 * tasks) // 4
    labels[4:8] = 1  # a domain without one of its classes
    metrics.update(torch.tensor([[1.0, 0.0]]).expand(4 * tasks, 2), labels, task_ids, task_ids > 0)
    known = {"domain": task_ids.numpy(), "correct": (labels == 0).numpy(), "clean": (task_ids > 0).numpy()}
    names = metrics.task_names
    expected = {name: float(value) for name, value in metrics.compute().items() if not name.startswith("loss")}
    found = values_of(known, names, metrics)
    for name in ("accuracy", "accuracy_clean", "AUROC"):
        each = metrics.per_task[name].tolist()
        expected |= {f"{name}/{task}": value for task, value in zip(names, each, strict=True)}
    expected.pop("AUROC_worst_10", None)
    assert np.isnan([expected.pop(name) for name in ("accuracy_clean/domain0", "AUROC/domain1")]).all()
    assert found == pytest.approx(expected)
    assert found["skipped"] == 1
