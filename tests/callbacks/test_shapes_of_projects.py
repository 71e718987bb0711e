"""The shapes of public projects, with the targets that docs/compatibility.md tells for each."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import shapes
import torch
from projects import unshared
from pytorch_lightning import Trainer
from shapes import Shape, inputs
from torch import Tensor, nn

from lightning_ncmtl import compact, count_parameters, load, save
from lightning_ncmtl.callbacks import NetworkClusteringCallback

MakeTrainer = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")

GUIDE = (Path(__file__).parents[2] / "docs/compatibility.md").read_text(encoding="utf-8")


def read_guide() -> dict[str, Any]:
    """The mappings of docs/compatibility.md."""
    (code,) = re.findall(r"```python\n(targets = {.+?})\n```", GUIDE, re.DOTALL)
    told: dict[str, Any] = {}
    exec(code, told)
    return dict(told["targets"])


class Adapted(Shape):
    """Languages with low-rank adapters of PEFT, each of them in two layers; batches are of one language each."""

    accumulate = shapes.TASKS

    def __init__(self) -> None:
        super().__init__()
        base = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
        config = peft.LoraConfig(r=2, target_modules=["0", "2"])
        self.net = peft.get_peft_model(base, config, adapter_name=shapes.NAMES[0])
        for name in shapes.NAMES[1:]:
            self.net.add_adapter(name, config)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_("lora_" in name)  # PEFT freezes all adapters but one

    def respond(self, x: Tensor, name: str) -> Tensor:
        self.net.set_adapter(name)
        return self.net(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.respond(x, name) for name in shapes.NAMES], 1)

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        language = int(task_ids[0])
        return (self.respond(x, shapes.NAMES[language])[:, 0] - y[:, language]).square().mean()

    def per_task(self) -> list[list[Any]]:
        layers = [self.net.base_model.model[place] for place in (0, 2)]
        parts = [[holder[name] for layer in layers for holder in (layer.lora_A, layer.lora_B)] for name in shapes.NAMES]
        return [[nn.ModuleList(theirs) for theirs in parts]]


def rows_of(parts: list[Any]) -> Tensor:
    """The parameters of each task, ``[N, D]``."""
    rows = [nn.utils.parameters_to_vector(p.parameters()) if isinstance(p, nn.Module) else p for p in parts]
    return torch.stack(rows).detach()


def test_the_guide_tells_of_all() -> None:
    ours = {name for name, each in vars(shapes).items() if isinstance(each, type) and issubclass(each, Shape)}
    assert set(read_guide()) == ours - {"Shape"} | {"LoRA"}


@pytest.mark.parametrize("warmup", ["apart", "shared"])
@pytest.mark.parametrize("name", read_guide())
def test_it_trains_resumes_and_becomes_compact(
    make_trainer: MakeTrainer, tmp_path: Path, name: str, warmup: Any
) -> None:
    cls: type[Shape] = getattr(shapes, name, Adapted)

    def run(epochs: int, path: Path | None = None) -> tuple[Trainer, NetworkClusteringCallback, Shape]:
        torch.manual_seed(0)
        callback = NetworkClusteringCallback(2, read_guide()[name], warmup_steps=9 // cls.accumulate + 1, warmup=warmup)
        trainer = make_trainer(max_epochs=epochs, callbacks=[callback], accumulate_grad_batches=cls.accumulate)
        trainer.fit(model := cls(), ckpt_path=path, weights_only=True)
        return trainer, callback, model

    run(1)[0].save_checkpoint(tmp_path / "half.ckpt")  # within the warm-up
    _, whole, expected = run(4)
    targets = dict(zip(whole.assignments.items(), expected.per_task(), strict=True))
    freed = 0
    for (target, assignment), parts in targets.items():
        rows = rows_of(parts)
        assert len(assignment) == 6, target
        assert unshared(rows, assignment) == 0, target
        freed += (6 - len(assignment.unique())) * rows.shape[1]
    _, resumed, model = run(4, tmp_path / "half.ckpt")
    assert resumed.clusters.summarize() == whole.clusters.summarize()
    for key, value in model.state_dict().items():
        assert value.equal(expected.state_dict()[key]), key

    small = compact(model.eval(), whole.assignments, whole.targets)
    save(small, tmp_path / "small")
    x = inputs(seed=5)[0]
    for each in (small, load(tmp_path / "small", cls())):
        assert each(x).equal(model(x))
    assert count_parameters(model)[""] - count_parameters(small)[""] == freed
