import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from lightning_ncmtl.metrics import TaskMetrics


def test_equals_scikit_learn_per_task() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator)
    labels = torch.randint(3, (200,), generator=generator)
    tasks = torch.randint(4, (200,), generator=generator)
    metrics = TaskMetrics(["a", "b", "c", "d"])
    for part in torch.arange(200).split(17):
        metrics.update(logits[part], labels[part], tasks[part])
    result = metrics.compute()
    accuracies, losses = [], []
    for index, name in enumerate("abcd"):
        mine = tasks == index
        accuracies.append(accuracy_score(labels[mine], logits[mine].argmax(1)))
        losses.append(log_loss(labels[mine], logits[mine].double().softmax(1), labels=[0, 1, 2]))
        assert float(result[f"accuracy/{name}"]) == pytest.approx(accuracies[-1], abs=1e-7)
        assert float(result[f"loss/{name}"]) == pytest.approx(losses[-1], rel=1e-5)
    assert float(result["accuracy"]) == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert float(result["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_absent_tasks_are_nan_and_leave_the_average_alone() -> None:
    metrics = TaskMetrics(["a", "b"])
    metrics.update(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]), torch.tensor([0, 0]))
    result = metrics.compute()
    assert result["accuracy/b"].isnan()
    assert float(result["accuracy"]) == float(result["accuracy/a"]) == 0.5


def test_does_not_depend_on_the_order_or_the_sharding() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(500, 2, generator=generator), torch.randint(2, (500,), generator=generator)
    tasks = torch.randint(3, (500,), generator=generator)
    results = []
    for ranks in (1, 2, 3):
        parts = [TaskMetrics(["a", "b", "c"]) for _ in range(ranks)]
        for number, batch in enumerate(torch.arange(500).split(10)):
            parts[number % ranks].update(logits[batch], labels[batch], tasks[batch])
        for other in parts[1:]:  # what reducing over devices does
            for state in ("correct", "loss", "count"):
                setattr(parts[0], state, getattr(parts[0], state) + getattr(other, state))
        results.append(parts[0].compute())
    for result in results[1:]:
        assert all(torch.equal(result[key], results[0][key]) for key in result)


def test_empty_update_and_reset() -> None:
    metrics = TaskMetrics(["a"])
    metrics.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    metrics.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), torch.tensor([0]))
    assert float(metrics.compute()["accuracy"]) == 1.0
    metrics.reset()
    assert metrics.count.tolist() == [0]
