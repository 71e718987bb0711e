"""Projects whose tasks are not the first dimension of a parameter: rows per task, columns, padding, towers."""

import logging
import re
from collections import UserDict, UserList
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from projects import Heads, data, rows_of, unshared
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl import compact, load, save
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.errors import InputError

MakeTrainer = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")


class Layouts(Heads):
    """Six tasks: mean and variance of each, blocked or interleaved; a table of columns; an embedding with padding."""

    def __init__(self) -> None:
        super().__init__()
        del self.heads
        self.blocked, self.chunks = nn.Linear(8, 12), nn.Linear(8, 12)
        self.table = nn.Parameter(torch.randn(8, 6))
        self.words = nn.Embedding(7, 8, padding_idx=0)
        with torch.no_grad():
            self.words.weight[0] = 7  # as somebody loaded them

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.backbone(x).relu() + self.words(task_ids + 1)
        blocked = self.blocked(x).view(-1, 6, 2)
        mean, scale = self.chunks(x).chunk(2, 1)
        out = blocked[..., 0] * blocked[..., 1].sigmoid() + mean * F.softplus(scale) + x @ self.table
        return out.gather(1, task_ids.unsqueeze(1)).squeeze(1)

    def rows(self) -> dict[str, Tensor]:
        """By hand: the numbers of each task."""
        w, b = self.blocked.weight, self.blocked.bias
        u, c = self.chunks.weight, self.chunks.bias
        found = {
            "blocked": torch.stack([torch.cat([w[2 * n], w[2 * n + 1], b[2 * n : 2 * n + 2]]) for n in range(6)]),
            "chunks": torch.stack([torch.cat([u[n], u[6 + n], c[n : n + 1], c[6 + n : 7 + n]]) for n in range(6)]),
            "table": torch.stack([self.table[:, n] for n in range(6)]),
            "words": self.words.weight[1:],
        }
        return {name: rows.detach() for name, rows in found.items()}


TARGETS: list[Any] = [
    {"name": "blocked", "rows_per_task": 2},
    {"name": "chunks", "rows_per_task": 2, "layout": "interleaved"},
    {"name": "table", "dim": 1},
    "words",
]
of_both_kinds = pytest.mark.parametrize("warmup", ["apart", "shared"])


def check_shared(model: Layouts, assignments: dict[str, Tensor]) -> None:
    assert list(assignments) == ["blocked", "chunks", "table", "words"]
    for name, rows in model.rows().items():
        assert unshared(rows, assignments[name]) == 0, name
    assert model.words.weight[0].eq(7).all()


@of_both_kinds
def test_tasks_in_any_place_train_resume_and_become_compact(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, warmup: Any
) -> None:
    def run(epochs: int, path: Path | None = None) -> tuple[Trainer, NetworkClusteringCallback, Layouts]:
        torch.manual_seed(0)
        model, callback = Layouts(), NetworkClusteringCallback([2, 3, 2, 3], TARGETS, warmup=warmup, warmup_steps=9)
        trainer = make_trainer(max_epochs=epochs, callbacks=[callback])
        trainer.fit(model, ckpt_path=path, weights_only=True)
        return trainer, callback, model

    with caplog.at_level(logging.INFO):
        half, _, _ = run(1)  # 6 steps: within the warm-up
    assert "blocked: 2 clusters of 6 tasks with 18 parameters each: 0 (row 0, 1), 1 (row 2, 3)," in caplog.text
    assert "chunks: 3 clusters of 6 tasks with 18 parameters each: 0 (row 0, 6), 1 (row 1, 7)," in caplog.text
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, whole, expected = run(3)
    check_shared(expected, whole.assignments)
    _, resumed, model = run(3, tmp_path / "half.ckpt")
    assert resumed.clusters.summarize() == whole.clusters.summarize()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name

    small = compact(model.eval(), whole.assignments, whole.targets)
    save(small, tmp_path / "small")
    x, _, task_ids = data(seed=5)[:]
    for each in (small, load(tmp_path / "small", Layouts())):
        assert torch.equal(each(x, task_ids), model(x, task_ids))
    sizes = {name: value.numel() for name, value in small.named_parameters()}
    assert sum(sizes.values()) == 4 * 8 + 8 + 2 * 18 + 3 * 18 + 2 * 8 + (1 + 3) * 8
    small.train()
    small.training_step(data()[:], 0).backward()
    rows = small.words.parametrizations.weight.original  # type: ignore[union-attr]
    assert rows[-1].eq(7).all()
    assert rows.grad[-1].eq(0).all()
    with pytest.raises(InputError, match=r"has 12 tasks, found an assignment of 6. If .*targets=callback.targets"):
        compact(model, {name: whole.assignments[name] for name in ("blocked", "chunks")})


