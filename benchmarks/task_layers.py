"""What layers with weights per task cost, against other ways to write them and against one plain layer.

    python benchmarks/task_layers.py --threads 1 2 --json FILE

prints Markdown. All ways take turns in one run; the minimum is the one to compare where a machine has other work, too.
With many large matrices much of the time goes into the memory of their gradient, which Linux hands out in small pages:
see what THP_MEM_ALLOC_ENABLE=1 in the environment does (large pages).
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_ncmtl import TaskLinear
from lightning_ncmtl.layers import CompactLayer
from lightning_ncmtl.layers.routing import Routing, route

CLUSTERS = 10
OURS = ("ours", "ours, routed", f"K = {CLUSTERS}")
FLOOR = "nn.Linear"


AIM = (1024, 8192, 256, 256)  # where ours is to take at most twice the time of one plain layer


class Shape(NamedTuple):
    tasks: int
    batch: int
    inside: int
    outside: int
    skewed: bool = False


SHAPES = [
    Shape(14, 32, 100, 32),
    Shape(14, 1024, 100, 32),
    Shape(128, 1024, 100, 32),
    Shape(128, 1024, 256, 256),
    Shape(1024, 1024, 100, 32),
    Shape(1024, 8192, 100, 32),
    Shape(1024, 8192, 256, 256),
    Shape(1024, 32, 100, 32),
    Shape(128, 1024, 256, 256, skewed=True),
    Shape(1024, 8192, 100, 32, skewed=True),
]


class Loop(nn.Module):
    """A layer of its own for each task, called one after the other, on rows that are sorted first."""

    def __init__(self, tasks: int, inside: int, outside: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inside, outside) for _ in range(tasks))

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        order = task_ids.argsort(stable=True)
        counts = task_ids.bincount(minlength=len(self.layers)).tolist()
        parts = zip(self.layers, x[order].split(counts), strict=True)
        return torch.cat([layer(rows) for layer, rows in parts if len(rows)])[order.argsort()]


class LoopOfMasks(Loop):
    """The same as one writes it first."""

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.layers[0].out_features)  # type: ignore[call-overload]
        for task in task_ids.unique().tolist():
            rows = task_ids == task
            out[rows] = self.layers[task](x[rows])
        return out


class Gather(TaskLinear):
    """A copy of the weights for each row."""

    def forward(self, x: Tensor, task_ids: Tensor | Routing) -> Tensor:
        assert self.bias is not None
        weight, bias = self.weight[task_ids], self.bias[task_ids]
        return torch.baddbmm(bias.unsqueeze(1), x.unsqueeze(1), weight.transpose(1, 2)).squeeze(1)


class VMap(nn.Module):
    """torch.func: stacked modules, each on its rows, padded to the most rows of any task."""

    def __init__(self, tasks: int, inside: int, outside: int) -> None:
        super().__init__()
        layers = [nn.Linear(inside, outside) for _ in range(tasks)]
        self.stacked = nn.ParameterDict(torch.func.stack_module_state(layers)[0])  # type: ignore[arg-type]
        self.call = torch.func.vmap(lambda weights, rows: torch.func.functional_call(layers[0], weights, (rows,)))

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        order = task_ids.argsort(stable=True)
        counts = task_ids.bincount(minlength=len(self.stacked["bias"]))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=x.device) - (counts.cumsum(0) - counts)[task_ids[order]]
        rows = x.new_zeros(len(counts), int(counts.max()), x.shape[1])
        rows[task_ids, place] = x
        out: Tensor = self.call(dict(self.stacked), rows)[task_ids, place]
        return out


def networks(shape: Shape, task_ids: Tensor, layers: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Stacks of layers with a ReLU between, without those that would need gigabytes for padding or copies."""
    assignment = torch.arange(shape.tasks) % CLUSTERS
    routing = route(task_ids.cpu(), shape.tasks)
    widths = [shape.inside, *[shape.outside] * layers]

    def stack(kind: Callable[[int, int], nn.Module], ids: Tensor | Routing | None = None) -> nn.Module:
        modules = nn.ModuleList(kind(*sizes) for sizes in itertools.pairwise(widths))

        def forward(x: Tensor) -> Tensor:
            for number, layer in enumerate(modules):
                x = x.relu() if number else x
                x = layer(x) if ids is None else layer(x, ids)
            return x

        modules.forward = forward  # type: ignore[method-assign]
        return modules.to(task_ids.device)

    n = shape.tasks
    found = {
        FLOOR: stack(nn.Linear),
        "ours": stack(lambda *sizes: TaskLinear(n, *sizes), task_ids),
        "ours, routed": stack(lambda *sizes: TaskLinear(n, *sizes), routing),
        OURS[2]: stack(lambda *sizes: CompactLayer(TaskLinear(len(assignment), *sizes), assignment), task_ids),
        "loop": stack(lambda *sizes: Loop(n, *sizes), task_ids),
        "loop of masks": stack(lambda *sizes: LoopOfMasks(n, *sizes), task_ids),
    }
    room = 1 if task_ids.is_cpu else 16
    if shape.batch * shape.inside * shape.outside < 2**28 * room:
        found["gather"] = stack(lambda *sizes: Gather(n, *sizes), task_ids)
    if n * int(routing.sort()[1].max()) * shape.inside < 2**25 * room:
        found["vmap"] = stack(lambda *sizes: VMap(n, *sizes), task_ids)
    return found  # type: ignore[return-value]


