"""What a step of sharing tells later where the host is ahead of a device: here of the CPU."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from lightning_ncmtl.clustering import NetworkClustering, late, together
from lightning_ncmtl.errors import InputError
from tests.support.many_targets import make, train


@pytest.fixture(params=["at once", "late", "late each"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "late each":
        monkeypatch.setattr(together, "SMALL", 0)
    if request.param != "at once":
        monkeypatch.setattr(late, "AHEAD", {"cpu"})
    return bool(request.param != "at once")


@pytest.mark.parametrize("settings", [{}, {"preset": "literal"}], ids=str)
def test_it_is_the_same_training(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found, all_losses = [], []
    for devices, small in ((set(), 0), ({"cpu"}, 0), ({"cpu"}, together.SMALL)):
        monkeypatch.setattr(together, "SMALL", small)
        monkeypatch.setattr(late, "AHEAD", devices)
        model, clusters = make(**settings)
        train(model, clusters, range(12))
        losses = clusters.losses
        clusters.freeze()
        train(model, clusters, range(12, 15))
        summary, layers = clusters.summarize(), clusters.state_dict()["layers"]
        found.append((layers, model.state_dict(), clusters.changes))
        all_losses.append(losses)
    for other in (1, 2):
        torch.testing.assert_close(found[other], found[0], rtol=0, atol=0)
        torch.testing.assert_close(all_losses[other], all_losses[0])
    assert max(len(layer["trace"]) for layer in summary.values()) > 3


def test_a_layer_can_be_saved_at_any_time(ahead: bool) -> None:
    model, clusters = make()
    for step in range(12):
        train(model, clusters, range(step, step + 1))
        if step >= 2:
            assert torch.equal(model.cluster.get_extra_state(), clusters.assignments["cluster"])
            assert clusters.summarize()["cluster"]["trace"][-1][1] == model.cluster.assignment.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "literal"}, {"metric": "cosine"}, {"warmup": "shared", "warmup_steps": 6, "commitment": 0.01}],
    ids=str,
)
def test_autocast_around_it_changes_nothing(ahead: bool, settings: dict[str, Any], dtype: torch.dtype) -> None:
    found = []
    for enabled in (True, False):
        model, clusters = make(**settings)
        with torch.autocast("cpu", dtype, enabled=enabled):
            train(model, clusters, range(9))
        state = clusters.state_dict()
        found.append((model.state_dict(), state["layers"], *(state["evidence"] or {}).values()))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_what_somebody_does_with_assignments_changes_nothing(ahead: bool) -> None:
    found = []
    for changes in (False, True):
        model, clusters = make()
        for step in range(8):
            train(model, clusters, range(step, step + 1))
            for assignment in clusters.assignments.values() if changes else ():
                assignment.fill_(7)
        found.append((model.state_dict(), clusters.state_dict()["layers"]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_knows_the_clusters_whatever_weights_are_loaded(ahead: bool, frozen: bool) -> None:
    """As by a callback that goes back to better weights in the middle of a training."""
    model, clusters = make()
    states = []
    for step in range(12):
        states.append(copy.deepcopy(model.state_dict()))
        train(model, clusters, range(step, step + 1))
        if frozen and step == 6:
            clusters.freeze()
    for state in states:
        model.load_state_dict(state)
        train(model, clusters, range(1))
        assert torch.equal(model.cluster.get_extra_state(), clusters.assignments["cluster"])
        rows = model.cluster.weight.detach()
        for cluster in (0, 1):
            members = rows[model.cluster.assignment == cluster]
            assert members.eq(members[0]).all()


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


def test_copies_and_pickles_hold_what_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CUDA event there are none."""
    monkeypatch.setattr(late, "AHEAD", {"cpu"})
    waited = []

    class Event:
        def synchronize(self) -> None:
            waited.append(self)

        def __reduce__(self) -> str:
            raise TypeError("cannot be copied")

    model, clusters = make()
    train(model, clusters, range(6))
    assert isinstance(clusters._late, late.Late)
    monkeypatch.setattr(clusters._late, "_arrived", Event())
    copies = [copy.deepcopy(clusters), pickle.loads(pickle.dumps(clusters))]
    assert len(waited) == 2
    for other in copies:
        assert other.summarize() == clusters.summarize()


def ask_for(clusters: NetworkClustering, name: str) -> None:
    found = getattr(clusters, name)
    if callable(found):
        found()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["cluster", "hard", "heads", "out"])
@pytest.mark.parametrize("ask", ["step", "assignments", "summarize", "state_dict", "freeze", "release"])
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
            ask_for(clusters, ask)
        clusters.release()  # it was told
    torch.testing.assert_close(layer.state_dict(), expected, rtol=0, atol=0, equal_nan=True)


def step_and_look(clusters: NetworkClustering) -> None:
    clusters.step()
    clusters.summarize()


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("number", ["auto", 2])
@pytest.mark.parametrize("settings", [{"preset": "literal"}, {"warmup": "apart", "warmup_steps": 0}], ids=str)
def test_whatever_finds_clusters_names_the_tasks(
    settings: dict[str, Any], number: Any, before: int, ahead: bool
) -> None:
    model = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(3, 2) for _ in range(6))})
    clusters = NetworkClustering(model, number, "heads", **settings)
    train(model, clusters, range(before))
    with torch.no_grad():
        model["heads"][2].weight[0, 1] = torch.nan  # type: ignore[index]
    message = f"^heads has weights that are not finite .* after step {before + 1}, of the tasks 2:"
    with pytest.raises(InputError, match=message):
        step_and_look(clusters)
