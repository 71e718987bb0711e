"""Mixed batches: which documents of which domains make up each batch, on each rank."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from lightning_ncmtl.errors import InputError

Balance = Literal["proportional", "uniform"] | float
Integers = NDArray[Any]  # 4 bytes each where that is enough: a corpus may have millions of documents

_TEMPERATURES = {"proportional": 1.0, "uniform": math.inf}


class MixedBatchSampler(DistributedSampler[list[int]]):
    """Draws batches that mix domains, hold texts of similar length, and depend only on (seed, epoch).

    It yields whole batches: use it as ``DataLoader(dataset, sampler=sampler, batch_size=None)``. Being a
    :class:`torch.utils.data.DistributedSampler`, it is left alone by Lightning, which calls its ``set_epoch``.

    Training (``shuffle=True``): an epoch has as many documents as there are, drawn at random, and divided over its
    steps and ranks as evenly as possible; all ranks have the same number of steps. Runs of ``pool`` consecutive global
    batches are sorted by length and cut anew, so that little is padded; then the batches are shuffled.

    Evaluation (``shuffle=False``): every document once, whatever ``balance``, ``replacement`` and ``quota`` are. The
    batches are the same for any number of ranks; rank ``r`` takes every ``num_replicas``-th. Where they do not divide
    evenly, some ranks end with an empty batch, so that all ranks step together and no document counts twice.

    Args:
        task_ids: Task of each document.
        lengths: Length of each document.
        batch_size: Documents per batch and rank, at most (two instead of one where a rank would go without any).
        balance: How an epoch draws the domains: ``"proportional"`` to their size, ``"uniform"``, or between the two by
            a temperature of at least 1: a domain of ``n`` documents has the weight ``n ** (1 / temperature)``
            (Arivazhagan et al., 2019, https://arxiv.org/abs/1907.05019).
        replacement: Whether documents are drawn independently of each other. Otherwise each domain gives its share of
            the epoch, and repeats a document only after all its others: ``"proportional"`` is one pass over all.
        quota: Documents of every domain that each batch holds at least. Domains too small for it repeat documents, and
            the others give up as many. Batches grow where all of them together are too small for the quotas.
        shuffle: Whether the batches are for training.
        seed: Seed of the order.
        num_replicas: Number of ranks.
        rank: This rank.
        pool: Batches that are sorted by length together.
        halves: The half of each document, 0 or 1: training batches hold documents of one half each, and take turns, so
            that what is learned of the tasks from one half can be tried on the other.
        turn: Batches of one half that follow each other: as many as a step of the optimizer takes. Batches are smaller
            where that makes turns whole.

    Raises:
        InputError: If documents or settings cannot be used, or there are fewer training documents than ranks.
    """

    fixed = False  # whether all epochs have the same batches

    def __init__(
        self,
        task_ids: Sequence[int] | Integers,
        lengths: Sequence[int] | Integers,
        batch_size: int,
        *,
        balance: Balance = "proportional",
        replacement: bool = False,
        quota: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        pool: int = 50,
        halves: Sequence[int] | Integers | None = None,
        turn: int = 1,
    ) -> None:
        if len(task_ids) != len(lengths) or len(lengths) == 0:
            raise InputError(f"each document needs a task and a length, found {len(task_ids)} and {len(lengths)}")
        tasks, self.lengths = _integers("task_ids", task_ids), _integers("lengths", lengths)
        super().__init__(self.lengths, num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        for name, value, least in (("batch_size", batch_size, 1), ("quota", quota, 0), ("pool", pool, 1)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, found {value}")
        self.temperature = _TEMPERATURES.get(balance, math.nan) if isinstance(balance, str) else balance
        if not self.temperature >= 1:
            raise InputError(f"balance must be proportional, uniform or a number of at least 1, found {balance}")
        if shuffle and len(self.lengths) < num_replicas:
            raise InputError(f"{len(self.lengths)} training documents are too few for {num_replicas} devices")
        _, tasks, self.sizes = np.unique(tasks, return_inverse=True, return_counts=True)
        if shuffle and quota * len(self.sizes) > batch_size:
            raise InputError(
                f"batch_size {batch_size} is too small for a quota of {quota} documents of each of {len(self.sizes)} "
                f"domains: set batch_size (data.batches.size) to at least {quota * len(self.sizes)}, or lower quota"
            )
        self.task_ids = tasks.astype(np.min_scalar_type(len(self.sizes)))  # few bytes: sorting them is fast, too
        self.batch_size = batch_size
        self.replacement = replacement
        self.quota = quota
        self.pool = pool
        self.skip = 0  # batches to leave out, to continue in the middle of an epoch
        self.num_batches = -(-len(self.lengths) // (batch_size * num_replicas))
        if shuffle:  # at least one document per batch and rank
            self.num_batches = min(self.num_batches, len(self.lengths) // num_replicas)
            self._members = _order(self.task_ids)  # domain after domain
            self._starts = np.append(0, np.cumsum(self.sizes))
        self.turn = turn
        self._halves: list[tuple[Integers, MixedBatchSampler]] = []
        if shuffle and halves is not None:
            settings: dict[str, Any] = {"balance": balance, "replacement": replacement, "quota": quota, "pool": pool}
            for half in (0, 1):
                places = np.flatnonzero(np.asarray(halves) == half)
                sampler = MixedBatchSampler(
                    tasks[places],
                    self.lengths[places],
                    batch_size,
                    **settings,
                    seed=seed + half,
                    num_replicas=num_replicas,
                    rank=rank,
                )
                # In whole turns, so that no step takes batches of both halves, which would tell nothing of either
                whole = -(-len(sampler) // turn) * turn
                sampler.num_batches = min(whole, len(places) // num_replicas)
                self._halves.append((places, sampler))
            self.num_batches = sum(len(sampler) for _, sampler in self._halves)

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        if self._halves:
            return itertools.islice(self._batches_by_turns(), self.skip, None)
        return self._training_batches() if self.shuffle else self._evaluation_batches()

    def _batches_by_turns(self) -> Iterator[list[int]]:
        def batches(places: Integers, sampler: MixedBatchSampler) -> Iterator[list[int]]:
            sampler.set_epoch(0 if self.fixed else self.epoch)
            return (places[batch].tolist() for batch in sampler)

        parts = list(itertools.starmap(batches, self._halves))
        while left := [turn for part in parts if (turn := list(itertools.islice(part, self.turn)))]:
            yield from itertools.chain.from_iterable(left)

    def _training_batches(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, 0 if self.fixed else self.epoch])
        least = self.quota * self.num_replicas  # documents of a domain in a global batch
        due, rest = self._draw(rng, least * self.num_batches)
        # Sizes of the global batches differ by one at most.
        bounds = np.arange(self.num_batches + 1) * (due.size + len(rest)) // self.num_batches
        order = np.empty(bounds[-1], rest.dtype)
        for first in range(0, self.num_batches, self.pool):
            last = min(first + self.pool, self.num_batches)
            start, stop = bounds[[first, last]] - np.array([first, last]) * least * len(due)
            pool = np.concatenate([due[:, first * least : last * least].ravel(), rest[start:stop]])
            order[bounds[first] : bounds[last]] = self._sort(pool, np.diff(bounds[first : last + 1]), least)
        numbers = rng.permutation(self.num_batches)[self.skip :]
        return (order[bounds[i] : bounds[i + 1]][self.rank :: self.num_replicas].tolist() for i in numbers)

    def _evaluation_batches(self) -> Iterator[list[int]]:
        order = _order(self.lengths)
        starts = range(self.num_batches * self.num_replicas)[self.rank :: self.num_replicas][self.skip :]
        return (order[i * self.batch_size : (i + 1) * self.batch_size].tolist() for i in starts)

    def _draw(self, rng: np.random.Generator, least: int) -> tuple[Integers, Integers]:
        """The documents of an epoch in random order: ``least`` of each domain, ``[num_domains, least]``; all others."""
        total, num_tasks = len(self.lengths), len(self.sizes)
        if self.temperature == 1 and least == 0 and not self.replacement:
            return np.empty((num_tasks, 0), np.int32), rng.permutation(np.arange(total, dtype=self._members.dtype))
        tasks = rng.permutation(num_tasks)
        weights = self.sizes[tasks] ** (1 / self.temperature)
        counts = rng.multinomial(total, weights / weights.sum()) if self.replacement else _divide(total, weights)
        others = max(total - least * num_tasks, 0)  # what remains for documents beyond the quotas
        counts = least + _divide(others, np.maximum(counts - least, 0))
        drawn = [self._draw_from(rng, task, count) for task, count in zip(tasks, counts, strict=True)]
        due = np.stack([documents[:least] for documents in drawn])
        return due, rng.permutation(np.concatenate([documents[least:] for documents in drawn]))

    def _draw_from(self, rng: np.random.Generator, task: int, count: int) -> Integers:
        members = self._members[self._starts[task] : self._starts[task + 1]]
        if self.replacement:
            return members[rng.integers(len(members), size=count)]
        rounds = np.tile(members, (-(-count // len(members)), 1))
        return rng.permuted(rounds, axis=1, out=rounds).ravel()[:count]

    def _sort(self, pool: Integers, sizes: Integers, least: int) -> Integers:
        """Deals the documents of a pool to batches of these ``sizes``, from the shortest batch to the longest.

        With quotas, the documents of a batch are ordered by domain, so that dealing them out to the ranks in turn gives
        each rank its quota.
        """
        pool = pool[np.argsort(self.lengths[pool], kind="stable")]
        if least == 0:
            return pool
        numbers = np.arange(len(sizes))
        batch = np.repeat(numbers, sizes)  # where a document belongs by its length
        by_task = np.argsort(self.task_ids[pool], kind="stable")
        pool, batch = pool[by_task], batch[by_task]
        tasks = self.task_ids[pool].astype(np.int64)
        counts = np.bincount(tasks, minlength=len(self.sizes))
        place = np.arange(len(pool)) - (np.cumsum(counts) - counts)[tasks]  # by length within the domain
        # A document is free to follow its length once shorter ones fill the quotas of the batches up to its own; the
        # number of free ones so far is a running maximum, and all but the quotas are free in the end.
        free = np.clip(place + 1 - least * (batch + 1), 0, (counts - least * len(sizes))[tasks])
        free = np.maximum.accumulate(free + tasks * len(pool)) - tasks * len(pool)  # each domain starts from 0
        is_free = np.diff(free, prepend=0) > 0
        batch[~is_free] = np.tile(np.repeat(numbers, least), len(counts))
        by_length = np.argsort(self.lengths[pool[is_free]], kind="stable")
        batch[np.flatnonzero(is_free)[by_length]] = np.repeat(numbers, sizes - least * len(counts))
        batch = batch[np.lexsort((batch, tasks))]  # as many of a domain for each batch, but the shorter ones first
        return pool[np.argsort(batch, kind="stable")]


class FixedBatchSampler(MixedBatchSampler, SequentialSampler):  # type: ignore[misc]
    """The same batches in every epoch, for ``overfit_batches``: Lightning leaves a ``SequentialSampler`` alone."""

    fixed = True


class MixedBatchLoader(DataLoader[Any]):
    """A loader that continues in the middle of an epoch: its position travels in Lightning's checkpoints."""

    _position = 0  # batches handed out in this epoch
    _interrupted = (0, 0)  # an epoch that was left, and the batches that it had handed out

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Runs when the first batch is asked for: Lightning resumes with iter() before set_epoch().
        sampler = self.sampler
        if not isinstance(sampler, MixedBatchSampler):
            raise InputError(f"the loader needs a MixedBatchSampler, found {type(sampler).__name__}")
        epoch, position = self._interrupted
        self._position, self._interrupted = position if epoch == sampler.epoch else 0, (0, 0)
        sampler.skip = self._position
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Called by Lightning when it writes a checkpoint."""
        assert isinstance(self.sampler, MixedBatchSampler)
        return {"epoch": self.sampler.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Called by Lightning when it resumes: if the same epoch goes on, it starts behind the batches already seen."""
        self._position = state["position"] % len(self)
        self._interrupted = state["epoch"], self._position


def _integers(name: str, values: Sequence[int] | Integers) -> Integers:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
        found = array.min() if array.ndim == 1 and array.dtype.kind in "iuf" else f"{array.dtype} {array.shape}"
        raise InputError(f"{name} must be whole numbers of at least 0, one per document, found {found}")
    return _compact(array)


def _compact(array: Integers) -> Integers:
    return array.astype(np.int32 if array.max() <= np.iinfo(np.int32).max else np.int64)


def _order(values: Integers) -> Integers:
    return _compact(np.argsort(values, kind="stable"))


def _divide(total: int, weights: NDArray[Any]) -> Integers:
    """``total`` in whole parts that are proportional to ``weights``, up to one."""
    sums = np.append(0, np.cumsum(weights))
    bounds = (sums * total // max(sums[-1], 1)).astype(np.int64)
    bounds[-1] = total  # rounding may have lost one
    return np.diff(bounds)
