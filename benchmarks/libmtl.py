"""Training side by side with LibMTL (https://github.com/median-research-group/LibMTL): speed and accuracy.

    pip install --target FOLDER --no-deps libmtl==1.1.5
    python benchmarks/libmtl.py --libmtl FOLDER --fdu_mtl FOLDER --json FILE

prints Markdown: documents per second of training, and the accuracy after as many steps. LibMTL trains hard parameter
sharing (architecture ``HPS``, weighting ``EW``) with its own Trainer. Equal on both sides are the encoder (our HAN) and
the layers of each task behind it with their widths, Adam (fused) and its learning rate, float32, threads of torch, and
the documents of each step: the same number of each task. Batches lie ready in memory, so that loading is no part of it.
LibMTL's sum over tasks of mean losses and our mean loss differ by a factor that Adam cancels. LibMTL starts from the
weights of our HardShare, the network without clustering, and without dropout both learn the same weights (the test of
this file checks it). NCMTL is the same network with network clustering.

LibMTL is run in two ways:

- *a batch per task*: its usual one (``multi_input=True``). The encoder runs once for each task and step.
- *one pass*: the fastest that its Trainer takes. The encoder gets all documents of a step and returns a list, the rows
  of each task, which ``multi_input=False`` hands to the decoders. Layers of tasks, losses and metrics remain a loop.

``benchmarks/libmtl_trainer.py`` says how it runs on a CPU. With ``--torch_lstm`` the HAN of LibMTL reads with torch's
own LSTM, as one would write it, instead of ours, which trains in less time on a CPU and gives the same numbers.

All networks take turns of some steps, each in a process of its own, so that what disturbs the machine for longer than a
turn disturbs all: compare their ratios, medians over the rounds (and quartiles).
"""

import argparse
import json
import logging
import math
import multiprocessing
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from libmtl_trainer import Batches, Predict, Steps, import_libmtl, train_libmtl, wait_for_nothing
from torch import nn

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
DOCUMENTS = 4  # of each task in a step, in trainings for accuracy
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
    torch_lstm: bool = False  # of LibMTL's HAN
    documents: int = DOCUMENTS  # of each task in a step
    steps: int = 1
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
    data.setup("fit")
    return data


def train(system: str, case: Case, data: MultiDomainDataModule, step: Callable[[], None] = wait_for_nothing) -> Predict:
    """Train a system, and give what makes logits of a mixed batch. ``step`` is called before each step."""
    corpus, steps = case.corpus, Steps(data, case.steps)
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
        return train_ours(ncmtl, [clustering], Batches(steps.mixed(), step))
    hard_share = HardShare(encoder, data.num_tasks, features=corpus.features, **settings)
    if system == PLAIN:
        return train_ours(hard_share, [], Batches(steps.mixed(), step))
    for module in hard_share.modules() if case.torch_lstm else ():
        if isinstance(module, nn.LSTM):  # ours, which gives the same numbers
            module.__class__ = nn.LSTM
    one_pass, rate = system == ONE_PASS, corpus.learning_rate
    return train_libmtl(hard_share, steps, step, one_pass=one_pass, learning_rate=rate, path=case.libmtl)


def train_ours(model: MultiTaskModule, callbacks: list[Any], batches: Batches) -> Predict:
    silent: Any = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")}
    Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=callbacks, **silent).fit(model, batches)
    model.eval()
    return lambda batch: model(batch["inputs"], batch["task_ids"])


