from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DistributedSampler

from lightning_ncmtl.datamodules import MixedBatchSampler
from lightning_ncmtl.datamodules.sampling import Balance
from lightning_ncmtl.errors import InputError

SIZES = [120, 40, 7]  # documents per task
TASKS = [task for task, size in enumerate(SIZES) for _ in range(size)]
LENGTHS = np.random.default_rng(0).integers(5, 200, len(TASKS)).tolist()


def sampler(rank: int = 0, num_replicas: int = 1, batch_size: int = 8, **settings: object) -> MixedBatchSampler:
    return MixedBatchSampler(TASKS, LENGTHS, batch_size, num_replicas=num_replicas, rank=rank, **settings)  # type: ignore[arg-type]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("batch_size", [1, 2, 8, 50, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_all_documents_without_overlap(shuffle: bool, ranks: int, batch_size: int) -> None:
    parts = [list(sampler(rank, ranks, batch_size, shuffle=shuffle)) for rank in range(ranks)]
    assert sorted(flat([batch for part in parts for batch in part])) == list(range(len(TASKS)))
    assert {len(part) for part in parts} == {len(sampler(0, ranks, batch_size, shuffle=shuffle))}  # ranks step together


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("balance", ["proportional", "uniform"])
def test_training_batches_are_full_and_even(balance: Balance, ranks: int) -> None:
    sizes = [len(b) for rank in range(ranks) for b in sampler(rank, ranks, balance=balance)]
    assert min(sizes) >= 1
    assert max(sizes) <= 8
    assert max(sizes) - min(sizes) <= 2


def test_batches_of_one_document_leave_no_rank_without_any() -> None:
    parts = [list(MixedBatchSampler([0] * 5, [1] * 5, 1, num_replicas=2, rank=rank)) for rank in range(2)]
    assert all(len(batch) >= 1 for part in parts for batch in part)


def test_evaluation_batches_do_not_depend_on_the_number_of_ranks() -> None:
    alone = list(sampler(shuffle=False))
    parts = [list(sampler(rank, 2, shuffle=False)) for rank in range(2)]
    interleaved = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert [batch for batch in interleaved if batch] == alone
    assert interleaved.count([]) == len(interleaved) - len(alone) == 1


def test_order_depends_on_seed_and_epoch_alone() -> None:
    one, other = sampler(seed=5), sampler(seed=5)
    first = list(one)
    assert first == list(other) == list(one)
    one.set_epoch(1)
    assert list(one) != first
    assert sorted(flat(list(one))) == sorted(flat(first))
    one.set_epoch(0)
    assert list(one) == first
    assert list(sampler(seed=6)) != first


def test_every_batch_mixes_domains() -> None:
    for epoch in range(5):
        it = sampler(batch_size=16)
        it.set_epoch(epoch)
        assert all(len({TASKS[index] for index in batch}) >= 2 for batch in it)


def test_uniform_draws_equally_many_of_each_domain() -> None:
    it = sampler(balance="uniform")
    drawn = flat(list(it))
    counts = Counter(TASKS[index] for index in drawn)
    assert len(drawn) == len(TASKS)
    assert max(counts.values()) - min(counts.values()) <= 1
    small = Counter(index for index in drawn if TASKS[index] == 2)
    assert max(small.values()) - min(small.values()) <= 1  # repeats go round all 7 documents
    assert len(small) == 7
    it.set_epoch(1)
    assert set(drawn) != set(flat(list(it)))  # another part of the large domain


def test_batches_hold_documents_of_similar_length() -> None:
    def padding(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
        return padded / sum(LENGTHS[index] for index in flat(batches))

    assert padding(list(sampler())) < 1.15 < 1.5 < padding(list(sampler(pool=1)))


def test_is_a_distributed_sampler_so_that_lightning_leaves_it_alone() -> None:
    assert isinstance(sampler(), DistributedSampler)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, found 0"):
        sampler(batch_size=0)
    with pytest.raises(InputError, match="1 training documents are too few for 2 devices"):
        MixedBatchSampler([0], [3], 8, num_replicas=2)
    assert list(MixedBatchSampler([0], [3], 8, num_replicas=2, rank=1, shuffle=False)) == [[]]
