"""Mixed batches: which documents of which domains make up each batch, on each rank."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from lightning_ncmtl.errors import InputError

Balance = Literal["proportional", "uniform"]


class MixedBatchSampler(DistributedSampler[list[int]]):
    """Draws batches that mix domains, hold texts of similar length, and depend on (seed, epoch) alone.

    It yields whole batches: use it as ``DataLoader(dataset, sampler=sampler, batch_size=None)``. Being a
    :class:`DistributedSampler`, it is left alone by Lightning, which calls its ``set_epoch``.

    Training (``shuffle=True``): documents are drawn at random over all domains. Runs of ``pool`` consecutive global
    batches are sorted by length and cut anew, so that little is padded; then the batches are shuffled. The documents
    of an epoch are divided over its steps and ranks as evenly as possible: none is left out or repeated
    (``proportional``), and all ranks have the same number of steps.

    Evaluation (``shuffle=False``): the batches are the same for any number of ranks; rank ``r`` takes every
    ``num_replicas``-th. Where they do not divide evenly, some ranks end with an empty batch, so that all ranks step
    together and no document counts twice.

    Args:
        task_ids: Task of each document.
        lengths: Length of each document.
        batch_size: Documents per batch and rank.
        balance: ``"proportional"`` goes once through all documents per epoch. ``"uniform"`` draws equally many of each
            domain per epoch, as many in all: small domains repeat documents, large ones leave some out.
        shuffle: Whether the batches are for training.
        seed: Seed of the order.
        num_replicas: Number of ranks.
        rank: This rank.
        pool: Batches that are sorted by length together.

    Raises:
        InputError: If there are fewer training documents than ranks.
    """

    def __init__(
        self,
        task_ids: Sequence[int],
        lengths: Sequence[int],
        batch_size: int,
        *,
        balance: Balance = "proportional",
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        pool: int = 50,
    ) -> None:
        self.task_ids = np.asarray(task_ids)
        self.lengths = np.asarray(lengths)
        super().__init__(self.lengths, num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, found {batch_size}")
        if shuffle and len(self.lengths) < num_replicas:
            raise InputError(f"{len(self.lengths)} training documents are too few for {num_replicas} devices")
        self.batch_size = batch_size
        self.balance = balance
        self.pool = pool
        self.skip = 0  # batches to leave out, to continue in the middle of an epoch
        if shuffle:
            # Global batches of at most batch_size * ranks documents, but no fewer than ranks, so that no rank is empty.
            batches = -(-len(self.lengths) // (batch_size * num_replicas))
            self.num_batches = min(batches, len(self.lengths) // num_replicas)
        else:
            self.num_batches = -(-len(self.lengths) // (batch_size * num_replicas))

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._training_batches() if self.shuffle else self._evaluation_batches()
        return iter(batches[self.skip :])

    def _training_batches(self) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self._draw(rng)
        # Sizes of the global batches differ by one at most.
        bounds = np.arange(self.num_batches + 1) * len(order) // self.num_batches
        for first in range(0, self.num_batches, self.pool):
            pool = order[bounds[first] : bounds[min(first + self.pool, self.num_batches)]]
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]
        starts = rng.permutation(self.num_batches)
        return [order[bounds[b] : bounds[b + 1]][self.rank :: self.num_replicas].tolist() for b in starts]

    def _evaluation_batches(self) -> list[list[int]]:
        order = np.argsort(self.lengths, kind="stable")
        batches = [order[start : start + self.batch_size].tolist() for start in range(0, len(order), self.batch_size)]
        batches += [[]] * (self.num_batches * self.num_replicas - len(batches))
        return batches[self.rank :: self.num_replicas]

    def _draw(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The documents of an epoch, in random order."""
        if self.balance == "proportional":
            return rng.permutation(len(self.lengths))
        tasks = rng.permutation(np.unique(self.task_ids))
        quotas = np.diff(np.arange(len(tasks) + 1) * len(self.lengths) // len(tasks))
        drawn = []
        for task, quota in zip(tasks, quotas, strict=True):
            members = np.flatnonzero(self.task_ids == task)
            rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
            drawn.append(np.concatenate(rounds)[:quota])
        return rng.permutation(np.concatenate(drawn))


class FixedBatchSampler(MixedBatchSampler, SequentialSampler):  # type: ignore[misc]
    """The same batches in every epoch, for ``overfit_batches``: Lightning leaves a ``SequentialSampler`` alone."""

    def set_epoch(self, epoch: int) -> None:
        """Ignored."""


class MixedBatchLoader(DataLoader[Any]):
    """A loader that continues in the middle of an epoch: its position travels in Lightning's checkpoints."""

    _position = 0  # batches handed out in this epoch
    _skip = 0  # batches that an interrupted epoch had handed out

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._position, self._skip = self._skip, 0
        sampler = self.sampler
        if not isinstance(sampler, MixedBatchSampler):
            raise InputError(f"the loader needs a MixedBatchSampler, found {type(sampler).__name__}")
        sampler.skip = self._position
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Called by Lightning when it writes a checkpoint."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Called by Lightning when it resumes: the next iteration starts behind the batches already seen."""
        self._skip = state["position"] % len(self)
