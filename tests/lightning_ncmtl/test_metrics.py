import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    explained_variance_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    roc_curve,
)
from torch import nn
from torchmetrics import classification, regression

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.metrics import MAX_LOGGED_TASKS, TaskMetrics


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
    clean = torch.rand(500, generator=generator) < 0.7
    results = []
    for ranks in (1, 2, 3):
        parts = [TaskMetrics(["a", "b", "c"]) for _ in range(ranks)]
        for number, batch in enumerate(torch.arange(500).split(10)):
            parts[number % ranks].update(logits[batch], labels[batch], tasks[batch], clean[batch])
        for other in parts[1:]:  # what reducing over devices does
            for state in ("correct", "loss", "count", "clean_correct", "clean_count", "clean_updates"):
                setattr(parts[0], state, getattr(parts[0], state) + getattr(other, state))
        results.append(parts[0].compute())
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        assert all(torch.equal(result[key], results[0][key]) for key in result)


@pytest.mark.parametrize("change", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_sums_keep_their_bits_whatever_the_type_of_the_module(change: Callable[[nn.Module], nn.Module]) -> None:
    """As of precisions such as ``bf16-true``: in 16 bits a sum of losses would stay at 256."""
    metrics = TaskMetrics(["a"], ["AUROC"])
    change(nn.Sequential(metrics))
    logits, labels = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.arange(1000) % 2
    for part in torch.arange(1000).split(10):
        metrics.update(logits[part], labels[part], torch.zeros(10, dtype=torch.int64))
    change(nn.Sequential(metrics))
    result = metrics.compute()
    assert float(result["loss"]) == pytest.approx(log_loss(labels, logits.double().softmax(1)))
    assert float(result["AUROC"]) == pytest.approx(roc_auc_score(labels, (logits[:, 1].double() - logits[:, 0])))
    metrics.reset()
    assert metrics.loss.dtype == torch.float64
    assert metrics.to("meta").loss.device.type == "meta"


def test_empty_update_and_reset() -> None:
    metrics = TaskMetrics(["a"])
    metrics.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    metrics.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), torch.tensor([0]))
    assert float(metrics.compute()["accuracy"]) == 1.0
    metrics.reset()
    assert metrics.count.tolist() == [0]


def test_documents_without_copies_by_hand() -> None:
    """Of task a one of two is right, of task b none of one; task c has only a copy, task d nothing."""
    metrics = TaskMetrics(list("abcd"))
    logits = torch.tensor([[1.0, 0.0]]).expand(6, 2)  # all are said to be 0
    labels, tasks = torch.tensor([0, 1, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 2])
    metrics.update(logits[:4], labels[:4], tasks[:4], torch.tensor([True, True, False, True]))
    metrics.update(logits[4:], labels[4:], tasks[4:], torch.tensor([False, False]))
    result = {name: float(value) for name, value in metrics.compute().items() if name.startswith("accuracy")}
    assert result == pytest.approx(
        {
            "accuracy": (2 / 3 + 1 / 2 + 1) / 3,
            "accuracy/a": 2 / 3,
            "accuracy/b": 1 / 2,
            "accuracy/c": 1,
            "accuracy/d": np.nan,
            "accuracy_clean": (1 / 2 + 0) / 2,
            "accuracy_clean/a": 1 / 2,
            "accuracy_clean/b": 0,
            "accuracy_clean/c": np.nan,
            "accuracy_clean/d": np.nan,
        },
        nan_ok=True,
    )
    metrics.reset()
    metrics.update(logits, labels, tasks)
    assert not any("clean" in name for name in metrics.compute())


