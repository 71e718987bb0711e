"""What more tasks cost: time and memory of training steps with network clustering, against the number of tasks N.

    python benchmarks/scaling.py --json FILE --figure FILE.png

prints Markdown. The network is :class:`lightning_ncmtl.NCMTL` with nothing before its layers per task: a cluster layer
from 64 to 32 with K = min(20, N / 2) clusters (for two tasks one, without k-means) and a head from 32 to 2.
``Trainer.fit`` trains it with Adam on batches that are ready, of a fixed number of rows, spread evenly over the tasks
(more tasks than rows have their turns). The warm-up has 20 steps, or more until each task came four times; then the
callback clusters at every step and never freezes. In a step that *moves* a task to another cluster it has more to do.

Each N has a process of its own. There the callback works in every second turn of some steps: *with* and *without* are
medians of the same training, without the first step of each turn, which finds the caches as the other turns left them.
Forward and backward pass and optimizer are medians of the turns without. The *loop* is another training, without
clustering, of a ModuleList with a small network per task, each called on its rows: what one would write otherwise.
Where there are more tasks than rows, it does less: it leaves absent tasks alone, while Adam moves all stacked weights.

Memory is the peak above what the process held before, up to the *first* clustering and in *later* steps. The floor is
what must be held: weights, gradients, two averages of Adam, and the residuals of the cluster layer.
"""

import argparse
import itertools
import json
import logging
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer
from lightning_ncmtl.modules import MultiTaskModule

WIDTHS = (64, 32, 2)
MOST_CLUSTERS = 20
WARMUP, PASSES, TURN = 20, 4, 6  # steps and passes over all tasks, before the first clustering; steps of a turn
CURVES = {  # in the picture: a key of the results, and its name
    "with": "step with",
    "without": "step without",
    "callback": "in the callback",
    "loop": "step of the loop",
    "memory_first": "memory, first",
    "memory_later": "memory, later",
    "floor": "floor",
}


class Clustering(NetworkClusteringCallback):
    """It works in every second turn, and tells when it begins."""

    on, began = True, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.began = time.perf_counter()
        if self.on:
            super().on_train_batch_end(trainer, pl_module, *args)


class Clock(Callback):
    """Runs after the clustering: takes the times, says whose turn it is, and ends the training."""

    def __init__(self, clustering: Clustering | None, warmup: int, seconds: float) -> None:
        self.clustering, self.warmup, self.seconds, self.steps = clustering, warmup, seconds, 0
        self.moves, self._assignment = list[bool](), torch.empty(0)
        self.times: dict[bool, list[dict[str, float]]] = {True: [], False: []}  # with and without
        self.first = self.first_peak = self._start = self._forward = self._last = self._turns_from = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = time.perf_counter()

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._forward = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        now = time.perf_counter()
        began = self.clustering.began if self.clustering else now
        on = self.clustering is not None and self.clustering.on
        found = {"with" if on else "without": now - self._last, "forward": self._forward - self._start}
        found |= {"optimizer": began - self._forward, "callback": now - began}
        turn, place = divmod(self.steps - self.warmup - 1, TURN)  # -1 and the last at the first clustering
        if turn >= 0 and place:
            self.times[on].append(found)
        self.steps += 1
        if self.steps == self.warmup + 1:
            self.first, self.first_peak, self._turns_from = found["callback"], peak_memory(), now
            forget_peak()
        for assignment in self.clustering.assignments.values() if self.clustering and on else ():
            self.moves += [not torch.equal(assignment, self._assignment)] if turn >= 0 else []
            self._assignment = assignment.clone()
        turn += place == TURN - 1  # of the next step
        if self.clustering:
            self.clustering.on = turn < 0 or turn % 2 == 0
        trainer.should_stop = turn >= 4 and turn % 2 == 0 and now > self._turns_from + self.seconds
        self._last = time.perf_counter()


class Vectors(nn.Identity):
    """No hard layers: inputs are vectors."""

    out_features = WIDTHS[0]


