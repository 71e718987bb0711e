"""The FAISS backend of :func:`lightning_ncmtl.clustering.kmeans`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_ncmtl.errors import InputError

try:
    import faiss
except ImportError:  # the caller gets the error below, at the first use
    faiss = None  # type: ignore[assignment]


def faiss_labels(
    x: Tensor, k: int, init: Tensor | None, restarts: int, max_iterations: int, seed: int
) -> tuple[Tensor, int]:
    """Lloyd's k-means by FAISS on the CPU: labels ``[N]`` on ``x``'s device, and the number of iterations."""
    points = x.float().cpu().contiguous().numpy()
    algorithm = faiss.Kmeans(
        points.shape[1],
        k,
        niter=max_iterations,  # an upper bound: FAISS stops once the objective stays the same
        nredo=1 if init is not None else restarts,
        seed=seed % 2**31,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,  # below 39 points per centre FAISS prints a warning by default ...
        max_points_per_centroid=len(points),  # ... and above 256 it drops points
    )
    with _single_thread():
        algorithm.train(points, init_centroids=None if init is None else init.float().cpu().contiguous().numpy())
        _, labels = algorithm.assign(points)
    return torch.from_numpy(labels).to(x.device), len(algorithm.iteration_stats)  # type: ignore[arg-type]


def check_faiss() -> None:
    """Raise :class:`InputError` unless a suitable FAISS is installed."""
    if faiss is None:
        raise InputError(
            "k-means needs FAISS, which is not installed: pip install 'lightning-ncmtl[cpu]' or 'lightning-ncmtl[gpu]'"
        )
    if not hasattr(faiss, "ClusteringInitMethod_KMEANS_PLUS_PLUS"):
        raise InputError(
            f"k-means needs FAISS 1.15 or newer, found {faiss.__version__}: upgrade faiss-cpu or faiss-gpu"
        )


@contextmanager
def _single_thread() -> Iterator[None]:
    # The problems are tiny, and FAISS's OpenMP threads would compete with torch's. The user may use FAISS too.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
