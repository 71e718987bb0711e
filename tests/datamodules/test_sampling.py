from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import Dataset, DistributedSampler

from lightning_ncmtl.datamodules import MixedBatchLoader, MixedBatchSampler
from lightning_ncmtl.datamodules.sampling import Balance, FixedBatchSampler
from lightning_ncmtl.errors import InputError

SIZES = [120, 40, 7]  # documents per task
TASKS = [task for task, size in enumerate(SIZES) for _ in range(size)]
LENGTHS = np.random.default_rng(0).integers(5, 200, len(TASKS)).tolist()
MODES: list[dict[str, Any]] = [
    {},
    {"balance": "uniform"},
    {"balance": 3.0},
    {"balance": 3.0, "replacement": True},
    {"quota": 2},
    {"balance": "uniform", "replacement": True, "quota": 1},
    {"halves": [index // 2 % 2 for index in range(len(TASKS))]},
    {"shuffle": False},
]


def sampler(rank: int = 0, num_replicas: int = 1, batch_size: int = 8, **settings: object) -> MixedBatchSampler:
    return MixedBatchSampler(TASKS, LENGTHS, batch_size, num_replicas=num_replicas, rank=rank, **settings)  # type: ignore[arg-type]


def sampler_of(sizes: list[int], batch_size: int, **settings: Any) -> MixedBatchSampler:
    """Over domains of these sizes, in order; the lengths are random."""
    lengths = np.random.default_rng(1).integers(1, 100, sum(sizes))
    return MixedBatchSampler(np.repeat(range(len(sizes)), sizes), lengths, batch_size, **settings)  # type: ignore[arg-type]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def domain_counts(sizes: list[int], documents: list[int]) -> list[int]:
    counts: list[int] = np.bincount(np.repeat(range(len(sizes)), sizes)[documents], minlength=len(sizes)).tolist()
    return counts


def padding(batches: list[list[int]], lengths: list[int]) -> float:
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return padded / sum(lengths[index] for index in flat(batches))


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
    assert max(sizes) - min(sizes) <= 1


def test_batches_of_one_document_leave_no_rank_without_any() -> None:
    parts = [list(MixedBatchSampler([0] * 5, [1] * 5, 1, num_replicas=2, rank=rank)) for rank in range(2)]
    assert all(len(batch) >= 1 for part in parts for batch in part)


def test_evaluation_batches_do_not_depend_on_the_number_of_ranks() -> None:
    alone = list(sampler(shuffle=False))
    parts = [list(sampler(rank, 2, shuffle=False)) for rank in range(2)]
    interleaved = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert [batch for batch in interleaved if batch] == alone
    assert interleaved.count([]) == len(interleaved) - len(alone) == 1


@pytest.mark.parametrize("mode", MODES[:-1])
def test_order_depends_on_seed_and_epoch_alone(mode: dict[str, Any]) -> None:
    one, other = sampler(seed=5, **mode), sampler(seed=5, **mode)
    first = list(one)
    assert first == list(other) == list(one)
    one.set_epoch(1)
    assert list(one) != first
    assert mode.get("balance") or mode.get("quota") or sorted(flat(list(one))) == sorted(flat(first))
    one.set_epoch(0)
    assert list(one) == first
    assert list(sampler(seed=6, **mode)) != first
    fixed = FixedBatchSampler(TASKS, LENGTHS, 8, seed=5, **mode)
    fixed.set_epoch(1)
    assert list(fixed) == first


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_every_plan_is_even_shared_and_full_of_its_quotas(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6), "sizes")
    ranks = data.draw(st.integers(1, min(4, sum(sizes))), "ranks")
    batch_size = data.draw(st.integers(1, 24), "batch_size")
    quota = data.draw(st.integers(0, batch_size // len(sizes)), "quota")
    balances = st.sampled_from(["proportional", "uniform", 2, 5]) | st.floats(1, 1e9)
    mode = {
        "balance": data.draw(balances, "balance"),
        "replacement": data.draw(st.booleans(), "replacement"),
        "pool": data.draw(st.integers(1, 9), "pool"),
        "seed": data.draw(st.integers(0, 9), "seed"),
    }
    samplers = [sampler_of(sizes, batch_size, num_replicas=ranks, rank=r, quota=quota, **mode) for r in range(ranks)]
    parts = [list(part) for part in samplers]
    steps = len(samplers[0])
    assert [len(part) for part in parts] == [steps] * ranks

    batches = [batch for part in parts for batch in part]
    alone = sampler_of(sizes, batch_size * ranks, quota=quota * ranks, **mode)  # one rank draws the same
    assert len(alone) == steps or batch_size == 1  # fewer steps where some rank would have been without a document
    assert max(map(len, batches)) <= batch_size + (len(alone) > steps)
    assert 1 <= min(map(len, batches)) <= max(map(len, batches)) <= min(map(len, batches)) + 1
    assert len(flat(batches)) == max(sum(sizes), quota * len(sizes) * steps * ranks)
    assert min(min(domain_counts(sizes, batch)) for batch in batches) >= quota

    if len(alone) == steps:
        shared = [sorted(flat([part[step] for part in parts])) for step in range(steps)]
        assert shared == [sorted(batch) for batch in alone]
    if not mode["replacement"]:  # whole passes over each domain
        counts = np.bincount(flat(batches), minlength=sum(sizes))
        assert all(np.ptp(part) <= 1 for part in np.split(counts, np.cumsum(sizes)[:-1]))
        if mode["balance"] == "proportional" and quota == 0:
            assert set(counts) == {1}


def test_a_temperature_lies_between_proportional_and_uniform() -> None:
    sizes = [900, 100]
    assert domain_counts(sizes, flat(list(sampler_of(sizes, 10, balance=2)))) == [750, 250]  # as 30 to 10
    assert len(flat(list(sampler_of([1, 6], 7, balance=2)))) == 7  # although 7 w / w rounds to less
    for number, name in ((1, "proportional"), (float("inf"), "uniform")):
        assert list(sampler_of(sizes, 10, balance=number)) == list(sampler_of(sizes, 10, balance=name))


def test_replacement_draws_independently() -> None:
    sizes = [9000, 1000]
    drawn = np.array(flat(list(sampler_of(sizes, 32, replacement=True))))
    assert len(drawn) == 10_000
    assert np.mean(drawn >= 9000) == pytest.approx(0.1, abs=0.015)  # five standard deviations
    assert len(np.unique(drawn)) / 10_000 == pytest.approx(1 - np.exp(-1), abs=0.02)
    uniform = flat(list(sampler_of(sizes, 32, replacement=True, balance="uniform")))
    assert domain_counts(sizes, uniform)[1] / 10_000 == pytest.approx(0.5, abs=0.025)


def test_quotas_repeat_small_domains_and_shorten_large_ones() -> None:
    counts = np.bincount(flat(list(sampler_of([90, 10], 10, quota=2))))
    assert (counts[90:] == 2).all()  # 10 batches need 20
    assert sorted(counts[:90]) == [0] * 10 + [1] * 80
    large_enough = flat(list(sampler_of([60, 40], 10, quota=2)))
    assert sorted(large_enough) == list(range(100))


def test_batches_too_small_for_the_quotas_grow() -> None:
    batches = list(sampler_of([4, 1], 4, quota=2))  # 3 and 2 documents without quotas
    assert [domain_counts([4, 1], batch) for batch in batches] == [[2, 2], [2, 2]]
    assert sorted(flat(batches)) == [0, 1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("turn", [1, 3, 7])
@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_take_turns_between_halves(ranks: int, turn: int) -> None:
    halves = (np.arange(len(TASKS)) % 7 < 3).astype(int)  # the second half is smaller
    for epoch in range(2):
        found = []
        for rank in range(ranks):
            it = sampler(rank, ranks, halves=halves, turn=turn)
            it.set_epoch(epoch)
            found.append(list(it))
            assert len(it) == len(found[rank])
        assert sorted(flat([batch for batches in found for batch in batches])) == list(range(len(TASKS)))
        order = [[{*halves[batch]} for batch in batches] for batches in found]
        assert all(len(half) == 1 for half in order[0])
        assert all(other == order[0] for other in order)  # all ranks of one half at once
        first = [half.pop() for half in order[0]]
        even = 2 * turn * (min(first.count(0), first.count(1)) // turn)
        assert first[:even] == [index // turn % 2 for index in range(even)]
        assert len(first) % turn == 0
        assert all(len({*first[index : index + turn]}) == 1 for index in range(0, len(first), turn))


def test_fewer_documents_than_a_turn_has_batches() -> None:
    batches = list(MixedBatchSampler([0] * 8, [1] * 8, 4, halves=[0, 1, 1, 1] * 2, turn=4))
    assert [len(batch) for batch in batches[:2]] == [1, 1]
    assert sorted(flat(batches)) == list(range(8))


def test_quotas_hold_in_each_half() -> None:
    halves = np.arange(len(TASKS)) % 2
    for batch in sampler(halves=halves, quota=2):
        assert (np.bincount(np.array(TASKS)[batch], minlength=3) >= 2).all()
    assert len(list(sampler(halves=halves, shuffle=False))) == -(-len(TASKS) // 8)  # of training alone


def test_domains_are_those_present() -> None:
    batches = list(MixedBatchSampler([7, 900] * 8, [1] * 16, 4, quota=2))
    assert [sorted(index % 2 for index in batch) for batch in batches] == [[0, 0, 1, 1]] * 4


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
    assert padding(list(sampler()), LENGTHS) < 1.15 < 1.5 < padding(list(sampler(pool=1)), LENGTHS)


def test_quotas_leave_batches_of_similar_length() -> None:
    rng = np.random.default_rng(0)
    tasks = np.repeat(range(14), 140)
    medians = 100 * np.geomspace(0.5, 2, 14)
    lengths = np.maximum(rng.lognormal(np.log(medians[tasks]), 0.8).astype(int), 1).tolist()
    waste = {
        (quota, pool): padding(list(MixedBatchSampler(tasks.tolist(), lengths, 32, quota=quota, pool=pool)), lengths)
        for quota, pool in ((0, 50), (1, 50), (2, 50), (0, 1), (2, 1))
    }
    assert waste[0, 50] < 1.25
    assert waste[1, 50] < 1.5  # 14 of 32 documents are bound
    assert waste[2, 50] < 1.9  # 28 of 32
    assert min(waste[0, 1], waste[2, 1]) > 4


def test_is_a_distributed_sampler_so_that_lightning_leaves_it_alone() -> None:
    assert isinstance(sampler(), DistributedSampler)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, found 0"):
        sampler(batch_size=0)
    with pytest.raises(InputError, match="quota must be at least 0, found -1"):
        sampler(quota=-1)
    with pytest.raises(InputError, match="pool must be at least 1, found 0"):
        sampler(pool=0)
    with pytest.raises(InputError, match="1 training documents are too few for 2 devices"):
        MixedBatchSampler([0], [3], 8, num_replicas=2)
    assert list(MixedBatchSampler([0], [3], 8, num_replicas=2, rank=1, shuffle=False)) == [[]]


@pytest.mark.parametrize("balance", [0.5, 0, -1, float("nan"), "other"])
def test_bad_balance_is_refused(balance: Any) -> None:
    with pytest.raises(InputError, match=f"balance must be proportional, uniform or .* at least 1, found {balance}"):
        sampler(balance=balance)


def test_a_quota_that_does_not_fit_is_refused() -> None:
    message = "batch_size 8 is too small for a quota of 3 documents of each of 3 domains: set batch_size"
    with pytest.raises(InputError, match=message):
        sampler(quota=3)
    assert len(list(sampler(quota=3, shuffle=False))) == 21  # evaluation is without quotas


@pytest.mark.parametrize(
    ("tasks", "lengths", "message"),
    [
        ([], [], "each document needs a task and a length, found 0 and 0"),
        ([0, 1], [3], "each document needs a task and a length, found 2 and 1"),
        ([0, 1], [3, -1], "lengths must be whole numbers of at least 0, one per document, found -1"),
        ([0, -2], [3, 1], "task_ids must be whole numbers .*, found -2"),
        ([0, 1], [3.5, 4], "lengths must be whole numbers .*, found 3.5"),
        ([0, 1], ["a", "b"], "lengths must be whole numbers .*, found <U1"),
        ([0, 1], [[1], [2]], "lengths must be whole numbers .*, found int64"),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_bad_documents_are_refused(tasks: Any, lengths: Any, message: str, shuffle: bool) -> None:
    with pytest.raises(InputError, match=message) as info:
        MixedBatchSampler(tasks, lengths, 8, shuffle=shuffle)
    assert "\n" not in str(info.value)


def test_balance_is_read_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--balance", type=Balance)
    for text, value in (("5", 5), ("1.5", 1.5), (".inf", float("inf")), ("uniform", "uniform")):
        assert parser.parse_string(f"balance: {text}").balance == value
        assert parser.parse_args([f"--balance={text}"]).balance == value


class Rows(Dataset[torch.Tensor]):
    """Row numbers, many at once."""

    def __getitem__(self, rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows)


def loader(sampler: MixedBatchSampler, workers: int = 0) -> MixedBatchLoader:
    return MixedBatchLoader(
        Rows(), sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )


def take(batches: Any, number: int | None = None) -> list[list[int]]:
    return [batch.tolist() for batch in islice(batches, number)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_a_loader_continues_in_the_middle_of_an_epoch(mode: dict[str, Any], workers: int) -> None:
    epochs = []
    for epoch in range(2):
        it = sampler(**mode)
        it.set_epoch(epoch)
        epochs.append(list(it))
    interrupted = loader(sampler(**mode), workers)
    assert take(iter(interrupted), 5) == epochs[0][:5]
    state = interrupted.state_dict()
    assert state == {"epoch": 0, "position": 5}  # handed out; a worker is ahead

    resumed = loader(sampler(**mode), workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert take(resumed) == epochs[0][5:]
    for one in (resumed, interrupted):  # the next epochs are whole
        for epoch in (1, 0):
            one.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            assert take(one) == epochs[epoch]
    resumed.load_state_dict(interrupted.state_dict())  # the end of an epoch is the start of the next
    assert take(resumed) == epochs[0]


def test_a_loader_needs_a_mixed_batch_sampler() -> None:
    with pytest.raises(InputError, match="the loader needs a MixedBatchSampler, found SequentialSampler"):
        list(MixedBatchLoader([1, 2]))  # type: ignore[arg-type]


class Recorder(LightningModule):
    """Keeps the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return self.weight * 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("mode", MODES[:-1])
def test_lightning_keeps_the_sampler_and_sets_its_epoch(
    mode: dict[str, Any], make_trainer: Callable[..., Trainer]
) -> None:
    records = []
    for options in ({}, {"use_distributed_sampler": False}):
        model, ours = Recorder(), sampler(**mode)
        trainer = make_trainer(max_epochs=2, **options)
        trainer.fit(model, loader(ours))
        assert trainer.train_dataloader.sampler is ours  # type: ignore[union-attr]
        assert ours.epoch == 1
        records.append(model.seen)
    steps = len(sampler(**mode))
    assert records[0] == records[1]
    assert len(records[0]) == 2 * steps
    assert records[0][:steps] == list(sampler(**mode)) != records[0][steps:]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_resumes_in_the_middle_of_an_epoch(
    workers: int, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def fit(checkpoint: Path | None = None) -> list[list[int]]:
        model = Recorder()
        callback = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=9, save_top_k=-1)
        trainer = make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[callback])
        trainer.fit(model, loader(sampler(balance=3.0, quota=1), workers), ckpt_path=checkpoint)
        return model.seen

    whole = fit()
    for step in (9, 27):  # of 21 steps an epoch
        assert fit(tmp_path / f"step={step}.ckpt") == whole[step:]
