import builtins
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from lightning_ncmtl.clustering import _faiss, _ranks
from lightning_ncmtl.clustering._faiss import check_faiss, faiss_lloyd, faiss_on_gpu
from lightning_ncmtl.errors import InputError

faiss = pytest.importorskip("faiss")

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    torch.get_num_threads()  # torch sets the number of OpenMP threads, which FAISS may share, when it is first used
    before = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    for function in (_faiss._probe, _faiss._warn_of_copies, _faiss._gpu_resources):
        function.cache_clear()
    yield
    for function in (_faiss._probe, _faiss._warn_of_copies, _faiss._gpu_resources):
        function.cache_clear()


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch, fresh_caches: None) -> None:
    """FAISS looks like a GPU build, that computes on the CPU: all of our code runs, and none of FAISS's kernels."""

    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802
            assert size > 0

        def setPinnedMemory(self, size: int) -> None:  # noqa: N802
            assert size == 0

    def knn_gpu(resources: Resources, points: Tensor, centers: Tensor, k: int, device: int) -> tuple[Tensor, Tensor]:
        assert isinstance(resources, Resources)
        assert k == 1
        return (points[:, None] - centers).square().sum(2).topk(1, largest=False)

    import faiss.contrib.torch_utils  # before the next lines, which it would undo

    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)


def on_fake_gpu(points: Tensor, starts: Tensor, max_iterations: int) -> Tensor:
    return _faiss._best(_faiss._OnGPU(points), starts, max_iterations)


