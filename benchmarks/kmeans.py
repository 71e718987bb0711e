"""How fast k-means is on weights of tasks, few points in many dimensions: backend ``gram`` against others.

    python benchmarks/kmeans.py --json FILE

prints Markdown; ``--quick`` takes the small shapes only, ``--device cuda`` a GPU. The largest shape has 4 GB, of which
a contender may hold copies. Points lie in planted clusters around a common offset, as wide as they are apart. *Cold* is
k-means++ with three restarts (or what a contender has instead), *warm* one start from the clusters of the step before,
after a move as small as that of an optimizer step. For that, ours is what a step of training runs, which gets the
assignment; others get the centres.

Others are our backend ``faiss``; FAISS as a user would call it; scikit-learn; and, if installed, fast-pytorch-kmeans
(with psutil, which it needs) and, on a GPU, flash-kmeans. On a GPU, those that compute on the CPU copy the points.

Each case has a process of its own, with one call to warm up (if that took 5 seconds or more, it is the measurement).
Extra memory is the peak of that first call above what the process held before; on a GPU, that of torch's allocator.
The objective is the sum of squared distances to the means of the clusters found, in float64, averaged over up to 20
seeds, relative to the best contender's. The floor is the time to read all points and to write centres and assignment
once, at the bandwidth of torch's ``copy_`` with as many threads, of as many bytes, but at most 1 GiB.
"""

import argparse
import importlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch  # before FAISS, whose libcurand of CUDA 12 would win otherwise

# isort: split
import faiss
import sklearn
from sklearn.cluster import KMeans
from torch import Tensor

from lightning_ncmtl.clustering import assign_tasks, kmeans

SMALL = [(14, 1_000, 5), (14, 3_000, 10), (128, 1_000, 10)]  # (N, D, K)
LARGE = [(128, 64_000, 16), (1024, 64_000, 32), (1024, 1_000_000, 32), (64, 10_000_000, 8)]
RESTARTS = 3
OFFSET, APART, NOISE, MOVE = 0.05, 0.02, 0.02, 0.001  # standard deviations of the points' parts
EQUAL = 1.01  # objectives that differ by less are called equal


Start = tuple[Tensor, Tensor]  # assignment and centres of the step before


def ours(x: Tensor, k: int, start: Start | None, seed: int, backend: Literal["gram", "faiss"]) -> Tensor:
    if start is None:
        return kmeans(x, k, backend=backend, restarts=RESTARTS, seed=seed).assignment
    return assign_tasks([x], [k], [start[0]], backend=backend)[0]


def plain_faiss(x: Tensor, k: int, start: Start | None, seed: int) -> Tensor:
    points = x.cpu().numpy()
    restarts, gpu = RESTARTS if start is None else 1, x.is_cuda and hasattr(faiss, "StandardGpuResources")
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    algorithm = faiss.Kmeans(x.shape[1], k, nredo=restarts, seed=seed + 1, gpu=gpu, **bounds)
    algorithm.train(points, init_centroids=None if start is None else start[1].cpu().numpy())
    return torch.from_numpy(algorithm.assign(points)[1])


def scikit_learn(x: Tensor, k: int, start: Start | None, seed: int) -> Tensor:
    init = "k-means++" if start is None else start[1].cpu().numpy()
    algorithm = KMeans(k, init=init, n_init=RESTARTS if start is None else 1, random_state=seed)
    return torch.from_numpy(algorithm.fit(x.cpu().numpy()).labels_).long()


def fast_pytorch(x: Tensor, k: int, start: Start | None, seed: int) -> Tensor:
    def once() -> tuple[Tensor, Tensor]:
        algorithm = importlib.import_module("fast_pytorch_kmeans").KMeans(k, max_iter=100, init_method="kmeans++")
        return algorithm.fit_predict(x, None if start is None else start[1]), algorithm.centroids

    return best(x, once, start, seed)


def flash(x: Tensor, k: int, start: Start | None, seed: int) -> Tensor:
    def once() -> tuple[Tensor, Tensor]:
        found = importlib.import_module("flash_kmeans").batch_kmeans_Euclid(
            x[None], k, max_iters=100, tol=1e-8, init_centroids=None if start is None else start[1][None]
        )
        return found[0][0].long(), found[1][0]

    return best(x, once, start, seed)