def test_entries_without_a_label_do_not_count() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(60, 3, generator=generator), torch.randint(-1, 3, (60,), generator=generator)
    tasks, clean = torch.arange(60) % 3, torch.rand(60, generator=generator) < 0.5
    labels[tasks == 2] = -1
    known = labels >= 0
    found, expected = TaskMetrics(["a", "b", "c"]), TaskMetrics(["a", "b", "c"])
    found.update(logits, labels, tasks, clean)
    expected.update(logits[known], labels[known], tasks[known], clean[known])
    torch.testing.assert_close(found.compute(), expected.compute(), equal_nan=True)
    assert found.compute()["accuracy/c"].isnan()
    assert found.compute()["loss"].isfinite()


def test_classes_at_minus_infinity_by_hand() -> None:
    """Two of three classes are left, with odds of 1 to 3."""
    metrics = TaskMetrics(["a"])
    logits = torch.tensor([[0.0, -torch.inf, np.log(3)]]).expand(2, 3)
    metrics.update(logits, torch.tensor([0, 2]), torch.tensor([0, 0]))
    result = metrics.compute()
    assert float(result["accuracy"]) == 0.5
    assert float(result["loss"]) == pytest.approx((np.log(4) + np.log(4 / 3)) / 2)


def many(tasks: int = 300, rows: int = 4000) -> tuple[TaskMetrics, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, 2, generator=generator)
    labels, task_ids = torch.randint(-1, 2, (rows,), generator=generator), torch.arange(rows) * 7 % (tasks - 1)
    clean = torch.rand(rows, generator=generator) < 0.5
    return TaskMetrics([f"task{task}" for task in range(tasks)]), [logits, labels, task_ids, clean]


def test_of_many_tasks_there_is_a_summary_and_a_value_for_each() -> None:
    metrics, batch = many()
    assert metrics.per_task == {}
    metrics.update(*batch)
    result = metrics.compute()
    names = {"accuracy", "loss", "accuracy_clean"}
    assert result.keys() == names | {"accuracy_worst_10", "accuracy_clean_worst_10"}
    logits, labels, task_ids, clean = (values.numpy() for values in batch)
    expected: dict[str, list[float]] = {name: [] for name in ["count", *names]}
    for task in range(300):
        mine = (task_ids == task) & (labels >= 0)
        expected["count"].append(mine.sum())
        right = logits[mine].argmax(1) == labels[mine]
        expected["accuracy"].append(right.mean() if len(right) else np.nan)
        kept = right[clean[mine]]
        expected["accuracy_clean"].append(kept.mean() if len(kept) else np.nan)
        losses = np.log(np.exp(logits[mine]).sum(1)) - np.take_along_axis(logits[mine], labels[mine, None], 1)[:, 0]
        expected["loss"].append(losses.mean() if len(losses) else np.nan)
    assert metrics.per_task.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(metrics.per_task[name], values, rtol=1e-5, err_msg=name)
    for name in names:
        assert float(result[name]) == pytest.approx(np.nanmean(expected[name]), rel=1e-5)
        if name != "loss":
            worst = np.sort(expected[name])[:10]  # NaN last
            assert float(result[f"{name}_worst_10"]) == pytest.approx(worst.mean(), rel=1e-5)


def test_the_summary_begins_beyond_fifty_tasks() -> None:
    """With as many as are logged, the result is what it was before there was a summary."""
    for tasks, keys in ((MAX_LOGGED_TASKS, 3 + 3 * MAX_LOGGED_TASKS), (MAX_LOGGED_TASKS + 1, 5)):
        metrics, batch = many(tasks)
        metrics.update(*batch)
        assert len(metrics.compute()) == keys
        assert metrics.many == (keys == 5)
        assert metrics.per_task["accuracy"].shape == (tasks,)


def test_many_tasks_without_any_document() -> None:
    metrics, _ = many()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        result = metrics.compute()
    assert all(value.isnan() for value in result.values())
    assert metrics.per_task["accuracy"].isnan().all()


def test_values_of_each_task_outlive_a_reset() -> None:
    """The report reads them after the module has reset its metrics."""
    metrics, batch = many()
    metrics.update(*batch)
    metrics.compute()
    kept = {name: values.clone() for name, values in metrics.per_task.items()}
    metrics.reset()
    metrics.update(*[values[:100] for values in batch])
    torch.testing.assert_close(metrics.per_task, kept, equal_nan=True)


