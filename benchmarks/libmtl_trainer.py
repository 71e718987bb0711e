"""Hard parameter sharing by LibMTL's Trainer on a CPU, for ``benchmarks/libmtl.py``.

LibMTL 1.1.5 asks for ``cuda:0``, and for names that torch and torchvision no longer have. Here it is not changed: a
subclass of its Trainer sets the device before the model is made, our batches have the method ``next``, and the module
``torchvision.models.utils`` is a stand-in. Its Trainer evaluates after each epoch, which is left out.
"""

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ncmtl import HardShare
from lightning_ncmtl.datamodules import MultiDomainDataModule

MISSING = (
    "LibMTL is not there: pip install --target FOLDER --no-deps libmtl==1.1.5, then --libmtl FOLDER (one of its "
    "own, as its requirements bring other packages)"
)
Predict = Callable[[dict[str, Any]], Tensor]


class Steps:
    """The documents of each step."""

    def __init__(self, data: MultiDomainDataModule, number: int) -> None:
        loader: Any = data.train_dataloader()
        self._documents = loader.dataset
        self._tasks = self._documents.tasks()
        self._places: list[Any] = []
        while len(self._places) < number:
            self._places += [np.array(places) for places in loader.sampler]
            loader.sampler.set_epoch(loader.sampler.epoch + 1)
        del self._places[number:]

    def mixed(self) -> list[dict[str, Any]]:
        return [self._documents[places] for places in self._places]

    def sorted(self) -> list[dict[str, Any]]:
        """One task after the other."""
        return [self._documents[places[self._tasks[places].argsort(kind="stable")]] for places in self._places]

    def of(self, task: int) -> list[dict[str, Any]]:
        return [self._documents[places[self._tasks[places] == task]] for places in self._places]


def wait_for_nothing() -> None:
    pass


class Batches:
    """A loader for both trainers, of batches that are ready. ``step`` is called before each."""

    def __init__(self, batches: list[Any], step: Callable[[], None]) -> None:
        self._length, self._batches, self._step = len(batches), iter(batches), step

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._step()
        return batch

    next = __next__  # the name that LibMTL calls


class Inputs(dict[str, Tensor]):
    """Documents with the method that LibMTL calls, and for :class:`OnePass` how many of them each task has."""

    counts: Sequence[int] = ()

    def to(self, *args: Any, **kwargs: Any) -> "Inputs":
        moved = Inputs({name: value.to(*args, **kwargs) for name, value in self.items()})
        moved.counts = self.counts
        return moved


class OnePass(nn.Module):
    """An encoder that returns a list: the rows of each task."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Inputs) -> list[Tensor]:
        return list(self.encoder(inputs).split(inputs.counts))


def import_libmtl(path: str | None) -> Any:
    """LibMTL, from a folder or as installed."""
    if path is not None:
        sys.path.append(path)
    if importlib.util.find_spec("LibMTL") is None:
        raise SystemExit(MISSING)
    gone = types.ModuleType("torchvision.models.utils")  # for its residual networks
    gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules.setdefault(gone.__name__, gone)
    return importlib.import_module("LibMTL")


def train_libmtl(
    start: HardShare,
    steps: Steps,
    step: Callable[[], None] = wait_for_nothing,
    *,
    one_pass: bool,
    learning_rate: float,
    path: str | None = None,
) -> Predict:
    """Train LibMTL's network, with the encoder and the first weights of one of ours.

    Args:
        start: Our network, whose encoder is trained.
        steps: The documents.
        step: Called before each step.
        one_pass: Whether the encoder runs once for all tasks.
        learning_rate: That of Adam.
        path: As for :func:`import_libmtl`.

    Returns:
        What makes logits of a mixed batch.
    """
    library = import_libmtl(path)
    encoder, decoders = start.encoder, split_layers(start)

    class OnCPU(library.Trainer):  # type: ignore[misc, name-defined]
        def _prepare_model(self, *args: Any) -> None:
            self.device = torch.device("cpu")
            super()._prepare_model(*args)

        def test(self, *args: Any, **kwargs: Any) -> None:
            pass

    metrics, losses = library.metrics.AccMetric, library.loss.CELoss
    tasks = {
        name: {"metrics": ["Acc"], "metrics_fn": metrics(), "loss_fn": losses(), "weight": [1]} for name in decoders
    }
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = OnCPU(
            tasks,
            library.weighting.EW,
            library.architecture.HPS,
            encoder_class=lambda: OnePass(encoder) if one_pass else encoder,
            decoders=decoders,
            rep_grad=False,
            multi_input=not one_pass,
            optim_param={"optim": "adam", "lr": learning_rate, "fused": True},
            scheduler_param=None,
            weight_args={},
            arch_args={},
        )
        loaders: Any = merge(steps, list(decoders), step) if one_pass else divide(steps, list(decoders), step)
        trainer.train(loaders, None, epochs=1)
    trainer.model.eval()

    def predict(batch: dict[str, Any]) -> Tensor:
        encoded = encoder(batch["inputs"])
        of_all = torch.stack([decoder(encoded) for decoder in decoders.values()])
        return of_all[batch["task_ids"], torch.arange(len(encoded))]

    return predict


def merge(steps: Steps, tasks: list[str], step: Callable[[], None]) -> Batches:
    """For one pass: all documents, and the labels of each task."""
    ready = []
    for batch in steps.sorted():
        inputs = Inputs(batch["inputs"])
        inputs.counts = batch["task_ids"].bincount(minlength=len(tasks)).tolist()
        ready.append((inputs, dict(zip(tasks, batch["labels"].split(inputs.counts), strict=True))))
    return Batches(ready, step)


def divide(steps: Steps, tasks: list[str], step: Callable[[], None]) -> dict[str, Batches]:
    """For a batch per task: a loader each, of which the first is asked first in each step."""
    loaders = {}
    for task, name in enumerate(tasks):
        ready = [(Inputs(batch["inputs"]), batch["labels"]) for batch in steps.of(task)]
        loaders[name] = Batches(ready, wait_for_nothing if task else step)
    return loaders


def split_layers(network: HardShare) -> nn.ModuleDict:
    """The layers of each task as plain ones, with the same weights."""

    def of(task: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for layer in (*network.layers, network.head):
            plain = nn.Linear(layer.in_features, layer.out_features)  # type: ignore[arg-type]
            plain.load_state_dict({name: weights[task] for name, weights in layer.state_dict().items()})
            parts += [nn.ReLU(), plain]
        return nn.Sequential(*parts[1:])

    return nn.ModuleDict({f"task{task}": of(task) for task in range(network.num_tasks)})
