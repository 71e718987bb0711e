"""What the tests of tests/gpu share: the device they run on, and comparisons with the CPU.

They run on the first GPU, or on the CPU with ``NCMTL_TEST_DEVICE=cpu`` (see tests/gpu/conftest.py).
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

DEVICE = torch.device(os.environ.get("NCMTL_TEST_DEVICE", "cuda:0"))
GPU = DEVICE.type == "cuda"
TRAINER: dict[str, Any] = {"accelerator": "gpu" if GPU else "cpu", "devices": 1}
CPU = torch.device("cpu")


def moved(values: Any, device: torch.device = DEVICE) -> Any:
    """Tensors in any nesting, on a device."""
    return tree_map_only(Tensor, lambda value: value.to(device), values)


def assert_close(found: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Equal but for rounding, wherever they are."""
    torch.testing.assert_close(found.detach().double().cpu(), expected.detach().double().cpu(), rtol=rtol, atol=atol)


def assert_same_as_cpu(
    module: nn.Module, inputs: Any, call: Callable[[nn.Module, Any], Tensor], rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Outputs and gradients of a module that is called on the CPU, and on the device."""
    found = []
    for device in (CPU, DEVICE):
        module.zero_grad()
        out = call(module.to(device), moved(inputs, device))
        assert out.device == device
        out.square().mean().backward()
        grads = {name: weight.grad.cpu() for name, weight in module.named_parameters() if weight.grad is not None}
        found.append((out, grads))
    (expected, theirs), (out, ours) = found
    assert_close(out, expected, rtol, atol)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        assert_close(grad, theirs[name], rtol, atol)


@contextmanager
def no_waits() -> Iterator[None]:
    """On a GPU, an error where the host waits for it."""
    if not GPU:
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[Ss]ynchronization debug mode")  # a prototype, as torch says
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def planted(n: int, d: int, k: int, noise: float = 0.02, seed: int = 0) -> Tensor:
    """Points ``[N, D]`` of K groups around a common offset, as weights of tasks are; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    middles = 0.02 * torch.randn(k, d, generator=generator) + 0.05 * torch.randn(d, generator=generator)
    return middles[torch.arange(n) % k] + noise * torch.randn(n, d, generator=generator)


def documents(number: int = 12, vocabulary: int = 300) -> dict[str, Tensor]:
    """What encoders of texts read; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    sentences = torch.randint(1, 6, (number,), generator=generator)
    words = torch.randint(1, 15, (int(sentences.sum()),), generator=generator)
    tokens = torch.randint(1, vocabulary, (int(words.sum()),), generator=generator)
    return {"tokens": tokens, "sentence_lengths": words, "document_lengths": sentences}


def draw_tasks(rows: int, tasks: int, kind: str = "even", seed: int = 0) -> Tensor:
    """Task ids ``[B]``, all alike, ``"skewed"`` as Zipf has it, or of ``"few"`` tasks; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "skewed":
        return torch.multinomial(torch.arange(1, tasks + 1) ** -1.5, rows, replacement=True, generator=generator)
    return torch.randint(0, max(1, tasks // 8) if kind == "few" else tasks, (rows,), generator=generator)


def same_groups(one: list[int], other: list[int]) -> bool:
    """Whether two assignments differ by the numbers of clusters alone."""
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))
