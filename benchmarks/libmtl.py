"""Training side by side with LibMTL (https://github.com/median-research-group/LibMTL): speed and accuracy.

    pip install --target FOLDER --no-deps libmtl==1.1.5
    python benchmarks/libmtl.py --libmtl FOLDER --fdu_mtl FOLDER --json FILE

prints Markdown: documents per second of training, and the accuracy after as many steps. LibMTL trains hard parameter
sharing (architecture ``HPS``, weighting ``EW``) with its own Trainer. Equal on both sides are the encoder (our HAN) and
the layers of each task behind it with their widths and first weights, Adam (fused) and its learning rate, float32,
threads of torch, and the documents of each step: the same number of each task. Batches lie ready in memory, so that
loading is no part of it. LibMTL's sum over tasks of mean losses and our mean loss differ by a factor that Adam cancels.
With HardShare, our network without clustering, both train the same to the last digits but for dropout (the test of this
file checks it); NCMTL is the same network with network clustering.

LibMTL is run in two ways:

- *a batch per task*: its usual one (``multi_input=True``). The encoder runs once for each task and step.
- *one pass*: the fastest that its Trainer takes. The encoder gets all documents of a step and returns a list, the rows
  of each task, which ``multi_input=False`` hands to the decoders. Layers of tasks, losses and metrics remain a loop.

LibMTL 1.1.5 asks for ``cuda:0``, and for names that torch and torchvision no longer have. Here it is not changed: a
subclass of its Trainer sets the device before the model is made, our batches have the method ``next``, and the module
``torchvision.models.utils`` is a stand-in. Its Trainer evaluates in each epoch, which is left out.

All networks take turns of some steps, each in a process of its own, so that what disturbs the machine for longer than a
turn disturbs all: compare their ratios, medians over the rounds (and quartiles).
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import logging
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from lightning_ncmtl import NCMTL, HardShare
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.compatibility import Trainer
from lightning_ncmtl.datamodules import BatchSettings, MultiDomainDataModule, SplitSettings, TextSettings
from lightning_ncmtl.datamodules.sources import FDUMTL, Source, Synthetic
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.modules import MultiTaskModule

PER_TASK, ONE_PASS, PLAIN = "LibMTL, a batch per task", "LibMTL, one pass", "HardShare"
CLUSTERINGS: dict[str, dict[str, Any]] = {  # of NCMTL
    "NCMTL, shared warm-up": {"warmup_steps": 10**6},
    "NCMTL, after a shared warm-up": {"warmup_steps": 4},
    "NCMTL, clustering at each step": {"warmup": "apart", "warmup_steps": 4, "freeze_after_epochs": None},
}
DEFAULT = "NCMTL"  # its default: a shared warm-up, and as many clusters as there is evidence for
SPEED = (PER_TASK, ONE_PASS, PLAIN, *CLUSTERINGS)
ACCURACY = (PER_TASK, ONE_PASS, PLAIN, DEFAULT)
AIM = 2.0
MISSING = (
    "LibMTL is not there: pip install --target FOLDER --no-deps libmtl==1.1.5, then --libmtl FOLDER (one of its "
    "own, as its requirements bring other packages)"
)
Predict = Callable[[dict[str, Any]], Tensor]
Runs = list[dict[str, tuple[list[float], float]]]  # of each, by system: seconds of turns, accuracy


class Corpus(NamedTuple):
    """Documents and what reads them: settings of ``lightning_cli.yaml`` or ``configs/fdu_mtl.yaml``."""

    source: Source
    text: TextSettings
    validation: int
    encoder: dict[str, Any]
    features: tuple[int, ...]
    num_clusters: tuple[int, ...]  # where speed is measured
    learning_rate: float


class Case(NamedTuple):
    """A training, but for the system."""

    corpus: Corpus
    threads: int
    libmtl: str | None
    cache_dir: str
    documents: int = 4  # of each task in a step
    epochs: int = 1
    steps: int = 1  # of an epoch
    seed: int = 0


class Turns:
    """Waits for its turn, and tells how long each took."""

    def __init__(self, steps: int, parent: "Connection[float, None]") -> None:
        self.steps, self.parent = steps, parent
        self._count, self._start = 0, 0.0

    def step(self) -> None:
        """Before each step."""
        if self._count % self.steps == 0:
            self.end()
            self.parent.recv()
            self._start = time.perf_counter()
        self._count += 1

    def end(self) -> None:
        if self._count:
            self.parent.send(time.perf_counter() - self._start)


class Batches:
    """A loader for both trainers, of batches that are ready: each pass over it is an epoch, with the next of them."""

    def __init__(self, batches: Iterable[Any], length: int, step: Callable[[], None] | None = None) -> None:
        self._batches, self._length, self._step = iter(batches), length, step
        self._left = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> "Batches":
        self._left = self._length
        return self

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        self._left -= 1
        if self._step is not None:
            self._step()
        return next(self._batches)

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


def make_data(case: Case) -> MultiDomainDataModule:
    """Each batch has as many documents of each task."""
    corpus = case.corpus
    size = case.documents * len(corpus.source.domains())
    data = MultiDomainDataModule(
        corpus.source,
        split=SplitSettings(corpus.validation),
        text=corpus.text,
        batches=BatchSettings(size, quota=case.documents),
        cache_dir=case.cache_dir,
        seed=case.seed,
    )
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


class Steps:
    """The documents of each step."""

    def __init__(self, data: MultiDomainDataModule, case: Case) -> None:
        loader: Any = data.train_dataloader()
        self._documents = loader.dataset
        self._tasks = self._documents.tasks()
        self._places: list[Any] = []
        for epoch in range(case.epochs):
            loader.sampler.set_epoch(epoch)
            self._places += [np.array(places) for places in itertools.islice(loader.sampler, case.steps)]

    def mixed(self) -> list[dict[str, Any]]:
        return [self._documents[places] for places in self._places]

    def sorted(self) -> list[dict[str, Any]]:
        """One task after the other."""
        return [self._documents[places[self._tasks[places].argsort(kind="stable")]] for places in self._places]

    def of(self, task: int) -> list[dict[str, Any]]:
        return [self._documents[places[self._tasks[places] == task]] for places in self._places]


def train(system: str, case: Case, data: MultiDomainDataModule, step: Callable[[], None] | None = None) -> Predict:
    """Train a system, and give what makes logits of a mixed batch. ``step`` is called before each step, and may wait."""
    corpus, steps = case.corpus, Steps(data, case)
    torch.manual_seed(case.seed)
    encoder = HAN(data.vocab_size, **corpus.encoder)
    settings: dict[str, Any] = {
        "num_classes": data.num_classes,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, corpus.learning_rate, fused=True),
    }
    if system in (DEFAULT, *CLUSTERINGS):
        clusters: Any = "auto" if system == DEFAULT else corpus.num_clusters
        ncmtl = NCMTL(encoder, data.num_tasks, cluster_features=corpus.features, num_clusters=clusters, **settings)
        clustering = NetworkClusteringCallback(seed=case.seed, **CLUSTERINGS.get(system, {}))
        return train_ours(ncmtl, [clustering], case, steps, step)
    hard_share = HardShare(encoder, data.num_tasks, features=corpus.features, **settings)
    if system == PLAIN:
        return train_ours(hard_share, [], case, steps, step)
    return train_libmtl(hard_share, case, steps, step, one_pass=system == ONE_PASS)


def train_ours(
    model: MultiTaskModule, callbacks: list[Any], case: Case, steps: Steps, step: Callable[[], None] | None
) -> Predict:
    silent: Any = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")}
    trainer = Trainer(accelerator="cpu", max_epochs=case.epochs, logger=False, callbacks=callbacks, **silent)
    trainer.fit(model, Batches(steps.mixed(), case.steps, step))
    model.eval()
    return lambda batch: model(batch["inputs"], batch["task_ids"])


def train_libmtl(
    start: HardShare, case: Case, steps: Steps, step: Callable[[], None] | None, one_pass: bool
) -> Predict:
    """With the encoder and the first weights of a network of ours."""
    library = import_libmtl(case.libmtl)
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
    loaders: Any = {}
    for task, name in enumerate(decoders) if not one_pass else ():
        ready: list[Any] = [(Inputs(batch["inputs"]), batch["labels"]) for batch in steps.of(task)]
        loaders[name] = Batches(ready, case.steps, None if task else step)
    if one_pass:
        ready = []
        for batch in steps.sorted():
            inputs = Inputs(batch["inputs"])
            inputs.counts = batch["task_ids"].bincount(minlength=len(decoders)).tolist()
            ready.append((inputs, dict(zip(decoders, batch["labels"].split(inputs.counts), strict=True))))
        loaders = Batches(ready, case.steps, step)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = OnCPU(
            tasks,
            library.weighting.EW,
            library.architecture.HPS,
            encoder_class=lambda: OnePass(encoder) if one_pass else encoder,
            decoders=decoders,
            rep_grad=False,
            multi_input=not one_pass,
            optim_param={"optim": "adam", "lr": case.corpus.learning_rate, "fused": True},
            scheduler_param=None,
            weight_args={},
            arch_args={},
        )
        trainer.train(loaders, None, case.epochs)
    trainer.model.eval()

    def predict(batch: dict[str, Any]) -> Tensor:
        encoded = encoder(batch["inputs"])
        of_all = torch.stack([decoder(encoded) for decoder in decoders.values()])
        return of_all[batch["task_ids"], torch.arange(len(encoded))]

    return predict


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


def import_libmtl(path: str | None) -> Any:
    if path is not None:
        sys.path.append(path)
    if importlib.util.find_spec("LibMTL") is None:
        raise SystemExit(MISSING)
    gone = types.ModuleType("torchvision.models.utils")  # for its residual networks
    gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules.setdefault(gone.__name__, gone)
    return importlib.import_module("LibMTL")


@torch.no_grad()
def measure_accuracy(predict: Predict, data: MultiDomainDataModule) -> float:
    """Of test documents, averaged over tasks."""
    right, seen = torch.zeros(data.num_tasks), torch.zeros(data.num_tasks)
    for batch in data.test_dataloader():
        found = predict(batch).argmax(1) == batch["labels"]
        right.index_add_(0, batch["task_ids"], found.float())
        seen.index_add_(0, batch["task_ids"], torch.ones(len(found)))
    return float((right / seen).mean())


def work(system: str, case: Case, turn: int, parent: "Connection[float, None]") -> None:
    """In a process of its own: one of the trainings."""
    quiet()
    torch.set_num_threads(case.threads)
    data = make_data(case)
    turns = Turns(turn, parent)
    predict = train(system, case, data, turns.step)
    turns.end()
    parent.send(measure_accuracy(predict, data))


def run_side_by_side(systems: Sequence[str], case: Case, turn: int) -> dict[str, tuple[list[float], float]]:
    """Of each system the seconds of its turns, without the first, which warms up; and its accuracy."""
    context = multiprocessing.get_context("spawn")
    times: dict[str, list[float]] = {system: [] for system in systems}
    pipes: dict[str, Connection[None, float]] = {}
    processes = []
    for system in systems:
        pipes[system], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(system, case, turn, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that the end of the process is noticed
    for number in range(case.epochs * case.steps // turn):
        for system in systems[:: 1 if number % 2 else -1]:
            pipes[system].send(None)
            times[system].append(pipes[system].recv())
    found = {system: (times[system][1:], pipes[system].recv()) for system in systems}
    for process in processes:
        process.join()
    return found


def quiet() -> None:
    datasets.disable_progress_bars()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")


def describe(fdu_mtl: str | None) -> Corpus:
    if fdu_mtl is None:
        encoder = {"embedding_dim": 32, "hidden_size": 16, "num_layers": 1, "dropout": 0.1}
        text = TextSettings(vocab_size=500)
        return Corpus(Synthetic(num_domains=14), text, 20, encoder, (64, 32), (3, 6), 0.003)
    encoder = {"embedding_dim": 200, "hidden_size": 50, "num_layers": 2, "dropout": 0.3}
    text = TextSettings(max_words=40, max_sentences=30)
    return Corpus(FDUMTL(fdu_mtl), text, 200, encoder, (32, 32, 16), (3, 5, 10), 0.001)


def speeds(runs: Runs, system: str, documents: int) -> dict[str, Any]:
    """Documents per second, of turns with so many documents, and how many times as fast as LibMTL: quartiles."""
    turns = [seconds for run in runs for seconds in run[system][0]]
    found: dict[str, Any] = {"system": system, "rate": documents / statistics.median(turns)}
    for base in (PER_TASK, ONE_PASS):
        theirs = [seconds for run in runs for seconds in run[base][0]]
        ratios = [other / mine for mine, other in zip(turns, theirs, strict=True)]
        found[base] = statistics.quantiles(ratios, n=4, method="inclusive")
    return found


def accuracies(runs: Runs, system: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and mean and standard error of the difference to LibMTL's."""
    found = np.array([run[system][1] for run in runs])
    differences = found - np.array([run[PER_TASK][1] for run in runs])
    error = differences.std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else np.nan
    spread = found.std(ddof=1) if len(runs) > 1 else np.nan
    return {"accuracy": [found.mean(), spread], "difference": [differences.mean(), error]}