def best(x: Tensor, once: Callable[[], tuple[Tensor, Tensor]], start: Start | None, seed: int) -> Tensor:
    """Of several restarts the one with the widest spread between clusters, and so the narrowest inside them."""
    torch.manual_seed(seed)

    def spread(found: tuple[Tensor, Tensor]) -> float:
        return float((found[0].bincount(minlength=len(found[1])) * (found[1] - x[0]).square().sum(1)).sum())

    return once()[0] if start else max((once() for _ in range(RESTARTS)), key=spread)[0]


CONTENDERS: dict[str, Callable[[Tensor, int, Start | None, int], Tensor]] = {
    "gram": partial(ours, backend="gram"),
    "faiss": partial(ours, backend="faiss"),
    "plain faiss": plain_faiss,
    "scikit-learn": scikit_learn,
    "fast-pytorch-kmeans": fast_pytorch,
    "flash-kmeans": flash,
}


def problem(n: int, d: int, k: int, warm: bool, device: str) -> tuple[Tensor, Start | None]:
    """Points, and for a warm start what was found before their last move; made in place, as they may be large."""
    generator = torch.Generator(device).manual_seed(0)
    planted = torch.arange(n, device=device) % k
    middles = APART * torch.randn(k, d, generator=generator, device=device)
    middles += OFFSET * torch.randn(d, generator=generator, device=device)
    x = torch.empty(n, d, device=device)
    for number, row in enumerate(x):
        row.normal_(0, NOISE, generator=generator).add_(middles[number % k])
    if not warm:
        return x, None
    centers = torch.stack([x[planted == cluster].mean(0) for cluster in range(k)])
    for row in x:
        row.add_(torch.randn(d, generator=generator, device=device), alpha=MOVE)
    return x, (planted, centers)


