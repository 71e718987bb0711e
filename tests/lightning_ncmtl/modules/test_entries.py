"""Of every system: documents with several labels or none, and tasks with classes of their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from lightning_ncmtl import ASPMTL, NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules._per_task import select_documents

SYSTEMS: dict[Any, dict[str, Any]] = {
    NCMTL: {"cluster_features": (6,), "num_clusters": (2,)},
    SingleTask: {"features": (6,)},
    SoftShare: {"features": (6,), "strength": 0.5},
    HardShare: {"features": (6,), "share_layers": True},
    ASPMTL: {"adversarial": 0.5, "orthogonality": 0.25},
    MMoE: {"num_experts": 2, "expert_features": (6,), "features": (6,)},
    PLE: {"expert_features": (6, 5), "features": (6,)},
    CrossStitch: {"features": (6,)},
}
ALONE: dict[Any, dict[str, Any]] = {SoftShare: {"strength": 0}, ASPMTL: {"adversarial": 0, "orthogonality": 0}}
CLASSES = [[0, 1, 2, 3, 4], [1, 3], [0, 2, 4], [2]]
every = pytest.mark.parametrize("system", SYSTEMS)


def make(system: Any, encoder: nn.Module | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = system(encoder or nn.Linear(4, 5), 4, num_classes=5, **{**SYSTEMS[system], **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.log = lambda *args, **kwargs: None  # outside of a trainer
    return model


def batch() -> dict[str, Any]:
    """Four documents: of the first two entries, of the second three, of the third none."""
    torch.manual_seed(1)
    return {
        "inputs": torch.randn(4, 4),
        "rows": torch.tensor([3, 1, 1, 0, 1, 0]),
        "task_ids": torch.tensor([2, 0, 3, 2, 1, 0]),
        "labels": torch.tensor([4, 1, 2, 0, 3, 4]),
    }


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@every
@pytest.mark.parametrize("kind", ["numbers", "padded", "ragged"])
def test_rows_are_documents_that_need_not_be_repeated(system: Any, kind: str) -> None:
    model = make(system, None if kind == "numbers" else HAN(9, 3, 2, num_layers=1, dropout=0), task_classes=CLASSES)
    entries = batch()
    if kind != "numbers":
        padded = torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0], [7, 8, 1], [2, 3, 0]])
        entries["inputs"] = {
            "tokens": padded if kind == "padded" else padded[padded > 0],
            "sentence_lengths": torch.tensor([3, 1, 2, 3, 2]),
            "document_lengths": torch.tensor([1, 2, 1, 1]),
        }
    repeated = {**entries, "inputs": select_documents(entries["inputs"], entries["rows"])}
    del repeated["rows"]
    calls: list[int] = []
    for module in [model.encoder] if hasattr(model, "encoder") else [network.encoder for network in model.networks]:
        module.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    logits = model(entries["inputs"], entries["task_ids"], entries["rows"])
    # Once for each document where all tasks share the encoder, else once for each entry of the task
    assert calls == ([4] if hasattr(model, "encoder") else [2, 1, 2, 1])
    torch.testing.assert_close(logits, model(repeated["inputs"], repeated["task_ids"]))
    loss, expected = model.loss(entries), model.loss(repeated)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected))


@every
def test_entries_without_a_label_do_not_count(system: Any) -> None:
    """They are as if they were not there, where other terms of the loss do not need them."""
    model = make(system, **ALONE.get(system, {}))
    entries = batch()
    entries["labels"][[0, 4]] = -1  # one of two of task 2, the only one of task 1
    known = torch.tensor([1, 2, 3, 5])
    rest = {name: values if name == "inputs" else values[known] for name, values in entries.items()}
    loss, expected = model.loss(entries), model.loss(rest)
    torch.testing.assert_close(loss, expected)
    found = gradients(model, loss)
    for name, gradient in gradients(model, expected).items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient)
        elif found[name] is not None:  # the network of task 1
            assert found[name].eq(0).all(), name


@pytest.mark.parametrize("system", [SingleTask, SoftShare])
def test_a_task_has_exactly_the_gradient_of_its_labels(system: Any) -> None:
    model = make(system, **ALONE.get(system, {}))
    entries = batch()
    entries["labels"][0] = -1
    found = gradients(model, model.loss(entries))
    for task, places in enumerate([[1, 5], [4], [0, 3], [2]]):
        logits = model.networks[task](entries["inputs"][entries["rows"][places]])
        alone = gradients(model, F.cross_entropy(logits, entries["labels"][places], ignore_index=-1))
        for name, gradient in alone.items():
            if name.startswith(f"networks.{task}."):
                torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)


@every
@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("kind", ["no labels", "no entries", "no documents"])
def test_where_nothing_is_labelled_the_loss_is_zero_and_has_gradients(system: Any, classes: Any, kind: str) -> None:
    model = make(system, task_classes=classes, **ALONE.get(system, {}))
    entries = batch()
    if kind == "no labels":
        entries["labels"][:] = -1
    else:
        none = {name: values[:0] for name, values in entries.items() if name != "inputs"}
        entries = {"inputs": entries["inputs"][: 0 if kind == "no documents" else None], **none}
    loss = model.loss(entries)
    assert loss.item() == 0
    for name, gradient in gradients(model, loss).items():
        if gradient is None:  # DDP waits for none of these
            assert kind == "no labels"
            assert name.startswith("discriminator")
        else:
            assert gradient.eq(0).all(), name
    model.metrics.reset()
    outcome = model.validation_step({**entries, "index": entries["task_ids"]}, 0)
    assert [len(values) for values in outcome.values()] == [0, 0, 0]
    assert model.metrics.count.sum() == 0


def test_without_labels_other_terms_still_learn() -> None:
    model = make(ASPMTL)
    entries = batch()
    entries["labels"][:] = -1
    found = gradients(model, model.loss(entries))
    assert found["discriminator.weight"].ne(0).all()  # type: ignore[union-attr]
    assert found["encoder.weight"].ne(0).all()  # type: ignore[union-attr]
    assert found["private_encoders.0.weight"].ne(0).all()  # type: ignore[union-attr]
    assert found["head.weight"].eq(0).all()  # type: ignore[union-attr]


@every
def test_the_loss_is_that_of_a_smaller_softmax(system: Any) -> None:
    entries = batch()
    tasks, labels = entries["task_ids"].tolist(), entries["labels"].tolist()
    entries_only = [entries[name] for name in ("inputs", "task_ids", "rows")]
    model = make(system, task_classes=CLASSES, **ALONE.get(system, {}))
    plain = make(system, **ALONE.get(system, {}))
    losses = [
        F.cross_entropy(row[CLASSES[task]], torch.tensor(CLASSES[task].index(label)))
        for row, task, label in zip(plain(*entries_only), tasks, labels, strict=True)
    ]
    shares = [1 / tasks.count(task) if issubclass(system, SingleTask) else 1 / 6 for task in tasks]
    expected = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
    assert losses[2] == 0  # of the task with one class
    loss = model.loss(entries)
    torch.testing.assert_close(loss, expected)
    found = gradients(model, loss)
    for name, gradient in gradients(plain, expected).items():
        ours = found[name]
        if ours is None or gradient is None:
            assert ours is gradient or name.startswith(("private_encoders", "discriminator"))
            continue
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, gradient)
    head = found["networks.3.head.weight"] if "networks.3.head.weight" in found else found["head.weight"][3]  # type: ignore[index]
    assert head.eq(0).all()  # type: ignore[union-attr]


@every
def test_classes_that_a_task_does_not_have_are_not_predicted(system: Any) -> None:
    model = make(system, task_classes=CLASSES)
    inputs, task_ids = torch.randn(40, 4), torch.arange(40) % 4
    index = torch.arange(40)
    labels = torch.tensor([classes[-1] for classes in CLASSES])[task_ids]
    probabilities = model.predict_step({"inputs": inputs, "task_ids": task_ids, "index": index}, 0)["probabilities"]
    plain = make(system)(inputs, task_ids).softmax(1)
    for row, task, whole in zip(probabilities, task_ids.tolist(), plain, strict=True):
        others = [c for c in range(5) if c not in CLASSES[task]]
        assert row[others].eq(0).all()
        torch.testing.assert_close(row[CLASSES[task]], whole[CLASSES[task]] / whole[CLASSES[task]].sum())
    model.validation_step({"inputs": inputs, "task_ids": task_ids, "labels": labels}, 0)
    metrics = model.metrics.compute()
    assert all(value.isfinite() for value in metrics.values())
    assert (metrics["accuracy/3"], metrics["loss/3"]) == (1, 0)


@every
def test_where_tasks_have_all_classes_nothing_is_masked(system: Any) -> None:
    for classes in (None, [[4, 3, 2, 1, 0]] * 4):
        model = make(system, task_classes=classes)
        assert model.output_mask is None
        logits = torch.zeros(1, 5)
        assert model.masked(logits, torch.tensor([0])) is logits
    masked = make(system, task_classes=CLASSES)
    assert masked.state_dict().keys() == model.state_dict().keys()
    assert masked.hparams.task_classes == CLASSES


def test_averages_of_a_module_mask_the_same() -> None:
    """Lightning averages buffers, too."""
    model = make(HardShare, task_classes=CLASSES)
    entries = [batch()[name] for name in ("inputs", "task_ids", "rows")]
    for settings in ({}, {"avg_fn": get_ema_avg_fn()}):
        average = AveragedModel(model, use_buffers=True, **settings)
        for _ in range(5):
            average.update_parameters(model)
        torch.testing.assert_close(average(*entries), model(*entries))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:3], "those of each of the 4 tasks, found 3"),
        ([[0], [], [0], [0]], r"one class or more of 0 .. 4 for each task, found \[\] for task 1"),
        ([[0], [0], [0, 5], [0]], r"of 0 .. 4 for each task, found \[0, 5\] for task 2"),
        ([[0], [0], [0], [-1]], r"found \[-1\] for task 3"),
    ],
)
def test_bad_classes_are_refused(classes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(NCMTL, task_classes=classes)


@every
def test_rows_that_do_not_fit_are_refused(system: Any) -> None:
    entries = batch()
    with pytest.raises(InputError, match=r"found \[.\] (rows|task ids) for"):
        make(system)(entries["inputs"], entries["task_ids"], entries["rows"][:5])


@every
def test_outcomes_are_of_entries_with_a_label(system: Any) -> None:
    model = make(system)
    entries = batch()
    right = model(entries["inputs"], entries["task_ids"], entries["rows"]).argmax(1)
    labels = torch.where(torch.tensor([True, True, False, True, False, True]), right, (right + 1) % 5)
    labels[[0, 2]] = -1
    outcome = model.test_step({**entries, "labels": labels, "index": torch.tensor([9, 4, 7, 7, 2, 4])}, 0)
    assert {name: values.tolist() for name, values in outcome.items()} == {
        "index": [4, 7, 2, 4],
        "task_ids": [0, 2, 1, 0],
        "correct": [True, True, False, True],
    }


@every
def test_it_trains_evaluates_and_predicts(system: Any, make_trainer: Callable[..., Trainer]) -> None:
    """Also with batches of documents without entries; nothing becomes NaN."""
    whole = {**batch(), "index": torch.tensor([3, 1, 1, 0, 1, 0])}
    empty = {name: values if name == "inputs" else values[:0] for name, values in whole.items()}
    unknown = {**whole, "labels": torch.full((6,), -1)}
    loader: Any = DataLoader([whole, empty, unknown, whole], batch_size=None)  # type: ignore[arg-type]
    model = make(system, task_classes=CLASSES)
    del model.log
    trainer = make_trainer(max_epochs=1, gradient_clip_val=1.0)
    trainer.fit(model, loader, loader)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    batches: Any = trainer.predict(model, loader)
    assert [part["probabilities"].shape for part in batches] == [(6, 5), (0, 5), (6, 5), (6, 5)]
