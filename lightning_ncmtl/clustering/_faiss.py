"""The FAISS backend of :func:`lightning_ncmtl.clustering.kmeans`: FAISS's k-means, where the points are if it can."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_ncmtl.clustering._ranks import warn
from lightning_ncmtl.errors import InputError

_problem = "is not installed"
try:
    import faiss
except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: faiss-gpu without its CUDA packages
    faiss = None  # type: ignore[assignment]  # the caller gets the error of check_faiss, at the first use
    if getattr(error, "name", None) != "faiss":
        _problem = f"cannot be imported ({error})"

# A GPU build for other GPUs than this one aborts the process at its first kernel, so that another process has to try.
_PROBE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort need not leave a core file
import torch, faiss, faiss.contrib.torch_utils
device = int(sys.argv[1])
torch.cuda.set_device(device)
points = torch.eye(4, device="cuda")
_, nearest = faiss.knn_gpu(faiss.StandardGpuResources(), points, points, 1, device=device)
assert nearest.ravel().tolist() == [0, 1, 2, 3], nearest
"""
_PROBE_SECONDS = 120.0  # importing torch takes most of it, where many processes start from one slow disk
_TEMPORARY_BYTES = 64 * 2**20


def faiss_lloyd(points: Tensor, starts: Tensor, max_iterations: int) -> Tensor:
    """Lloyd's k-means by FAISS from each of several starts, of which the best is kept.

    Points on a GPU stay there if :func:`faiss_on_gpu`; else they are copied to the CPU, and a warning says so once.

    Args:
        points: ``[N, D]``, float32 and finite, with mean zero (distances of points far from zero cancel).
        starts: Initial centres ``[R, K, D]`` of R starts, float32, ``K < N``.
        max_iterations: Upper bound on the iterations of each start.

    Returns:
        Labels ``[N]`` (int64, on the device of ``points``) of the start with the lowest sum of squared distances to
        the centres. Clusters may be empty.
    """
    if faiss_on_gpu(points.device):
        with torch.cuda.device(points.device):
            return _best(_OnGPU(points), starts, max_iterations)
    if points.is_cuda:
        _warn_of_copies(_why_not_on_gpu(points.device))
    with _single_thread():
        return _best(_OnCPU(points, starts.shape[1]), starts.cpu(), max_iterations).to(points.device)


def check_faiss() -> None:
    """Raise :class:`InputError` unless a suitable FAISS is installed."""
    if faiss is None:
        raise InputError(
            f"k-means with backend='faiss' needs FAISS, which {_problem}: pip install 'lightning-ncmtl[cpu]' or "
            "'lightning-ncmtl[gpu]', or choose backend='gram'"
        )
    if tuple(int(part) for part in faiss.__version__.split(".")[:2]) < (1, 9):
        raise InputError(
            f"k-means with backend='faiss' needs FAISS 1.9 or newer, found {faiss.__version__}: upgrade faiss-cpu or "
            "faiss-gpu, or choose backend='gram'"
        )


def faiss_on_gpu(device: torch.device) -> bool:
    """Whether the installed FAISS computes on this device, a GPU. The first call for a GPU takes seconds."""
    return device.type == "cuda" and _why_not_on_gpu(device) is None


def describe_faiss(devices: Sequence[torch.device]) -> list[str]:
    """Lines that say which FAISS is installed, and whether it runs on the CPU and on these GPUs."""
    try:
        check_faiss()
    except InputError as error:
        return [str(error)]
    points = torch.eye(4, device="cpu") - 0.25
    labels = faiss_lloyd(points, points[None, :2], 4)
    runs = "runs" if len(labels.unique()) == 2 else f"gives wrong clusters {labels.tolist()}"
    build = "GPUs" if hasattr(faiss, "StandardGpuResources") else "CPUs"
    lines = [f"{faiss.__version__}, a build for {build}, {runs} on the CPU"]
    for device in devices:
        reason = _why_not_on_gpu(device)
        lines.append(f"{device}: " + ("runs" if reason is None else f"copies weights to the CPU, as {reason}"))
    return lines


def _why_not_on_gpu(device: torch.device) -> str | None:
    if not hasattr(faiss, "StandardGpuResources"):
        return "FAISS is a build for CPUs"
    failure = _probe(torch.cuda.current_device() if device.index is None else device.index)
    return f"FAISS fails on this GPU ({failure})" if failure else None