def objective(x: Tensor, assignment: Tensor, k: int) -> float:
    assignment, total = assignment.to(x.device), 0.0
    sizes = assignment.bincount(minlength=k).clamp(min=1).double().unsqueeze(1)
    for part in x.split(max(1, 2**23 // len(x)), dim=1):
        points = part.double()
        means = points.new_zeros(k, points.shape[1]).index_add_(0, assignment, points) / sizes
        total += float(points.sub_(means[assignment]).square_().sum())
    return total


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(device: str, peak: bool) -> float:
    """What this process holds, or the most that it held since this was last asked with ``peak=False``, in MiB."""
    if device == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def measure(n: int, d: int, k: int, contender: str, start: str, device: str, limit: float) -> dict[str, float]:
    """One case, in this process, which the system ends where it takes longer than the limit."""
    step = CONTENDERS[contender]
    x, given = problem(8, 16, 2, start == "warm", device)
    step(x, 2, given, 0)  # so that libraries have started
    x, given = problem(n, d, k, start == "warm", device)
    before = memory(device, peak=False)
    times, found = list[float](), list[Tensor]()
    signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends the process, whatever library it is in
    while not times or (times[0] < 5 and (len(times) < 6 or sum(times[1:]) < 0.5) and sum(times) < 10):
        begin = clock(device)
        labels = step(x, k, given, len(times))
        times.append(clock(device) - begin)
        if len(times) == 1:
            extra = memory(device, peak=True) - before
        if len(found) < (20 if start == "cold" else 1):
            found.append(labels)
    signal.setitimer(signal.ITIMER_REAL, 0)
    times = times[1:] or times
    found = found[: max(1, 2 * 10**8 // (n * d))]
    return {
        "median": statistics.median(times),
        "minimum": min(times),
        "repeats": len(times),
        "memory": extra,
        "objective": statistics.mean(objective(x, labels, k) for labels in found),
    }


def bandwidth(size: int, device: str, limit: float) -> dict[str, float]:
    """Of torch's ``copy_``, bytes read and bytes written, per second."""
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    times: list[float] = []
    while len(times) < 5 or (len(times) < 2000 and sum(times) < 0.5):
        begin = clock(device)
        target.copy_(source)
        times.append(clock(device) - begin)
    return {"bandwidth": 2 * size / min(times)}


def ask(threads: int, limit: float, **case: Any) -> dict[str, float] | None:
    """The case's result by a process of its own; ``None`` if it took longer than the limit."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, __file__, "--case", json.dumps({"threads": threads, "limit": limit, **case})]
    done = subprocess.run(command, env=os.environ | counts, stdout=subprocess.PIPE, text=True)
    if done.returncode == -signal.SIGALRM:
        return None
    done.check_returncode()
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_one_shape(shape: tuple[int, int, int], threads: int, names: list[str], device: str, limit: float) -> list[Any]:
    n, d, k = shape
    speed = ask(threads, limit, size=min(n * d * 4, 2**30), device=device)
    assert speed is not None
    floor = (n * d * 4 + k * d * 4 + n * 8) / speed["bandwidth"]
    cases = []
    for start in ("cold", "warm"):
        found = {name: ask(threads, limit, n=n, d=d, k=k, contender=name, start=start, device=device) for name in names}
        least = min((result["objective"] for result in found.values() if result), default=math.nan)
        for name, result in found.items():
            case = {"shape": shape, "threads": threads, "start": start, "contender": name, "floor": floor}
            cells = [f"{n:,}, {d:,}, {k}", str(threads), start, name, f"> {limit:g} s", "", "", "", ""]
            if result:
                case |= result | {"relative": result["objective"] / least, "floors": result["median"] / floor}
                times = [f"{result[key] * 1e3:,.{2 if result[key] < 1 else 0}f}" for key in ("median", "minimum")]
                cells[4:] = [*times, f"{case['memory']:,.1f}", f"{case['relative']:.4f}", f"{case['floors']:,.1f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
            cases.append(case)
    return cases


def where(case: dict[str, Any]) -> str:
    return f"{tuple(case['shape'])} {case['start']}, threads {case['threads']}:"


def aims(cases: list[dict[str, Any]], limit: float) -> list[str]:
    """What ``gram`` reaches; others that took longer than the limit count as if they had taken as long."""
    ours = [case for case in cases if case["contender"] == "gram"]
    lines = []
    for tolerance in (EQUAL, math.inf):
        cold, behind = list[float](), list[str]()
        for case in ours:
            bound = tolerance * case.get("objective", math.inf)
            same = [other for other in cases if other is not case and where(other) == where(case)]
            same = [other for other in same if other.get("objective", 0) <= bound]
            if other := min(same, key=lambda other: other.get("median", limit), default=None):
                gain = other.get("median", limit) / case.get("median", 1e9)
                cold += [gain] if case["start"] == "cold" else []
                behind += [f"{where(case)} {gain:.2f} ({other['contender']})"] if gain < 1 else []
        mean = statistics.geometric_mean(cold) if cold else math.nan
        count = f"{len(ours) - len(behind)} of {len(ours)} cases (aim: all), but {'; '.join(behind) or 'none'}"
        lines.append(f"As fast as the fastest other with at most {tolerance} times our objective: {count}")
        lines.append(f"Times as fast as that at a cold start, geometric mean (aim: 3): {mean:.2f}")
    worst = max((case.get("relative", math.inf) for case in ours), default=math.nan)
    large = [case for case in ours if case["start"] == "warm" and tuple(case["shape"]) in LARGE]
    floors = [f"{where(case)} {case.get('floors', math.inf):.2f}" for case in large]
    lines.append(f"Our objective relative to the best, at worst: {worst:.4f}")
    return [*lines, f"Warm, large shapes, times the floor (aim: at most 3): {'; '.join(floors) or 'not measured'}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="all that are installed by default")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        torch.set_num_threads(case["threads"])
        faiss.omp_set_num_threads(case.pop("threads"))
        print(json.dumps(bandwidth(**case) if "size" in case else measure(**case)))
        return
    cuda = arguments.device == "cuda"
    optional = ["fast-pytorch-kmeans", "flash-kmeans"]
    missing = {name for name in optional if not find_spec(name.replace("-", "_"))} | set(optional[1:] * (not cuda))
    names = arguments.contenders or [name for name in CONTENDERS if name not in missing]
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, faiss, sklearn))
    gpu = torch.cuda.get_device_name() if cuda else "no GPU"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {gpu}, Python {platform.python_version()}, {versions}"
    print(f"{machine}\n")
    header = ["N, D, K", "threads", "start", "", "median, ms", "minimum, ms", "extra MiB", "objective", "floors"]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header), flush=True)
    cases = list[dict[str, Any]]()
    for threads in [max(arguments.threads)] if cuda else arguments.threads:
        for shape in SMALL if arguments.quick else SMALL + LARGE:
            cases += in_one_shape(shape, threads, names, arguments.device, arguments.limit)
            found = {"machine": machine, "limit": arguments.limit, "cases": cases, "aims": aims(cases, arguments.limit)}
            if arguments.json:  # after each shape: nothing is lost if this is cut short
                Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    print("", *(f"- {line}" for line in aims(cases, arguments.limit)), sep="\n")


if __name__ == "__main__":
    main()