SCORES: dict[str, Callable[..., float]] = {
    "AUROC": roc_auc_score,
    "AveragePrecision": average_precision_score,
    "F1Score": lambda labels, scores: f1_score(labels, scores > 0),
    "MatthewsCorrCoef": lambda labels, scores: matthews_corrcoef(labels, scores > 0),
}


def scored(tasks: int, rows: int = 3000) -> tuple[TaskMetrics, list[torch.Tensor]]:
    """Task 1 has one class only, the last no document; some scores are equal, and many are nearly sure."""
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(rows, 2, generator=generator) * 5).round()
    labels, task_ids = torch.randint(-1, 2, (rows,), generator=generator), torch.arange(rows) * 7 % (tasks - 1)
    labels[task_ids == 1] = 1
    return TaskMetrics([f"t{task}" for task in range(tasks)], list(SCORES)), [logits, labels, task_ids]


@pytest.mark.parametrize("tasks", [5, 60])
def test_metrics_by_name_equal_scikit_learn(tasks: int) -> None:
    metrics, batch = scored(tasks)
    for part in torch.arange(len(batch[0])).split(170):
        metrics.update(*[values[part] for values in batch])
    result = {name: float(value) for name, value in metrics.compute().items()}
    logits, labels, task_ids = (values.numpy() for values in batch)
    assert result["skipped"] == 2
    for name, score in SCORES.items():
        expected = np.full(tasks, np.nan)
        for task in {*range(tasks - 1)} - {1}:
            mine = (task_ids == task) & (labels >= 0)
            expected[task] = score(labels[mine], (logits[:, 1] - logits[:, 0])[mine].astype(np.float64))
        np.testing.assert_allclose(metrics.per_task[name], expected, rtol=1e-5, err_msg=name)
        assert result[name] == pytest.approx(np.nanmean(expected), rel=1e-5)
        if tasks == 5:
            assert [result[f"{name}/t{task}"] for task in range(5)] == pytest.approx(expected, rel=1e-5, nan_ok=True)
        else:
            assert result[f"{name}_worst_10"] == pytest.approx(np.sort(expected)[:10].mean(), rel=1e-5)
            assert f"{name}/t0" not in result


def test_metrics_of_the_classes_that_a_task_has() -> None:
    """Task 0 has three of four classes, task 1 the last two, of which the second is the positive one."""
    generator = torch.Generator().manual_seed(5)
    logits, tasks = torch.randn(400, 4, generator=generator), torch.arange(400) % 3
    labels = torch.randint(3, (400,), generator=generator)
    labels[tasks == 1] = labels[tasks == 1] % 2 + 2
    labels[tasks == 2] = labels[tasks == 2] % 2  # the third has none of class 2
    logits[tasks == 0, 3] = -torch.inf
    logits[(tasks == 1).nonzero(), torch.arange(2)] = -torch.inf
    logits[tasks == 2, 3] = -torch.inf
    metrics = TaskMetrics(["a", "b", "c"], ["AUROC"])
    metrics.update(logits, labels, tasks)
    result = metrics.compute()
    first, second = tasks == 0, tasks == 1
    by_hand = [
        roc_auc_score(labels[first], logits[first, :3].double().softmax(1), multi_class="ovr"),
        roc_auc_score(labels[second] == 3, logits[second, 3] - logits[second, 2]),
    ]
    assert [float(result["AUROC/a"]), float(result["AUROC/b"])] == pytest.approx(by_hand)
    assert result["AUROC/c"].isnan()
    assert float(result["AUROC"]) == pytest.approx(np.mean(by_hand))
    assert float(result["skipped"]) == 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("always", [False, True])