def time_all(steps: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, list[float]]:
    """Milliseconds of each repeat, in turns; slow ones drop out when they had their part of the time."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(400):
        for name, step in steps.items():
            if turn > 3 and sum(times[name]) > seconds * 1e3 / len(steps):
                continue
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: found[1:] for name, found in times.items()}  # the first one warms up


def measure(shape: Shape, arguments: argparse.Namespace, training: bool) -> dict[str, list[float]]:
    """Forward and backward of one layer, or a training step of three with Adam."""
    torch.manual_seed(0)
    weights = torch.arange(1, shape.tasks + 1) ** (-1.1 if shape.skewed else 0.0)
    task_ids = torch.multinomial(weights, shape.batch, replacement=True).to(arguments.device)
    x = torch.randn(shape.batch, shape.inside, device=arguments.device, requires_grad=True)
    target = torch.randn(shape.batch, shape.outside, device=arguments.device)

    def step(network: Any) -> Callable[[], object]:
        optimizer = torch.optim.Adam(network.parameters()) if training else None

        def run() -> None:
            x.grad = None
            network.zero_grad()
            with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
                out = network(x)
            out.backward((out.detach() - target).to(out.dtype))
            if optimizer is not None:
                optimizer.step()

        return run

    found = networks(shape, task_ids, 3 if training else 1)
    return time_all({name: step(network) for name, network in found.items()}, arguments.seconds, arguments.device)


def aims(records: list[dict[str, Any]]) -> list[str]:
    """How ours compares, by the minima of one layer, forward and backward."""
    lines = []
    for record in records:
        if record["training"]:
            continue
        least = {name: min(found) for name, found in record["milliseconds"].items()}
        ours = min(least[name] for name in OURS[:2])
        shape = f"({', '.join(str(record[name]) for name in Shape._fields[:4])}{', Zipf' * record['skewed']})"
        where = f"{shape}, threads {record['threads']}"
        if tuple(record[name] for name in Shape._fields) == (*AIM, False):
            lines.append(f"Times as long as one plain layer at {where} (aim: at most 2): {ours / least[FLOOR]:.2f}")
        other = min((name for name in least if name not in (FLOOR, *OURS)), key=lambda name: least[name])
        if least[other] < ours:
            lines.append(f"Behind at {where}: {ours:.3f} ms, {other} {least[other]:.3f} ms")
    return lines


def table(title: str, header: Iterable[str], body: Iterable[Iterable[object]]) -> None:
    print(f"\n{title}\n")
    for number, cells in enumerate([header, *body]):
        cells = [str(cell) for cell in cells]
        print("| " + " | ".join(cells) + " |", flush=True)
        if not number:
            print("|" + " --- |" * len(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of the CPU, one table each")
    parser.add_argument("--seconds", type=float, default=15, help="for all ways of one shape")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--json", type=Path, help="file for all repeats")
    arguments = parser.parse_args()
    records = []
    names = [FLOOR, *OURS, "loop", "loop of masks", "gather", "vmap"]
    ratios = ["best other / ours", "loop / ours", "loop of masks / ours", f"ours / {FLOOR}"]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for training in (False, True):
            body = []
            for shape in SHAPES:
                if training and shape.tasks * shape.inside * shape.outside > 2**25:
                    continue  # gigabytes for the state of Adam
                times = measure(shape, arguments, training)
                records.append({**shape._asdict(), "threads": threads, "training": training, "milliseconds": times})
                least = {name: min(found) for name, found in times.items()}
                ours = least["ours"]
                others = [least[name] for name in least if name not in (FLOOR, *OURS)]
                cells = [
                    f"{least[name]:.2f} ({statistics.median(times[name]):.2f})" if name in times else "-"
                    for name in names
                ]
                found = (min(others), least["loop"], least["loop of masks"])
                cells += [*(f"{other / ours:.1f}" for other in found), f"{ours / least[FLOOR]:.1f}"]
                body.append([", ".join(map(str, shape[:4])) + ", Zipf" * shape.skewed, *cells])
            kind = "A training step of three layers with Adam" if training else "Forward and backward of one layer"
            title = f"{kind}: minimum (median) in milliseconds; {arguments.device}, threads: {threads}"
            table(title, ["tasks, batch, in, out", *names, *ratios], body)
    print("", *(f"- {line}" for line in aims(records)), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(records) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
