"""Two halves of the examples, which take turns: what a shared warm-up needs of any loader that shuffles."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.whole import is_whole


class HalvesSampler(Sampler[int]):
    """Shuffles examples so that those of one step of the optimizer are all of the same half of them.

    Halves are drawn once, and never mix: clusters that one half finds are tried on the other, which is worth nothing if
    an example was in both. Steps of an epoch take turns between the halves. Each epoch has all examples once, in
    another order.

    Args:
        num_examples: Of the data set.
        examples_per_step: How many a step of the optimizer takes: the batch size, times the batches that are
            accumulated, times the devices.
        seed: Of the halves and of the orders.

    Attributes:
        steps_per_epoch: How many steps of the optimizer an epoch has.
        epoch: Which order comes next; it goes on by itself at the end of one.

    Raises:
        InputError: If an epoch is not two steps, at least.

    Example:
        >>> sampler = HalvesSampler(num_examples=10, examples_per_step=4)
        >>> steps = [list(sampler)[:4] for _ in range(2)]  # the first step of two epochs
        >>> [sampler.half_of(step) for step in range(6)]
        [0, 1, 0, 0, 1, 0]
    """

    def __init__(self, num_examples: int, examples_per_step: int, seed: int = 0) -> None:
        if not (is_whole(num_examples) and is_whole(examples_per_step) and examples_per_step < num_examples):
            raise InputError(
                f"a step of the optimizer takes {examples_per_step!r} of {num_examples!r} examples: a shared warm-up "
                "needs two steps in an epoch, at least; make batches smaller, or choose warmup='apart'"
            )
        self.seed, self.epoch = seed, 0
        self.steps_per_epoch = -(-num_examples // examples_per_step)
        self._halves = torch.arange(num_examples, device="cpu") // examples_per_step % 2  # of each place in an epoch
        self._examples = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed), device="cpu")

    def half_of(self, step: int) -> int:
        """The half, 0 or 1, of a step of the optimizer: the number of steps before it, in all epochs."""
        return step % self.steps_per_epoch % 2

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (self.epoch + 1))
        order = torch.empty_like(self._examples)
        for half in (0, 1):
            places = (self._halves == half).nonzero().flatten()
            order[places] = self._examples[places[torch.randperm(len(places), generator=generator, device="cpu")]]
        yield from order.tolist()
        self.epoch += 1
