"""What network clustering costs a training: steps of a network with the callback against those of one without it.

    python benchmarks/overhead.py --fdu_mtl FOLDER --json FILE

prints Markdown, for a shared warm-up that does not end, and for clusters after a warm-up apart: the callback clusters
at every step from the sixth on, and never freezes. Settings are those of ``lightning_cli.yaml`` on the embedded corpus
and, with ``--fdu_mtl``, of ``configs/fdu_mtl.yaml`` on the real one (without word vectors, which would not change the
time), each with the encoders of ``--encoder``. ``--paper`` adds the setting of ``configs/paper.yaml``, on the embedded
corpus where there is no other.

Two processes train the same network on the same batches, one of them without the callback, and take turns of some
steps: what disturbs the machine for longer than a turn disturbs both. Two figures come out, median and quartiles:

- *in the callback*: the time inside the callback's hooks, as a share of the rest of the steps. It is precise, but lacks
  what logging costs elsewhere, and on a GPU it is the time of the CPU alone, which does not wait.
- *with / without*: the time of each turn with the callback by that of the turn without it next to it, less one. It has
  everything, and the noise of the machine.

What it would be of a step of 2 ms, the time in the callback says: it does not depend on the rest of the network.
"""

import argparse
import itertools
import json
import logging
import multiprocessing
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import torch

from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.cli import NCMTLCLI, make_cli
from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer

CONFIGS = Path(__file__).parent.parent / "configs"
ARMS = ("with", "without")
HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
Times = tuple[float, float]
WARMUPS = {
    "shared": ["--clustering.warmup=shared", "--clustering.warmup_steps=1000000"],
    "apart": ["--clustering.warmup=apart", "--clustering.warmup_steps=5", "--clustering.freeze_after_epochs=null"],
}
PAPER = [  # of configs/paper.yaml what matters for the time
    "--model.encoder.init_args.embedding_dim=200",
    "--model.encoder.init_args.hidden_size=100",
    "--model.encoder.init_args.num_layers=2",
    "--model.cluster_features=[32,32,16]",
    "--model.num_clusters=[3,5,10]",
]
PAPER_AIM, SHORT_AIM, SHORT = 0.02, 0.1, 2e-3  # of a step of the paper's setting; of one of so many seconds
ENCODERS = {"han": [], "ngram": ["--model.encoder=lightning_ncmtl.encoders.NGram"]}  # beside what the settings say