def problem(n: int, d: int, k: int, restarts: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    points -= points.mean(0)
    return points, torch.stack([points[torch.randperm(n, generator=generator)[:k]] for _ in range(restarts)])


def fresh_module() -> ModuleType:
    """The module under test as if imported for the first time."""
    spec = importlib.util.spec_from_file_location("fresh_faiss_backend", _faiss.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inertia(points: Tensor, labels: Tensor) -> float:
    return sum(float((points[labels == k] - points[labels == k].mean(0)).square().sum()) for k in labels.unique())


@pytest.mark.parametrize("shape", [(8, 3, 2), (14, 1000, 5), (60, 20, 6), (500, 4, 20), (2000, 8, 5)])
@pytest.mark.parametrize("run", [faiss_lloyd, on_fake_gpu])
@pytest.mark.parametrize("seed", range(3))
def test_same_as_scikit_learn(run: object, shape: tuple[int, int, int], seed: int, gpu_build: None) -> None:
    n, d, k = shape
    points, starts = problem(n, d, k, seed=seed)
    labels = run(points, starts, 300)  # type: ignore[operator]
    theirs = KMeans(k, init=starts[0].numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(points.numpy())
    assert labels.dtype == torch.int64
    assert labels.tolist() == theirs.labels_.tolist()
    assert inertia(points, labels) == pytest.approx(theirs.inertia_, rel=1e-5)


@pytest.mark.parametrize("run", [faiss_lloyd, on_fake_gpu])
def test_best_start_is_kept(run: object, gpu_build: None) -> None:
    points, starts = problem(40, 3, 6, restarts=8)
    alone = [run(points, start[None], 100) for start in starts]  # type: ignore[operator]
    best = min(range(8), key=lambda i: inertia(points, alone[i]))
    assert best > 0
    assert len({round(inertia(points, labels), 3) for labels in alone}) > 3
    assert torch.equal(run(points, starts, 100), alone[best])  # type: ignore[operator]


@pytest.mark.parametrize("on", [_faiss._OnCPU, _faiss._OnGPU])
def test_iterations(on: type, gpu_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    train = on.train  # type: ignore[attr-defined]
    monkeypatch.setattr(on, "train", lambda *given: ran.append(given[2]) or train(*given))
    run = faiss_lloyd if on is _faiss._OnCPU else on_fake_gpu
    points, starts = problem(300, 2, 8)
    for limit in (1, 2, 3, 5):
        ran.clear()
        run(points, starts, limit)
        assert sum(ran) == limit
    ran.clear()
    labels = run(points, starts, 300)
    assert 6 < sum(ran) < 300
    # From the solution it stops soon. (The means' last bits are not those of FAISS.)
    ran.clear()
    again = run(points, torch.stack([points[labels == k].mean(0) for k in range(8)])[None], 300)
    assert torch.equal(again, labels)
    assert sum(ran) <= 6


@pytest.mark.parametrize("run", [faiss_lloyd, on_fake_gpu])
def test_no_point_is_dropped_and_nothing_printed(
    run: object, gpu_build: None, capfd: pytest.CaptureFixture[str]
) -> None:
    points, starts = problem(2000, 3, 2)  # FAISS would take 512 of them
    theirs = KMeans(2, init=starts[0].numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(points.numpy())
    assert run(points, starts, 300).tolist() == theirs.labels_.tolist()  # type: ignore[operator]
    points, starts = problem(5, 3, 4)  # and warn of these
    run(points, starts, 100)  # type: ignore[operator]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("run", [faiss_lloyd, on_fake_gpu])
def test_empty_clusters_are_split(run: object, gpu_build: None) -> None:
    points = torch.tensor([[-5.5], [-4.5], [4.5], [5.5], [0.0], [0.1]])
    labels = run(points, torch.tensor([[[-5.0], [5.0], [1000.0]]]), 100)  # type: ignore[operator]
    assert labels.unique().numel() == 3


@pytest.mark.parametrize("run", [faiss_lloyd, on_fake_gpu])
def test_equal_points(run: object, gpu_build: None) -> None:
    labels = run(torch.zeros(9, 4), torch.zeros(2, 3, 4), 100)  # type: ignore[operator]
    assert labels.shape == (9,)
    assert set(labels.tolist()) <= {0, 1, 2}


def test_points_and_starts_in_any_memory_layout() -> None:
    points, starts = problem(50, 6, 4)
    expected = faiss_lloyd(points, starts, 100)
    strided = torch.empty_strided((50, 6), (1, 50)).copy_(points)
    strided_starts = torch.empty_strided((1, 4, 6), (24, 1, 4)).copy_(starts)
    assert torch.equal(faiss_lloyd(strided, strided_starts, 100), expected)


def test_arguments_are_not_changed() -> None:
    points, starts = problem(50, 6, 4, restarts=2)
    copies = points.clone(), starts.clone()
    faiss_lloyd(points, starts, 100)
    assert torch.equal(points, copies[0])
    assert torch.equal(starts, copies[1])


def test_threads_are_restored() -> None:
    faiss.omp_set_num_threads(2)
    faiss_lloyd(*problem(50, 6, 4), 100)
    assert faiss.omp_get_max_threads() == 2
    with pytest.raises(RuntimeError, match="NaN"):
        faiss_lloyd(torch.full((50, 6), torch.nan), torch.zeros(1, 4, 6), 100)
    assert faiss.omp_get_max_threads() == 2


def test_missing_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_faiss, "faiss", None)
    with pytest.raises(
        InputError, match=r"not installed: .*\[cpu\]' or 'lightning-ncmtl\[gpu\]', or .* backend='gram'"
    ):
        check_faiss()
    assert not faiss_on_gpu(GPU)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'faiss'", name="faiss"), "needs FAISS, which is not installed"),
        (ImportError("libcublas.so.12: no such file"), r"cannot be imported \(libcublas.so.12: no such file\)"),
        (RuntimeError("nvidia-cublas-cu12 is missing"), r"cannot be imported \(nvidia-cublas-cu12 is missing\)"),
    ],
)
def test_faiss_that_cannot_be_imported(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def failing(name: str, *args: object) -> object:
        if name == "faiss":
            raise error
        return real(name, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", failing)
        module = fresh_module()
    with pytest.raises(InputError, match=message):
        module.check_faiss()


@pytest.mark.parametrize("version", ["1.9.0", "1.10.0", "1.15.1", "2.0.0"])
def test_new_enough_faiss(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "__version__", version)
    check_faiss()


def test_too_old_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "__version__", "1.8.0")
    with pytest.raises(InputError, match="needs FAISS 1.9 or newer, found 1.8.0"):
        check_faiss()


@pytest.mark.parametrize(
    ("code", "works"),
    [
        ("", True),
        ("import sys; assert sys.argv[1] == '3'", True),
        ("raise SystemExit(3)", False),
        ("import no_such_module", False),
        ("import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()", False),
        ("import time; time.sleep(60)", False),
    ],
)
def test_probe(code: str, works: bool, gpu_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_faiss, "_PROBE", code)
    monkeypatch.setattr(_faiss, "_PROBE_SECONDS", 1.0 if "sleep" in code else 60.0)
    assert faiss_on_gpu(torch.device("cuda", 3)) is works


def test_probe_runs_once_for_each_device(gpu_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, returncode=int(command[-1]), stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(3):
        assert faiss_on_gpu(torch.device("cuda", 0))
        assert not faiss_on_gpu(torch.device("cuda", 1))
    assert [command[-1] for command in calls] == ["0", "1"]
    assert calls[0][0] == sys.executable


def test_no_probe_without_a_gpu_build(fresh_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    assert not faiss_on_gpu(GPU)
    assert not faiss_on_gpu(torch.device("cpu"))


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="needs a CPU build")
def test_the_probe_fails_where_faiss_is_a_cpu_build(fresh_caches: None) -> None:
    failure = _faiss._probe(0)
    assert failure is not None
    assert "Error" in failure  # it got as far as torch


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
    ],
)
def test_one_warning_on_rank_zero(
    environment: dict[str, str], warned: bool, fresh_caches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            _faiss._warn_of_copies("FAISS is a build for CPUs")
    assert [str(warning.message) for warning in caught] == warned * [
        "k-means with backend='faiss' copies the weights to the CPU for every clustering, as FAISS is a build for "
        "CPUs: without faiss-cpu, pip install 'lightning-ncmtl[gpu]' (see docs/gpu.md), or choose backend='gram'"
    ]


def test_rank_of_the_process_group_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    assert _ranks.get_rank() == 5


class OnGPU(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True
    device = GPU

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def test_gpu_tensor_without_a_gpu_build_is_copied(fresh_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    returned_to = []

    def to(labels: Tensor, device: torch.device) -> Tensor:
        returned_to.append(device)
        return labels

    monkeypatch.setattr(Tensor, "to", to)
    points, starts = problem(30, 3, 4)
    with pytest.warns(UserWarning, match="copies the weights to the CPU .* as FAISS is a build for CPUs"):
        labels = faiss_lloyd(points.as_subclass(OnGPU), starts, 100)
    monkeypatch.undo()
    assert returned_to == [GPU]
    assert torch.equal(labels, faiss_lloyd(points, starts, 100))


def test_gpu_tensor_stays_there(gpu_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    points, starts = problem(30, 3, 4)
    expected = faiss_lloyd(points, starts, 100)
    monkeypatch.setattr(_faiss, "faiss_on_gpu", lambda device: device == GPU)
    on_gpu = _faiss._OnGPU
    monkeypatch.setattr(_faiss, "_OnGPU", lambda points: on_gpu(points.as_subclass(Tensor)))
    monkeypatch.setattr(_faiss, "_OnCPU", None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    labels = faiss_lloyd(points.as_subclass(OnGPU), starts, 100)
    assert torch.equal(labels, expected)


def test_faiss_is_not_patched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "faiss.contrib.torch_utils", raising=False)
    fresh_module().faiss_lloyd(*problem(30, 3, 4), 100)
    assert "faiss.contrib.torch_utils" not in sys.modules