def test_what_says_always_the_same_has_no_correlation_with_labels(classes: int, always: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    logits, labels = torch.randn(60, classes, generator=generator), torch.randint(classes, (60,), generator=generator)
    logits[:, 0] += 10 * always
    metrics = TaskMetrics(["a"], ["MatthewsCorrCoef"])
    metrics.update(logits, labels, torch.zeros(60, dtype=torch.int64))
    expected = matthews_corrcoef(labels, logits.argmax(1))
    assert (expected == 0) == always
    assert float(metrics.compute()["MatthewsCorrCoef"]) == pytest.approx(expected, abs=1e-6)


def test_the_calibration_error_by_hand() -> None:
    """15 bins of probabilities: how far their mean is from the share of positives, or of those that are right."""
    generator = torch.Generator().manual_seed(6)
    logits, tasks = torch.randn(600, 3, generator=generator) * 2, torch.arange(600) % 2
    labels = torch.randint(3, (600,), generator=generator)
    labels[tasks == 0] = labels[tasks == 0] % 2
    logits[tasks == 0, 2] = -torch.inf
    metrics = TaskMetrics(["two", "three"], ["CalibrationError"])
    metrics.update(logits, labels, tasks)
    result = metrics.compute()
    assert not metrics.scores["CalibrationError"].higher_is_better
    for task, name in enumerate(["two", "three"]):
        probabilities, mine = logits[tasks == task].double().softmax(1), labels[tasks == task]
        sure, right = probabilities.max(1).values, probabilities.argmax(1) == mine
        if name == "two":
            sure, right = probabilities[:, 1], mine == 1
        bins = (sure * 15).long().clamp(max=14)
        parts = [(sure[bins == each], right[bins == each].double()) for each in bins.unique()]
        expected = sum(len(part) * float((part.mean() - found.mean()).abs()) for part, found in parts) / len(sure)
        assert float(result[f"CalibrationError/{name}"]) == pytest.approx(expected, rel=1e-4)


def taken(names: list[str], tasks: list[int]) -> list[str]:
    """Those that are metrics."""
    found = []
    for name in names:
        with suppress(InputError):
            TaskMetrics(["a"], [name], tasks)
            found.append(name)
    return found


def test_every_metric_of_classes_is_one_number_of_two_classes_and_of_three() -> None:
    names = taken([name.removeprefix("Binary") for name in dir(classification) if name.startswith("Binary")], [])
    assert {"AUROC", "Specificity"} < set(names)
    generator = torch.Generator().manual_seed(7)
    logits, tasks = torch.randn(300, 3, generator=generator), torch.arange(300) % 2
    labels = torch.randint(3, (300,), generator=generator)
    labels[tasks == 0] %= 2
    logits[tasks == 0, 2] = -torch.inf
    metrics = TaskMetrics(["two", "three"], names)
    worse = {"CalibrationError", "EER", "HammingDistance", "HingeLoss"}
    assert {name for name in names if not metrics.directions[name]} == worse & set(names)
    metrics.update(logits, labels, tasks)
    result = metrics.compute()
    assert result["skipped"] == 0
    assert all(result[f"{name}/{task}"].isfinite() for name in names for task in ("two", "three"))
    if "EER" not in names:  # torchmetrics 1.6 has none
        return
    rates = []
    for each in range(3):  # where as many positives are missed as negatives are taken for one
        mine = tasks == 1
        wrong, right, _ = roc_curve(labels[mine] == each, logits[mine].softmax(1)[:, each], drop_intermediate=False)
        near = np.abs(wrong - (1 - right)).argmin()
        rates.append((wrong[near] + 1 - right[near]) / 2)
    assert float(result["EER/three"]) == pytest.approx(np.mean(rates), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all targets")
def test_metrics_that_depend_on_where_zero_is_are_not_pooled() -> None:
    """Standardised numbers are around zero: an error in percent of them says nothing."""
    names = taken([name for name in dir(regression) if name[0].isupper()], [0])
    metrics = TaskMetrics(["a"], names, [0])
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)) + 1
    metrics.update((values + 0.1).unsqueeze(1), torch.full((20,), -1), torch.zeros(20, dtype=torch.int64), None, values)
    result = metrics.compute()
    assert {name for name in names if f"{name}_pooled" not in result} == {
        "MeanAbsolutePercentageError",
        "MeanSquaredLogError",
        "NormalizedRootMeanSquaredError",
        "SymmetricMeanAbsolutePercentageError",
        "WeightedMeanAbsolutePercentageError",
    }
    assert {name for name in metrics.directions if name.endswith("_pooled")} == {
        name for name in result if name.endswith("_pooled")
    }
    assert all(result[name].isfinite() for name in names)
    more = {name for name in names if metrics.directions[name]}
    assert more == {"ExplainedVariance", "R2Score", *(name for name in names if name.endswith("CorrCoef"))}