class Objects(NCMTLCLI):
    """Makes trainer, model and data, and trains nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Turns(Callback):
    """The first that runs: it waits for its turn, and tells the times of each, its whole and that in some hooks."""

    def __init__(self, steps: int, parent: "Connection[Times, None]") -> None:
        self.steps, self.parent = steps, parent
        self._start = self._inside = 0.0

    def watch(self, callback: Callback) -> None:
        """Add up the time in the hooks of a callback."""

        def timed(hook: Callable[..., None]) -> Callable[..., None]:
            def run(*args: Any, **kwargs: Any) -> None:
                start = time.perf_counter()
                hook(*args, **kwargs)
                self._inside += time.perf_counter() - start

            return run

        for name in HOOKS:
            setattr(callback, name, timed(getattr(callback, name)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step % self.steps == 0 and trainer.global_step:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.parent.send((time.perf_counter() - self._start, self._inside))
            self._wait()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parent.send((time.perf_counter() - self._start, self._inside))

    def _wait(self) -> None:
        self.parent.recv()
        self._start, self._inside = time.perf_counter(), 0.0


def train(arm: str, arguments: list[str], steps: int, threads: int, parent: "Connection[Times, None]") -> None:
    """In a process of its own: one of the trainings."""
    quiet()
    torch.set_num_threads(threads)
    cli = make_cli(["fit", *arguments], Objects, save_last=False)
    found: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    (seed,) = (callback for callback in found if isinstance(callback, StepSeed))
    (clustering,) = (callback for callback in found if isinstance(callback, NetworkClusteringCallback))
    turns = Turns(steps, parent)
    turns.watch(clustering)
    # Nothing else: neither checkpoints nor reports.
    found[:] = [turns, seed, *([clustering] if arm == "with" else [])]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


def take_turns(arguments: list[str], pairs: int, steps: int, threads: int) -> dict[str, list[Times]]:
    """Both trainings; of each turn the whole time, and the part that was spent in the callback."""
    context = multiprocessing.get_context("spawn")
    times: dict[str, list[Times]] = {arm: [] for arm in ARMS}
    trainings: dict[str, Connection[None, Times]] = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for arm in ARMS:
            trainings[arm], theirs = context.Pipe()
            given = (arm, [*arguments, f"--run_dir={folder}/{arm}"], steps, threads, theirs)
            processes.append(context.Process(target=train, args=given, daemon=True))
            processes[-1].start()
            theirs.close()  # so that the end of the process is noticed
        for pair in range(pairs):
            for arm in ARMS[:: 1 if pair % 2 else -1]:
                trainings[arm].send(None)
                times[arm].append(trainings[arm].recv())
        for process in processes:
            process.join()
    return times


def quiet() -> None:
    datasets.disable_progress_bars()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")


def compare(arguments: list[str], pairs: int, steps: int, threads: int) -> dict[str, Any]:
    settings = [
        "trainer.devices=1",
        "trainer.max_epochs=-1",
        f"trainer.max_steps={steps * (pairs + 1)}",
        "trainer.limit_val_batches=0",
    ]
    settings += ["trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
    times = take_turns([*arguments, *(f"--{setting}" for setting in settings)], pairs + 1, steps, threads)
    ours, theirs = times["with"][1:], times["without"][1:]  # after the first turns, which warm up
    return {
        "step": statistics.median(whole for whole, _ in theirs) / steps,
        "callback": statistics.median(inside for _, inside in ours) / steps,
        "inside": statistics.quantiles([inside / (whole - inside) for whole, inside in ours], n=4),
        "ratio": statistics.quantiles(
            [one / other - 1 for (one, _), (other, _) in zip(ours, theirs, strict=True)], n=4
        ),
    }


def read_corpora(fdu_mtl: str | None, paper: bool) -> dict[str, list[str]]:
    """Names and settings."""
    corpora = {"embedded": ["--model.num_clusters=[3,18]"]}
    real = [f"--data.source.path={fdu_mtl}"]
    if fdu_mtl:
        corpora["FDU-MTL"] = [f"--config={CONFIGS / 'fdu_mtl.yaml'}", *real, "--model.num_clusters=[3,5,10]"]
    if paper and fdu_mtl:
        corpora["paper"] = [f"--config={CONFIGS / 'paper.yaml'}", *real, "--data.text.vectors=null"]
    elif paper:
        corpora["paper, embedded"] = PAPER
    return corpora


def aims(cases: list[dict[str, Any]]) -> list[str]:
    """The shares at most, of the medians."""
    lines = []
    papers = [case["inside"][1] for case in cases if case["corpus"].startswith("paper")]
    if papers:
        lines.append(f"Of a step of the paper's setting (aim: at most {PAPER_AIM:.0%}): {max(papers):.1%}")
    short = max(case["callback"] for case in cases) / SHORT
    return [*lines, f"Of a step of {SHORT * 1e3:g} ms (aim: at most {SHORT_AIM:.0%}): {short:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fdu_mtl", help="folder of FDU-MTL")
    parser.add_argument("--paper", action="store_true", help="also the setting of configs/paper.yaml")
    parser.add_argument("--encoder", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--accelerator", default="auto", help="cpu or gpu; by default what is there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of turns")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    quiet()
    corpora = read_corpora(arguments.fdu_mtl, arguments.paper)
    gpu = torch.cuda.is_available() and arguments.accelerator != "cpu"
    device = torch.cuda.get_device_name() if gpu else f"CPU, {arguments.threads} threads"
    machine = f"{platform.machine()}, {device}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine}; {arguments.pairs} pairs of turns of {arguments.steps} steps\n")
    header = [
        "corpus",
        "encoder",
        "warm-up",
        "step without, ms",
        "in the callback, ms",
        "in the callback",
        "with / without",
    ]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header), flush=True)
    found = []
    for (corpus, settings), encoder, warmup in itertools.product(corpora.items(), arguments.encoder, WARMUPS):
        if corpus.startswith("paper") and encoder != "han":
            continue
        given = [*settings, *ENCODERS[encoder], *WARMUPS[warmup], f"--trainer.accelerator={arguments.accelerator}"]
        result = compare(given, arguments.pairs, arguments.steps, arguments.threads)
        found.append({"corpus": corpus, "encoder": encoder, "warmup": warmup, **result})
        shares = [f"{b:.1%} ({a:.1%} to {c:.1%})" for a, b, c in (result["inside"], result["ratio"])]
        times = [f"{result[key] * 1e3:.2f}" for key in ("step", "callback")]
        print("| " + " | ".join([corpus, encoder, warmup, *times, *shares]) + " |", flush=True)
    if arguments.json:
        content = {"machine": machine, "pairs": arguments.pairs, "steps": arguments.steps, "cases": found}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    print("", *(f"- {line}" for line in aims(found)), sep="\n")


if __name__ == "__main__":
    main()