def test_another_layout_than_that_of_the_checkpoint_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The numbers fit, but they would be those of other tasks."""
    trainer = make_trainer(max_epochs=1, callbacks=[NetworkClusteringCallback(2, TARGETS[:1])])
    trainer.fit(Layouts())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    other = NetworkClusteringCallback(2, {**TARGETS[0], "layout": "interleaved"})
    with pytest.raises(InputError, match=r"trained with the target .*, found .*'interleaved'}: say the same"):
        make_trainer(max_epochs=2, callbacks=[other]).fit(Layouts(), ckpt_path=tmp_path / "it.ckpt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "blocked"}, "blocked [12, 8] may be of 2 rows for each task: {'name': 'blocked', 'rows_per_task'"),
        ({"targets": "table"}, "table [8, 6] may be with the task in another dimension: {'name': 'table', 'dim': 1}"),
        ({"targets": TARGETS[0], "task_names": list("abcdefg")}, "task_names must be 6 different names"),
    ],
)
def test_another_number_of_tasks_than_of_names_is_refused(
    make_trainer: MakeTrainer, settings: dict[str, Any], message: str
) -> None:
    callback = NetworkClusteringCallback(2, **{"task_names": list("abcdef"), **settings})
    with pytest.raises(InputError, match=re.escape(message)):
        make_trainer(max_steps=2, callbacks=[callback]).fit(Layouts())


class Towers(Heads):
    """Towers as a list, each with several outputs, and two of other names as attributes."""

    def __init__(self) -> None:
        super().__init__()
        del self.heads
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(6))
        for name in ("ctr", "cvr", "buy"):
            setattr(self, f"{name}_tower", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.backbone(x).relu()
        x = torch.stack([tower(x) for tower in self.towers], 1)[torch.arange(len(x)), task_ids]
        every = torch.cat([self.ctr_tower(x), self.cvr_tower(x), self.buy_tower(x)], 1)
        return every.gather(1, (task_ids % 3).unsqueeze(1)).squeeze(1)


@of_both_kinds
def test_towers_of_several_outputs_are_the_tasks(make_trainer: MakeTrainer, warmup: Any) -> None:
    """Not the outputs inside of a tower."""
    model, callback = Towers(), NetworkClusteringCallback(2, "towers", warmup=warmup, warmup_steps=3)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    rows = torch.stack([nn.utils.parameters_to_vector(tower.parameters()).detach() for tower in model.towers])
    assert callback.assignments["towers"].shape == (6,)
    assert unshared(rows, callback.assignments["towers"]) == 0
    assert all(len(tower[2].weight.unique(dim=0)) == 3 for tower in model.towers)


@of_both_kinds
@pytest.mark.parametrize(
    ("targets", "name"),
    [("*_tower", "*_tower"), ({"ctr": "ctr_tower", "cvr": "cvr_tower", "buy": "buy_tower"}, "tasks")],
    ids=str,
)
def test_towers_that_are_attributes(
    make_trainer: MakeTrainer, tmp_path: Path, warmup: Any, targets: Any, name: str
) -> None:
    model, callback = Towers(), NetworkClusteringCallback(2, targets, warmup=warmup, warmup_steps=3)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    assert callback.tasks == ["ctr", "cvr", "buy"]
    towers = (model.ctr_tower, model.cvr_tower, model.buy_tower)
    rows = torch.stack([nn.utils.parameters_to_vector(tower.parameters()).detach() for tower in towers])
    assert unshared(rows, callback.assignments[name]) == 0
    save(compact(model.eval(), callback.assignments, callback.targets), tmp_path / "small")
    x, _, task_ids = data(seed=5)[:]
    assert torch.equal(load(tmp_path / "small", Towers())(x, task_ids), model(x, task_ids))


def test_lists_and_numbers_of_other_libraries() -> None:
    """As NumPy and YAML readers give them."""
    callback = NetworkClusteringCallback(
        (np.int64(2), "auto"),  # type: ignore[arg-type]
        ("out", {"name": "table", "dim": np.int64(1)}),  # type: ignore[arg-type]
        task_names=tuple("abc"),
    )
    assert callback.clusters.num_clusters == [2, "auto"]
    assert callback.targets == ["out", {"name": "table", "dim": 1}]
    assert callback.clusters.task_names == ["a", "b", "c"]
    other = NetworkClusteringCallback(2, UserList(["out", UserDict({"name": "table", "dim": 1})]))  # type: ignore[arg-type]
    assert other.targets == callback.targets
    assert type(other.targets) is list
    assert isinstance(NetworkClusteringCallback(np.int32(2)).clusters.num_clusters, int)  # type: ignore[arg-type]


class Languages(Heads):
    """Tasks in languages, of which each has an adapter: two sets of what may share."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("de", "en", "fr", "it")})

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.backbone(x).relu()
        languages = (x.sum(1) * 10).long() % 4
        x = torch.stack([adapter(x) for adapter in self.adapters.values()], 1)[torch.arange(len(x)), languages]
        every = torch.cat([head(x) for head in self.heads.values()], 1)
        return every.gather(1, task_ids.unsqueeze(1)).squeeze(1)