@torch.no_grad()
def measure_accuracy(predict: Predict, data: MultiDomainDataModule) -> float:
    """Of validation documents, by which nothing is chosen, averaged over tasks."""
    right, seen = torch.zeros(data.num_tasks), torch.zeros(data.num_tasks)
    for batch in data.val_dataloader():
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
    for number in range(case.steps // turn):
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
        return Corpus(Synthetic(num_domains=14, train_documents=480), text, 200, encoder, (64, 32), (3, 6), 0.003)
    encoder = {"embedding_dim": 200, "hidden_size": 50, "num_layers": 2, "dropout": 0.3}
    text = TextSettings(max_words=40, max_sentences=30)
    return Corpus(FDUMTL(fdu_mtl), text, 200, encoder, (32, 32, 16), (3, 5, 10), 0.001)


def summarize(runs: Runs, system: str, documents: int) -> dict[str, Any]:
    """Of all turns, with so many documents, and all runs.

    Documents per second; how many times as fast as LibMTL it is (quartiles); the accuracy and what it is more than
    LibMTL's with a batch per task (mean and standard error).
    """
    turns = {name: [seconds for run in runs for seconds in run[name][0]] for name in (system, PER_TASK, ONE_PASS)}
    found: dict[str, Any] = {"system": system, "rate": documents / statistics.median(turns[system])}
    for base in (PER_TASK, ONE_PASS):
        ratios = [theirs / mine for mine, theirs in zip(turns[system], turns[base], strict=True)]
        found[base] = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    accuracies = {"accuracy": [run[system][1] for run in runs]}
    accuracies["difference"] = [run[system][1] - run[PER_TASK][1] for run in runs]
    for name, values in accuracies.items():
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
        found[name] = [statistics.mean(values), error]
    return found


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
    parser.add_argument(
        "--documents", type=int, nargs="*", default=[2, 4, 16], help="of each task in a step; none for no speed"
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of each system, for speed")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--seeds", type=int, default=5, help="trainings for accuracy; 0 for none")
    parser.add_argument("--training", type=int, default=750, help="steps of these")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument(
        "--torch_lstm", action="store_true", help="LibMTL's HAN reads with torch's own LSTM instead of ours"
    )
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    import_libmtl(arguments.libmtl)
    quiet()
    corpus = describe(arguments.fdu_mtl)
    tasks, turn = len(corpus.source.domains()), arguments.steps
    machine = f"{platform.machine()}, threads: {arguments.threads}, torch {torch.__version__}"
    print(f"{machine}, Python {platform.python_version()}; {tasks} tasks\n")
    times = ["documents/s", *(f"times {base}" for base in (PER_TASK, ONE_PASS))]
    if arguments.documents:
        row(["documents a step", "system", *times], header=True)
    speed, accuracy = list[dict[str, Any]](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(corpus, arguments.threads, arguments.libmtl, folder, arguments.torch_lstm)
        make_data(case)  # for all processes, which find it there
        for documents in arguments.documents:
            case = case._replace(documents=documents, steps=turn * (arguments.rounds + 1))
            runs = [run_side_by_side(SPEED, case, turn)]
            for system in SPEED:
                speed.append({"documents": documents * tasks, **summarize(runs, system, documents * tasks * turn)})
                row([documents * tasks, system, *speed_cells(speed[-1])])
        if arguments.seeds:
            case = case._replace(documents=DOCUMENTS, steps=arguments.training // turn * turn)
            print(f"\nTrainings of {case.steps} steps with {DOCUMENTS * tasks} documents:\n")
            row(["system", "accuracy", "less LibMTL's", *times], header=True)
            runs = [run_side_by_side(ACCURACY, case._replace(seed=seed), turn) for seed in range(arguments.seeds)]
            for system in ACCURACY:
                accuracy.append(summarize(runs, system, DOCUMENTS * tasks * turn))
                cells = ["{:.4f} ± {:.4f}".format(*accuracy[-1][key]) for key in ("accuracy", "difference")]
                row([system, *cells, *speed_cells(accuracy[-1])])
    if arguments.json:
        content = {"machine": machine, "speed": speed, "accuracy": accuracy}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    clustered = [case for case in speed if case["system"] in CLUSTERINGS]
    for base in (PER_TASK, ONE_PASS) if speed else ():
        missed = [f"{case['documents']} documents, {case['system']}" for case in clustered if case[base][1] < AIM]
        print(f"\nLess than {AIM:.0f} times {base}: {'; '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
