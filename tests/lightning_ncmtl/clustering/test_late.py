"""What a step of sharing tells later where the host is ahead of a device: here of the CPU, and of a stand-in."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_ncmtl import ClusterLinear
from lightning_ncmtl.clustering import NetworkClustering
from lightning_ncmtl.errors import InputError
from tests.support.device import DEVICE, DeviceCalls

TASKS = list("abcdef")
SETTINGS: dict[str, Any] = {"warmup": "apart", "warmup_steps": 2, "commitment": 0.1, "task_names": TASKS}


class Model(nn.Module):
    """Layers of this package, of two other kinds, and one that is shared by all."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = ClusterLinear(6, 4, 3, num_clusters=2)
        self.hard = ClusterLinear(6, 3, 3, num_clusters=1)
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)) for name in TASKS})
        self.out = nn.Linear(5, 6)


NUMBERS = {"cluster": 2, "hard": 1, "heads": 3, "out": 2}


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr("lightning_ncmtl.clustering.layer_step.AHEAD", {"cpu"})
    return bool(request.param)


def make(**settings: Any) -> tuple[Model, NetworkClustering]:
    torch.manual_seed(0)
    model = Model()
    return model, NetworkClustering(model, list(NUMBERS.values()), list(NUMBERS), **{**SETTINGS, **settings})


def train(model: Model, clusters: NetworkClustering, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        clusters.start_step()
        for parameter in model.parameters():
            parameter.grad = 2.0**step * torch.randn(parameter.shape, generator=generator)  # so clusters change
        clusters.before_step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad  # type: ignore[arg-type]
        clusters.step()


def test_it_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr("lightning_ncmtl.clustering.layer_step.AHEAD", devices)
        model, clusters = make()
        train(model, clusters, range(12))
        losses = clusters.losses
        clusters.freeze()
        train(model, clusters, range(12, 15))
        summary, layers = clusters.summarize(), clusters.state_dict()["layers"]
        found.append((layers, model.state_dict(), losses, clusters.changes))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert max(len(layer["trace"]) for layer in summary.values()) > 3


def test_a_layer_can_be_saved_at_any_time(ahead: bool) -> None:
    model, clusters = make()
    for step in range(12):
        train(model, clusters, range(step, step + 1))
        if step >= 2:
            assert torch.equal(model.cluster.get_extra_state(), clusters.assignments["cluster"])
            assert clusters.summarize()["cluster"]["trace"][-1][1] == model.cluster.assignment.tolist()


def test_resume_is_exact(ahead: bool) -> None:
    for middle in (3, 7):
        model, clusters = make()
        train(model, clusters, range(middle))
        weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(clusters.state_dict())
        train(model, clusters, range(middle, 12))
        again, other = make()
        again.load_state_dict(weights)
        other.load_state_dict(state)
        train(again, other, range(middle, 12))
        torch.testing.assert_close(other.state_dict()["layers"], clusters.state_dict()["layers"], rtol=0, atol=0)
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["cluster", "hard", "heads", "out"])
@pytest.mark.parametrize("ask", ["step", "summarize", "state_dict", "freeze", "release"])
def test_weights_that_are_not_finite_do_not_spread(
    ask: str, name: str, frozen: bool, value: float, ahead: bool
) -> None:
    model, clusters = make()
    train(model, clusters, range(6))
    if frozen:
        clusters.freeze()
        train(model, clusters, range(6, 7))
    layer = model.get_submodule(name)
    with torch.no_grad():
        if isinstance(layer, nn.ModuleDict):
            layer["c"][1].bias[0] = value  # type: ignore[index]
        else:
            layer.bias[2] = value  # type: ignore[index,operator]
    expected = copy.deepcopy(layer.state_dict())
    message = f"^{name} has weights that are not finite .* after step {clusters.steps + 1}, of the tasks c:"
    if not ahead:
        with pytest.raises(InputError, match=message):
            clusters.step()
    else:
        clusters.step()
        with pytest.raises(InputError, match=message):
            getattr(clusters, ask)()
        clusters.release()  # it was told
    torch.testing.assert_close(layer.state_dict(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_ncmtl.clustering.layer_step.AHEAD", {"meta"})


def on_device(clusters: NetworkClustering, **settings: Any) -> tuple[Model, NetworkClustering]:
    """The same training on the stand-in, where it goes on."""
    with torch.device(DEVICE):
        model = Model()
    moved = NetworkClustering(None, list(NUMBERS.values()), list(NUMBERS), **{**SETTINGS, **settings})
    moved.load_state_dict(clusters.state_dict())
    moved.attach(model, fresh=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model, moved


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 3}, {"metric": "cosine"}, {"commitment": 1.0}], ids=str)
def test_a_step_waits_for_nothing(settings: dict[str, Any], frozen: bool) -> None:
    model, clusters = make(**settings)
    train(model, clusters, range(5))
    if frozen:
        clusters.freeze()
    _, moved = on_device(clusters, **settings)
    with DeviceCalls():  # moves what was loaded
        moved.step()
    with DeviceCalls() as calls:
        for _ in range(4):
            moved.start_step()
            moved.before_step()
            moved.step()
    assert calls.launches
    assert not calls.waits
    assert not calls.mixed
    assert all(assignment.device == DEVICE for assignment in moved.assignments.values())
    assert all(loss.device == DEVICE for _, loss in moved.losses.values())


@pytest.mark.usefixtures("stand_in")
def test_clusters_of_a_shared_warm_up_wait_for_nothing() -> None:
    settings = {"warmup": "shared", "commitment": 0.01}
    model, clusters = make(**settings)
    train(model, clusters, range(6))
    assert set(clusters.assignments) == set(NUMBERS)
    _, moved = on_device(clusters, **settings)
    with DeviceCalls():
        moved.step()
    with DeviceCalls() as calls:
        for _ in range(4):
            moved.start_step()
            moved.before_step()
            moved.step()
    assert calls.launches
    assert not calls.waits
    assert not calls.mixed


def test_assignments_are_where_the_weights_are() -> None:
    model, clusters = make()
    train(model, clusters, range(5))
    _, moved = on_device(clusters)
    assert {assignment.device for assignment in moved.assignments.values()} == {DEVICE}