class Loop(MultiTaskModule):
    """A network for each task, one called after the other."""

    skips_absent_tasks = True

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks, WIDTHS[2])
        sizes = [nn.Sequential(nn.Linear(*WIDTHS[:2]), nn.ReLU(), nn.Linear(*WIDTHS[1:])) for _ in range(num_tasks)]
        self.networks = nn.ModuleList(sizes)

    def logits(self, inputs: Tensor, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        order = task_ids.argsort(stable=True)
        counts = task_ids.bincount(minlength=self.num_tasks).tolist()
        parts = zip(self.networks, inputs[order].split(counts), strict=True)
        return torch.cat([network(mine) for network, mine in parts if len(mine)])[order.argsort()]


class Batches:
    """Vectors whose label is a side of a plane, which the tasks of each of K groups have in common; without end."""

    def __init__(self, tasks: int, clusters: int, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        planes = torch.randn(clusters, WIDTHS[0], generator=generator)
        self.made = []
        for number in range(max(16, math.ceil(tasks / rows))):
            task_ids = (number * rows + torch.randperm(rows, generator=generator)) % tasks
            inputs = torch.randn(rows, WIDTHS[0], generator=generator)
            labels = ((inputs * planes[task_ids % clusters]).sum(1) > 0).long()
            self.made.append({"inputs": inputs, "task_ids": task_ids, "labels": labels})

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return itertools.cycle(self.made)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The most that this process held since it was told to forget, in MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def measure(tasks: int, rows: int, loop: bool, seconds: float) -> dict[str, Any]:
    """One training, in this process."""
    clusters = min(MOST_CLUSTERS, tasks // 2)
    batches = Batches(tasks, clusters, rows)
    forget_peak()
    before = peak_memory()
    warmup = max(WARMUP, PASSES * math.ceil(tasks / rows))
    clustering = None if loop else Clustering(warmup_steps=warmup, freeze_after_epochs=None)
    model = (
        Loop(tasks)
        if loop
        else NCMTL(Vectors(), tasks, num_classes=WIDTHS[2], cluster_features=WIDTHS[1:2], num_clusters=[clusters])
    )
    clock = Clock(clustering, warmup, seconds)
    silent: Any = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")}
    callbacks: list[Callback] = [clustering, clock] if clustering else [clock]
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=-1, logger=False, callbacks=callbacks, **silent)
    trainer.fit(model, batches)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    held = 4 * sum(sizes.values()) + sum(size for name, size in sizes.items() if name.startswith("cluster_layers"))
    found: dict[str, Any] = {"tasks": tasks, "clusters": clusters, "parameters": sum(sizes.values())}
    found |= {"steps": clock.steps, "first": clock.first, "floor": held * 4 / 2**20}
    found |= {"memory_first": clock.first_peak - before, "memory_later": peak_memory() - before}
    for on, keys in ((False, ("without", "forward", "optimizer")), (True, ("with", "callback"))):
        if times := clock.times[on]:
            found |= {key: statistics.median(step[key] for step in times) for key in keys}
    return found | ({"moves": statistics.mean(clock.moves)} if clock.moves else {})


def measure_alone(threads: int, **case: Any) -> dict[str, Any]:
    """In a process that was made for it."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    measure(**case | {"tasks": 4, "seconds": 0})  # so that libraries have started
    return measure(**case)


def ask(**case: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_alone, **case).result()


def row(cells: Iterable[object], header: bool = False) -> None:
    found = [str(cell) for cell in cells]
    print("| " + " | ".join(found) + " |" + ("\n|" + " --- |" * len(found)) * header, flush=True)


def show_memory(cases: list[dict[str, Any]]) -> None:
    print("\nMemory in MiB:\n")
    row(["tasks", "floor", "first", "later", "later / floor", "loop"], header=True)
    for case in cases:
        cells = [f"{case[key]:,.1f}" for key in ("floor", "memory_first", "memory_later")]
        loop = f"{case['loop_memory']:,.1f}" if "loop_memory" in case else ""
        row([f"{case['tasks']:,}", *cells, f"{case['memory_later'] / case['floor']:.1f}", loop])


def draw(cases: list[dict[str, Any]], title: str, file: str) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    times, memory = figure.subplots(1, 2)
    for key, name in CURVES.items():
        axes, factor = (memory, 1.0) if "memory" in key or key == "floor" else (times, 1e3)
        points = [(case["tasks"], factor * case[key]) for case in cases if key in case]
        axes.plot(*zip(*points, strict=True), "k--" if key == "floor" else "o-", label=name)
    for axes, unit in ((times, "ms"), (memory, "MiB")):
        axes.set(xscale="log", yscale="log", xlabel="tasks", ylabel=unit)
        axes.legend()
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2**power for power in range(1, 13)])
    parser.add_argument("--batch", type=int, default=256, help="rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seconds", type=float, default=4, help="for a training, at least; the loop has half")
    parser.add_argument("--limit", type=float, default=2, help="seconds of a step, after which the loop gives up")
    parser.add_argument("--quick", action="store_true", help="a second each, of every second number of tasks")
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--figure", help="file for a picture")
    arguments = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads))
    tasks, seconds = sorted(arguments.tasks), arguments.seconds
    if arguments.quick:
        tasks, seconds = tasks[1::2], 1.0
    machine = f"{platform.machine()}, threads: {arguments.threads}, torch {torch.__version__}"
    machine += f", Python {platform.python_version()}; {arguments.batch} rows a step"
    print(f"{machine}\n\nA step in ms:\n")
    names = ["tasks", "K", "parameters", "without", "with", "with / without", "forward, backward", "optimizer"]
    row([*names, "callback", "moves", "first clustering", "loop", "loop / without"], header=True)
    cases, loops = list[dict[str, Any]](), True
    for n in tasks:
        common = {"threads": arguments.threads, "tasks": n, "rows": arguments.batch}
        case = ask(**common, loop=False, seconds=seconds)
        cases.append(case)
        if loops:
            loop = ask(**common, loop=True, seconds=seconds / 2)
            case |= {"loop": loop["without"], "loop_memory": loop["memory_later"]}
            loops = loop["without"] < arguments.limit
        keys = ["without", "with", "forward", "optimizer", "callback", "first", "loop"]
        cells = [f"{case[key] * 1e3:,.2f}" if key in case else "" for key in keys]
        cells.insert(5, f"{case['moves']:.0%}")
        cells.insert(2, f"{case['with'] / case['without']:.2f}")
        cells += [f"{case['loop'] / case['without']:.1f}"] if "loop" in case else [""]
        row([f"{n:,}", case["clusters"], f"{case['parameters']:,}", *cells])
        if arguments.json:  # after each: nothing is lost if this is cut short
            Path(arguments.json).write_text(json.dumps({"machine": machine, "cases": cases}, indent=1) + "\n")
    show_memory(cases)
    if arguments.figure:
        draw(cases, machine, arguments.figure)


if __name__ == "__main__":
    main()
