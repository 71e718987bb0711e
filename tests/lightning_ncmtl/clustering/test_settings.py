"""What is refused of the settings of network clustering, before anything is trained with them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.clustering import NetworkClustering
from lightning_ncmtl.errors import InputError

WHOLE = ("every_n_steps", "restarts", "max_clusters", "seed")
NUMBERS = ("warmup_steps", "commitment")
APART: dict[str, Any] = {"warmup": "apart", "warmup_steps": 1}


def make(tasks: int = 6) -> nn.ModuleDict:
    return nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(4, 1) for _ in range(tasks))})


@pytest.mark.parametrize("warmup", ["apart", "shared"])
@pytest.mark.parametrize("value", ["3", None, math.nan, True, [3], 2.5, -(2**70)], ids=repr)
@pytest.mark.parametrize("name", [*WHOLE, *NUMBERS])
def test_numbers_of_another_kind(name: str, value: Any, warmup: Any) -> None:
    if name == "warmup_steps" and value in (None, 2.5):
        NetworkClustering(warmup=warmup, warmup_steps=value)
        return
    with pytest.raises(InputError, match=rf"{name} must be .*|{name} is not for a shared warm-up.*"):
        NetworkClustering(warmup=warmup, **{name: value})


@pytest.mark.parametrize("name", ["warmup_epochs", "freeze_after_epochs"])
@pytest.mark.parametrize("value", ["3", math.nan, True, [3], 2.5, -1], ids=repr)
def test_epochs_of_another_kind(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} must be a whole number from 0, found"):
        NetworkClusteringCallback(warmup="apart", **{name: value})


@pytest.mark.parametrize("value", [True, 2.0, "2", 0, [2, 2], {"heads": 2}], ids=repr)
def test_numbers_of_clusters_of_another_kind(value: Any) -> None:
    with pytest.raises(InputError, match=r"num_clusters .* (be 'auto' or in 1 .. 6 tasks|have one value for each)"):
        NetworkClustering(make(), value, "heads")


def test_whole_numbers_may_be_those_of_numpy() -> None:
    for name in WHOLE:
        assert getattr(NetworkClustering(**{**APART, name: np.int64(3)}), name) == 3
    assert NetworkClustering(make(), np.int64(3), "heads", **APART).summarize()["heads"]["num_clusters"] == 3


def test_what_stops_sharing_is_for_a_shared_warm_up() -> None:
    with pytest.raises(InputError, match="specific says what stops sharing .*, found .'heads'. with warmup='apart'"):
        NetworkClustering(specific="heads", **APART)
    for settings in (APART | {"specific": []}, {"specific": "heads"}, {"specific": "heads", "preset": "literal"}):
        NetworkClustering(**settings)


def test_a_switch_is_true_or_false() -> None:
    with pytest.raises(InputError, match="shared_start must be true or false, found 'no'"):
        NetworkClustering(warmup="apart", shared_start="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [APART, {"warmup_steps": 2}, {"preset": "literal"}], ids=str)
def test_one_task_has_one_cluster(settings: dict[str, Any]) -> None:
    """There is nothing to choose, and no halves to weigh."""
    model = make(tasks=1)
    clusters = NetworkClustering(model, None, "heads", **settings)
    for _ in range(4):
        clusters.start_step()
        model["heads"][0](torch.ones(1, 4)).backward()  # type: ignore[index]
        clusters.before_step()
        clusters.step()
    assert clusters.assignments["heads"].tolist() == [0]


@pytest.mark.parametrize(
    "groups",
    [[-1, 0, 0, 1, 1, 1], [0, 0, 2, 2, 2, 2], [0.0, 1.0] * 3, [True, False] * 3, "010101", [0] * 5 + [9]],
    ids=str,
)
def test_given_clusters_have_whole_numbers_without_a_gap(groups: Any) -> None:
    clusters = NetworkClustering(make(), None, "heads")
    with pytest.raises(InputError, match="in a list of whole numbers, from 0 without a gap, found"):
        clusters.fix(groups)
    assert not clusters.is_clustered


def test_clusters_are_given_to_a_module() -> None:
    with pytest.raises(InputError, match="give NetworkClustering a module"):
        NetworkClustering(None, None, "heads").fix([0, 1])


@pytest.mark.parametrize("half", [2, -1, 0.5, "0", torch.tensor([0, 0, 1]), torch.tensor(2)], ids=str)
def test_a_half_is_the_first_or_the_second(half: Any) -> None:
    clusters = NetworkClustering(make(), 2, "heads")
    with pytest.raises(InputError, match="all of a batch must be of one half of the data, 0 or 1, found half="):
        clusters.start_step(half)
    for right in (0, 1, True, torch.tensor(1)):
        clusters.start_step(right)  # type: ignore[arg-type]
    NetworkClustering(make(), 2, "heads", **APART).start_step(half)  # which does without