def row(cells: Iterable[object], header: bool = False) -> None:
    shown = [str(cell) for cell in cells]
    print("| " + " | ".join(shown) + " |" + ("\n|" + " --- |" * len(shown)) * header, flush=True)


def speed_cells(found: dict[str, Any]) -> list[str]:
    ratios = [found[base] for base in (PER_TASK, ONE_PASS)]
    return [f"{found['rate']:,.0f}", *(f"{b:.2f} ({a:.2f} to {c:.2f})" for a, b, c in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libmtl", help="folder that LibMTL is in, where it is not installed")
    parser.add_argument("--fdu_mtl", help="folder of FDU-MTL, in the place of the embedded corpus")
    parser.add_argument("--documents", type=int, nargs="+", default=[2, 4, 16], help="of each task in a step")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each system, for speed")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--seeds", type=int, default=5, help="trainings for accuracy; 0 for none")
    parser.add_argument("--epochs", type=int, default=10, help="of these; their steps have 4 documents of each task")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    import_libmtl(arguments.libmtl)
    quiet()
    corpus = describe(arguments.fdu_mtl)
    tasks, turn = len(corpus.source.domains()), arguments.steps
    machine = f"{platform.machine()}, threads: {arguments.threads}, torch {torch.__version__}"
    print(f"{machine}, Python {platform.python_version()}; {tasks} tasks\n\nSpeed:\n")
    times = ["documents/s", *(f"times {base}" for base in (PER_TASK, ONE_PASS))]
    row(["documents a step", "system", *times], header=True)
    speed, accuracy = list[dict[str, Any]](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        common = {"corpus": corpus, "threads": arguments.threads, "libmtl": arguments.libmtl, "cache_dir": folder}
        make_data(Case(**common))  # for all processes, which find it there
        for documents in arguments.documents:
            case = Case(**common, documents=documents, steps=turn * (arguments.rounds + 1))
            runs = [run_side_by_side(SPEED, case, turn)]
            for system in SPEED:
                speed.append({"documents": documents * tasks, **speeds(runs, system, documents * tasks * turn)})
                row([documents * tasks, system, *speed_cells(speed[-1])])
        if arguments.seeds:
            case = Case(**common)
            length = len(make_data(case).train_dataloader())
            print(f"\nAccuracy after {arguments.epochs} epochs of {length} steps:\n")
            row(["system", "accuracy", "less LibMTL's", *times], header=True)
            case = case._replace(epochs=arguments.epochs, steps=length)
            runs = [run_side_by_side(ACCURACY, case._replace(seed=seed), turn) for seed in range(arguments.seeds)]
            for system in ACCURACY:
                each = {**accuracies(runs, system), **speeds(runs, system, case.documents * tasks * turn)}
                accuracy.append(each)
                cells = ["{:.4f} ± {:.4f}".format(*each[key]) for key in ("accuracy", "difference")]
                row([system, *cells, *speed_cells(each)])
    if arguments.json:
        content = {"machine": machine, "speed": speed, "accuracy": accuracy}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    clustered = [case for case in speed if case["system"] in CLUSTERINGS]
    for base in (PER_TASK, ONE_PASS):
        missed = [f"{case['documents']} documents, {case['system']}" for case in clustered if case[base][1] < AIM]
        print(f"\nLess than {AIM:.0f} times {base}: {'; '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