@of_both_kinds
def test_two_sets_of_tasks_in_one_trainer(make_trainer: MakeTrainer, tmp_path: Path, warmup: Any) -> None:
    def run(epochs: int, path: Path | None = None) -> tuple[Trainer, list[NetworkClusteringCallback], Languages]:
        torch.manual_seed(0)
        callbacks = [
            NetworkClusteringCallback(k, name, warmup=warmup, warmup_steps=9)
            for k, name in ((3, "heads"), (2, "adapters"))
        ]
        trainer, model = make_trainer(max_epochs=epochs, callbacks=list(callbacks)), Languages()
        trainer.fit(model, ckpt_path=path, weights_only=True)
        return trainer, callbacks, model

    run(1)[0].save_checkpoint(tmp_path / "half.ckpt")
    _, whole, expected = run(3)
    _, resumed, model = run(3, tmp_path / "half.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    for ours, theirs, name, k in zip(resumed, whole, ("heads", "adapters"), (3, 2), strict=True):
        assert ours.clusters.summarize() == theirs.clusters.summarize()
        assert unshared(rows_of(model, name), ours.assignments[name]) == 0
        assert len(ours.assignments[name].unique()) == k
    assert [each.tasks for each in whole] == [["ant", "bee", "cat", "dog", "eel", "fox"], ["de", "en", "fr", "it"]]
    save(compact(model.eval(), whole[0].assignments | whole[1].assignments), tmp_path / "small")
    x, _, task_ids = data(seed=5)[:]
    assert torch.equal(load(tmp_path / "small", Languages())(x, task_ids), model(x, task_ids))

    other = NetworkClusteringCallback(2, "adapters.*.weight", warmup=warmup)
    with (
        pytest.warns(UserWarning, match="Please add the following callbacks"),
        pytest.raises(
            InputError, match=r"trained with NetworkClusteringCallback\(adapters\), .*\(adapters.\*.weight\)"
        ),
    ):
        make_trainer(max_epochs=3, callbacks=[other]).fit(Languages(), ckpt_path=tmp_path / "half.ckpt")
    with pytest.raises(InputError, match="ClusterReport shows one NetworkClusteringCallback, found 2"):
        make_trainer(max_epochs=3, callbacks=[*whole, ClusterReport()]).fit(Languages())


@pytest.mark.parametrize(
    "text",
    [
        "heads",
        "[heads, '*_tower']",
        "[heads, {name: table, dim: 1}]",
        "{ctr: one, cvr: two}",
        "{name: out, rows_per_task: 2}",
    ],
)
def test_targets_in_yaml(text: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NetworkClusteringCallback, "clustering")
    for args in (["--clustering.targets", text], ["--clustering", f"{{targets: {text}}}"]):
        made = parser.instantiate_classes(parser.parse_args(args)).clustering
        given = yaml.safe_load(text)
        assert made.targets == (given if isinstance(given, list) else [given])


def test_targets_that_are_none_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="a target is a name, .* found {'nmae': 'heads', 'dim': 1}"):
        NetworkClusteringCallback(2, {"nmae": "heads", "dim": 1})
