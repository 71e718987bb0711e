"""``torch.compile`` on the device, with CUDA graphs, too (``mode="reduce-overhead"``)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from on_device import DEVICE, TRAINER, assert_close, documents, draw_tasks, moved, same_groups
from projects import Heads
from pytorch_lightning import Trainer
from torch import nn

from lightning_ncmtl import NCMTL, ClusterLinear, TaskLinear, TaskModule
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError

MODES = ["default", "reduce-overhead"]
LAYERS: dict[str, Callable[[], Any]] = {
    "TaskLinear": lambda: TaskLinear(18, 6, 10),
    "ClusterLinear": lambda: ClusterLinear(18, 6, 10, 3),
    "TaskModule": lambda: TaskModule(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10)), 18),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what torch does when it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # Dynamo asks for it
    pytest.mark.filterwarnings("ignore:.*TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:.*Not enough SMs"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name: str, mode: str) -> None:
    """Batches of one size, then of others, then by clusters."""
    torch.manual_seed(0)
    layer = LAYERS[name]().to(DEVICE)
    compiled = torch.compile(layer, mode=mode)
    for step, rows in enumerate([32, 32, 32, 40, 48]):
        x, ids = torch.randn(rows, 6, device=DEVICE), draw_tasks(rows, 18, seed=step).to(DEVICE)
        torch.compiler.cudagraph_mark_step_begin()
        expected, found = layer(x, ids), compiled(x, ids)
        assert_close(found, expected)
        grads = torch.autograd.grad(found.square().sum(), list(layer.parameters()))
        for ours, theirs in zip(
            grads, torch.autograd.grad(expected.square().sum(), list(layer.parameters())), strict=True
        ):
            assert_close(ours, theirs, 1e-3)
    clusters = torch.arange(18) % 3
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(weight[clusters])
    layer.freeze_clusters(clusters.to(DEVICE))
    torch.compiler.cudagraph_mark_step_begin()
    assert_close(compiled(x, ids), layer(x, ids))


@pytest.mark.parametrize("mode", MODES)
def test_ids_out_of_range(mode: str) -> None:
    compiled = torch.compile(TaskLinear(18, 6, 10).to(DEVICE), mode=mode)
    x, ids = torch.randn(3, 6, device=DEVICE), torch.tensor([0, 18, 1], device=DEVICE)
    with pytest.raises(InputError, match="task id 18 is out of range"):
        compiled(x, ids)
    assert torch.ones(2, device=DEVICE).sum() == 2  # no assert of the device, after which nothing works


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_model(mode: str) -> None:
    torch.manual_seed(0)
    encoder = HAN(300, 8, 4, num_layers=1, dropout=0)
    model = NCMTL(encoder, 4, cluster_features=(8, 6), num_clusters=(2, 3)).to(DEVICE).eval()
    compiled = torch.compile(model, mode=mode)
    for number in (12, 12, 7):
        inputs, ids = moved(documents(number)), draw_tasks(number, 4).to(DEVICE)
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            assert_close(compiled(inputs, ids), model(inputs, ids))


@pytest.mark.filterwarnings("ignore:batches do not say of which half")
@pytest.mark.parametrize("mode", MODES)
def test_a_training_finds_the_kinds_of_tasks(mode: str, make_trainer: Callable[..., Trainer]) -> None:
    torch.manual_seed(0)
    model = torch.compile(Heads(), mode=mode)
    callback = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_epochs=8, freeze_after_epochs=9)
    make_trainer(**TRAINER, max_epochs=10, callbacks=[callback]).fit(model)
    assert same_groups(callback.assignments["heads"].tolist(), [0, 1] * 3)


def test_compiled_cluster_layers_in_a_training(
    make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    model = make_model()
    for number, layer in enumerate(model.cluster_layers):
        model.cluster_layers[number] = torch.compile(layer, mode="reduce-overhead")  # type: ignore[assignment]
    callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
    make_trainer(**TRAINER, max_epochs=3, callbacks=[callback]).fit(model, datamodule=datamodule)
    assert len(callback.assignments) == 2