@cache  # a result per process and device
def _probe(device: int) -> str | None:
    """Try FAISS on a GPU, in another process: why it fails, if it does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, str(device)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


@cache  # once
def _warn_of_copies(reason: str | None) -> None:
    warn(
        f"k-means with backend='faiss' copies the weights to the CPU for every clustering, as {reason}: without "
        "faiss-cpu, pip install 'lightning-ncmtl[gpu]' (see docs/gpu.md), or choose backend='gram'"
    )


class _Points(Protocol):
    """FAISS's k-means for points on one kind of device."""

    def train(self, centers: Tensor, iterations: int) -> tuple[Tensor, list[float]]:
        """New centres, and the objective of each iteration: the sum of squared distances before it."""

    def assign(self, centers: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest centre of each point, and the squared distance to it."""


def _best(points: _Points, starts: Tensor, max_iterations: int) -> Tensor:
    return min((_run(points, start, max_iterations) for start in starts), key=lambda run: run[0])[1]


def _run(points: _Points, centers: Tensor, max_iterations: int) -> tuple[float, Tensor]:
    # FAISS stops at convergence from version 1.14 on, and on CPUs only. So it gets 2 iterations, 4, 8, ..., until the
    # objective stays the same: a warm start, which is the usual case, needs few.
    objectives: list[float] = []
    done, more = 0, 2
    while done < max_iterations and not (len(objectives) > 1 and objectives[-1] == objectives[-2]):
        more = min(more, max_iterations - done)
        centers, found = points.train(centers, more)
        objectives += found
        done, more = done + more, 2 * more
    labels, distances = points.assign(centers)
    return float(distances.sum(dtype=torch.float64)), labels


class _OnCPU:
    def __init__(self, points: Tensor, k: int) -> None:
        self._points = points.cpu().contiguous().numpy()
        self._kmeans: Any = faiss.Kmeans(
            points.shape[1],
            k,
            min_points_per_centroid=1,  # below 39 points per centre FAISS prints a warning by default ...
            max_points_per_centroid=len(points),  # ... and above 256 it drops points
        )

    def train(self, centers: Tensor, iterations: int) -> tuple[Tensor, list[float]]:
        self._kmeans.cp.niter = iterations
        self._kmeans.train(self._points, init_centroids=centers.contiguous().numpy())
        return torch.from_numpy(self._kmeans.centroids), self._kmeans.obj.tolist()

    def assign(self, centers: Tensor) -> tuple[Tensor, Tensor]:
        distances, labels = faiss.knn(self._points, centers.contiguous().numpy(), 1)
        return torch.from_numpy(labels).flatten(), torch.from_numpy(distances).flatten()


class _OnGPU:
    """Also what ``faiss.contrib.clustering.kmeans`` asks of a data set: count, dim, get_subset and assign_to."""

    def __init__(self, points: Tensor) -> None:
        # Imported here, and not where there is no GPU: it patches FAISS in all of the process, so that knn_gpu and
        # others take tensors (and arrays still).
        from faiss.contrib.torch.clustering import kmeans

        self._kmeans: Any = kmeans
        self._points = points.contiguous()
        self._start: Tensor
        self._resources = _gpu_resources(points.device)

    def train(self, centers: Tensor, iterations: int) -> tuple[Tensor, list[float]]:
        self._start = centers
        with redirect_stdout(StringIO()):  # it prints "preproc..." even if not verbose
            centers, stats = self._kmeans(len(centers), self, niter=iterations, verbose=False, return_stats=True)
        return centers, [iteration["obj"] for iteration in stats]

    def assign(self, centers: Tensor) -> tuple[Tensor, Tensor]:
        device = self._points.device.index
        distances, labels = faiss.knn_gpu(self._resources, self._points, centers.contiguous(), 1, device=device)
        return labels.flatten(), distances.flatten()

    def count(self) -> int:
        return len(self._points)

    def dim(self) -> int:
        return self._points.shape[1]

    def get_subset(self, _indices: "np.ndarray[Any, Any]") -> Tensor:
        """The initial centres. FAISS asks for points at random."""
        return self._start

    def assign_to(self, centers: Tensor, weights: None = None) -> tuple["np.ndarray[Any, Any]", Tensor, Tensor]:
        """Labels, which FAISS wants on the CPU, squared distances, and the sum of each cluster's points."""
        labels, distances = self.assign(centers)
        found = labels.cpu()
        members = labels.argsort(stable=True).split(found.bincount(minlength=len(centers)).tolist())
        # A sum per cluster, not FAISS's index_add, whose order (and so whose last bits) varies on a GPU.
        sums = torch.stack([self._points[rows].sum(0) for rows in members])
        return found.numpy(), distances, sums


@cache  # one per device: it holds streams, a cuBLAS handle and the memory below
def _gpu_resources(_device: torch.device) -> Any:
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)  # by default up to 1.5 GiB of the GPU, which training needs
    resources.setPinnedMemory(0)  # for copies from and to the CPU, of which there are none
    return resources


@contextmanager
def _single_thread() -> Iterator[None]:
    # The problems are tiny, and FAISS's OpenMP threads would compete with torch's. The user may use FAISS too.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