@pytest.mark.parametrize(
    "name",
    [
        "Auc",
        "auroc",
        "ConfusionMatrix",
        "ROC",
        "FBetaScore",
        "Fairness",
        "KLDivergence",
        "MinkowskiDistance",
        "ContinuousRankedProbabilityScore",
    ],
)
def test_metrics_that_are_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"model.metrics has '{name}': take those of torchmetrics.classification or "):
        TaskMetrics(["a"], [name])


def test_metrics_by_name_without_any_document_and_after_a_reset() -> None:
    metrics, batch = scored(5)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        result = metrics.compute()
    assert result["AUROC"].isnan()
    assert float(result["skipped"]) == 5
    metrics.reset()
    metrics.update(*[values[:0] for values in batch])
    assert metrics.compute()["AUROC"].isnan()
    metrics.update(*batch)
    assert metrics.compute()["AUROC"].isfinite()
    metrics.reset()
    assert metrics.logits == []


def _rank_of_scored(rank: int, folder: Path) -> None:
    metrics, batch = scored(5)
    part = slice(0) if rank == 2 else slice(rank, None, 2)
    metrics.update(*[values[part] for values in batch])
    torch.save((metrics.compute(), metrics.per_task), folder / f"{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_agree_on_metrics_by_name(tmp_path: Path) -> None:
    on_ranks(3, _rank_of_scored, tmp_path)
    metrics, batch = scored(5)
    metrics.update(*batch)
    expected = metrics.compute(), metrics.per_task
    first = torch.load(tmp_path / "0.pt")
    torch.testing.assert_close(first, expected, equal_nan=True)
    for rank in (1, 2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), first, equal_nan=True, rtol=0, atol=0)


def _rank_of_many(rank: int, folder: Path) -> None:
    metrics, batch = many()
    part = slice(0) if rank == 2 else slice(rank, None, 2)
    metrics.update(*[values[part] for values in batch])
    torch.save((metrics.compute(), metrics.per_task), folder / f"{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_agree_on_many_tasks(tmp_path: Path) -> None:
    on_ranks(3, _rank_of_many, tmp_path)
    metrics, batch = many()
    metrics.update(*batch)
    expected = metrics.compute(), metrics.per_task
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, equal_nan=True)


