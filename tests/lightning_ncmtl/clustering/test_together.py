"""Many small layers at once are what each is alone."""

import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl.clustering import _gram, find_targets, late, means, share, together
from lightning_ncmtl.clustering.layer_state import LayerState

WIDTHS = [1, 255, 256, 257, 1000]
NUMBERS = [2, 3, 5, 2, 4]
TASKS = 7


@pytest.fixture(autouse=True)
def _ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "AHEAD", {"cpu"})


def make(dtype: torch.dtype, residuals: bool = True) -> dict[str, LayerState]:
    torch.manual_seed(0)
    layers = [nn.Parameter(5 + torch.randn(TASKS, width).to(dtype)) for width in WIDTHS]
    heads = nn.ModuleList(nn.Linear(3, 2, dtype=dtype) for _ in range(TASKS))
    module = nn.Module()
    for number, layer in enumerate(layers):
        module.register_parameter(f"layer{number}", layer)
    module.heads = heads
    names = [*dict(module.named_parameters(recurse=False)), "heads"]
    states = {}
    for name, target, k in zip(names, find_targets(module, names), [*NUMBERS, 3], strict=True):
        states[name] = LayerState(k, torch.randint(k, (TASKS,)))
        states[name].attach(target, None)
        if residuals:
            states[name].residual = torch.randn(TASKS, target.size, dtype=torch.promote_types(dtype, torch.float32))
    return states


def read(states: dict[str, LayerState]) -> together.Together:
    residuals = [state.residual for state in states.values() if state.residual is not None]
    return together.Together({name: state.target for name, state in states.items()}, residuals)


def own_of(state: LayerState) -> Tensor:
    rows = state.target.read()
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows if state.residual is None else rows + state.residual


@pytest.mark.parametrize("residuals", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layers_at_once_are_what_each_is_alone(dtype: torch.dtype, residuals: bool) -> None:
    states = make(dtype, residuals)
    batch = read(states)
    assignments = torch.stack([state.assignment for state in states.values() if state.assignment is not None])
    found, broken = batch.share(assignments, 5, 0.1)
    assert not broken.any()
    assert len(found) == len(states)
    for (name, state), products, new in zip(states.items(), batch.multiply(), found, strict=True):
        own = own_of(state)
        assert torch.equal(batch.own[name], own)
        torch.testing.assert_close(products, _gram.gram(own))
        assert state.assignment is not None
        centers = means(own, state.assignment, state.num_clusters or 0)
        expected = share(own.clone(), state.assignment, centers, 0.1, dtype)
        torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(new.weights, expected.weights)
        for k in state.assignment.unique():
            assert (new.weights[state.assignment == k] == new.weights[state.assignment == k][0]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_layer(value: float) -> None:
    states = make(torch.float32)
    with torch.no_grad():
        states["layer2"].target.parameters[0][0][1][3, 5] = value
    batch = read(states)
    assignments = torch.stack([state.assignment for state in states.values() if state.assignment is not None])
    found, broken = batch.share(assignments, 5, 0.1)
    assert broken.nonzero().tolist() == [[2, 3]]
    for name, new in zip(states, found, strict=True):
        if name == "layer2":
            torch.testing.assert_close(new.weights, states[name].target.read(), rtol=0, atol=0, equal_nan=True)
        else:
            assert new.weights.isfinite().all()
            assert new.residuals.isfinite().all()
            assert new.loss.isfinite()


def test_only_small_layers_are_taken_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    states = make(torch.float32)
    monkeypatch.setattr(together, "SMALL", 2 * TASKS * together.WIDTH)
    monkeypatch.setattr(together, "ALL", 3 * TASKS * together.WIDTH)
    found = [list(batch) for batch in together.gather(states)]
    assert found == [["layer0", "layer1", "layer2"], ["layer3", "heads"]]


def test_a_batch_has_layers_of_one_kind() -> None:
    states = make(torch.float32)
    states["layer1"].freeze(3)
    states["layer3"].residual = None
    found = [list(batch) for batch in together.gather(states)]
    assert found == [["layer0", "layer2", "layer4", "heads"], ["layer1"], ["layer3"]]


def test_many_tasks_have_large_products() -> None:
    module = nn.ModuleDict({"table": nn.Embedding(3000, 2)})
    state = LayerState(4)
    state.attach(find_targets(module, ["table"])[0], None)
    assert together.gather({"table": state}) == []


def test_products_of_one_layer_that_are_not_finite_leave_the_others() -> None:
    states = make(torch.float32)
    expected = read(states).multiply()
    states["layer2"].residual[1, 3] = torch.nan  # type: ignore[index]
    found = read(states).multiply()
    others = [number for number, name in enumerate(states) if name != "layer2"]
    assert torch.equal(found[others], expected[others])