def _rank(rank: int, folder: Path) -> None:
    """Two of three ranks have documents, and the last one but an empty batch."""
    metrics = TaskMetrics(["a", "b"])
    rows = [[0, 1], [2], []][rank]
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    labels, tasks, clean = torch.tensor([1, 1, 1]), torch.tensor([0, 1, 1]), torch.tensor([True, True, True])
    known = None if rank == 2 else clean[rows]
    metrics.update(logits[rows], labels[rows], tasks[rows], known)
    torch.save(metrics.compute(), folder / f"{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_agree_though_one_saw_nothing(tmp_path: Path) -> None:
    on_ranks(3, _rank, tmp_path)
    first, *others = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert float(first["accuracy_clean"]) == 0.75
    assert all(other.keys() == first.keys() for other in others)
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


NUMBERS = {"R2Score": r2_score, "MeanAbsoluteError": mean_absolute_error, "ExplainedVariance": explained_variance_score}


@pytest.mark.parametrize("tasks", [5, 60])
def test_metrics_of_numbers_equal_scikit_learn(tasks: int) -> None:
    """Even tasks predict numbers around 10 and more; task 2 has equal ones, task 4 none."""
    rng = np.random.default_rng(6)
    numbers = list(range(0, tasks, 2))
    mean, scale = 10.0 * (1 + np.arange(tasks)), 1.0 + np.arange(tasks)
    task_ids = rng.permutation(
        np.concatenate([np.repeat(np.arange(min(tasks, 4)), 50), np.repeat(np.arange(5, tasks), 30)])
    )
    values = mean[task_ids] + scale[task_ids] * rng.standard_normal(len(task_ids))
    values[rng.random(len(values)) < 0.1] = np.nan
    values[np.isin(task_ids, numbers, invert=True)] = np.nan
    values[task_ids == 2] = 7.0
    guesses = np.nan_to_num(values) + rng.standard_normal(len(values))
    labels = np.where(np.isin(task_ids, numbers), -1, rng.integers(-1, 2, len(values)))
    outputs = np.column_stack([rng.standard_normal((len(values), 2)), guesses])
    outputs[np.isin(task_ids, numbers), :2] = -np.inf
    outputs[np.isin(task_ids, numbers, invert=True), 2] = -np.inf
    batch = [torch.from_numpy(each) for each in (outputs, labels, task_ids, values)]
    batch[0], batch[3] = batch[0].float(), batch[3].float()
    metrics = TaskMetrics([f"t{task}" for task in range(tasks)], [*NUMBERS, "AUROC"], numbers)
    units = torch.from_numpy(mean), torch.from_numpy(scale)
    for part in torch.arange(len(values)).split(37):
        metrics.update(*(each[part] for each in batch[:3]), values=batch[3][part], units=units)
    result = {name: float(value) for name, value in metrics.compute().items()}
    known = ~np.isnan(values)
    for name, score in NUMBERS.items():
        expected = np.full(tasks, np.nan)
        for task in {*numbers} - {2, 4}:
            mine = (task_ids == task) & known
            expected[task] = score(values[mine], guesses[mine])
        np.testing.assert_allclose(metrics.per_task[name], expected, rtol=1e-3, err_msg=name)
        assert result[name] == pytest.approx(np.nanmean(expected), rel=1e-3)
        standard = (np.stack([values, guesses]) - mean[task_ids]) / scale[task_ids]
        assert result[f"{name}_pooled"] == pytest.approx(score(*standard[:, known]), rel=1e-3)
        if tasks == 60:
            worst = np.sort(expected) if name != "MeanAbsoluteError" else None
            assert worst is None or result[f"{name}_worst_10"] == pytest.approx(worst[:10].mean(), rel=1e-3)
            assert f"{name}/t0" not in result
    squares = [np.nanmean((guesses - values)[task_ids == task] ** 2) for task in numbers if (task_ids == task).any()]
    assert result["rmse"] == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-3)
    assert metrics.per_task["AUROC"].isnan().tolist() == [task % 2 == 0 for task in range(tasks)]
    assert result["skipped"] == 2
    assert metrics.per_task["accuracy"][numbers].isnan().all()


def test_a_correlation_with_equal_predictions_is_skipped() -> None:
    metrics = TaskMetrics(["a", "b"], ["PearsonCorrCoef"], [0, 1])
    values, tasks = torch.arange(8.0), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    guesses = torch.where(tasks == 0, 3.0, 2 * values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics tells that the variance is small
        metrics.update(guesses.unsqueeze(1), torch.full((8,), -1), tasks, values=values)
        result = metrics.compute()
    assert (float(result["skipped"]), float(result["PearsonCorrCoef"])) == (1, pytest.approx(1))
    assert metrics.scores["PearsonCorrCoef"].higher_is_better
