"""What holds for every encoder of text, and an oracle for each of the flat ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN, LSTM, Concat, NGram, TextCNN, _packing, ngram
from lightning_ncmtl.encoders.ngram import hash_run
from lightning_ncmtl.errors import InputError

DOCUMENTS = [[[3, 4, 5], [6]], [[7, 8]], [[9, 3, 3, 3], [4, 5], [6, 7, 8]], [[1]]]
ENCODERS: list[Callable[..., Any]] = [HAN, LSTM, NGram, TextCNN]


def batch(documents: list[list[list[int]]]) -> dict[str, Tensor]:
    sentences = [sentence for document in documents for sentence in document]
    return {
        "tokens": torch.tensor([word for sentence in sentences for word in sentence]),
        "sentence_lengths": torch.tensor([len(sentence) for sentence in sentences]),
        "document_lengths": torch.tensor([len(document) for document in documents]),
    }


def padded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with ``tokens [S, L]``."""
    sentences = inputs["tokens"].split(inputs["sentence_lengths"].tolist())
    return {**inputs, "tokens": nn.utils.rnn.pad_sequence(list(sentences), batch_first=True)}


def words(document: list[list[int]]) -> Tensor:
    return torch.tensor([word for sentence in document for word in sentence])


@pytest.mark.parametrize("make", ENCODERS)
def test_a_document_does_not_depend_on_its_batch(make: Callable[..., Any]) -> None:
    encoder = make(20, 6).eval()
    together = encoder(batch(DOCUMENTS))
    assert together.shape == (4, encoder.out_features)
    for document, row in zip(DOCUMENTS, together, strict=True):
        torch.testing.assert_close(encoder(batch([document]))[0], row)


@pytest.mark.parametrize("make", ENCODERS)
def test_padded_tokens_give_the_same(make: Callable[..., Any]) -> None:
    encoder = make(20, 6).eval()
    inputs = batch(DOCUMENTS)
    assert torch.equal(encoder(padded(inputs)), encoder(inputs))


@pytest.mark.parametrize("make", ENCODERS)
def test_all_parameters_learn(make: Callable[..., Any]) -> None:
    encoder = make(20, 6)
    encoder(batch(DOCUMENTS)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("make", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_are_of_the_type_of_the_parameters(make: Callable[..., Any], dtype: torch.dtype) -> None:
    """As layers behind an encoder need them, in precisions such as ``bf16-true``."""
    encoder = make(20, 6, dropout=0)
    inputs = batch(DOCUMENTS)
    expected = encoder(inputs)
    found = encoder.to(dtype)(inputs)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("make", ENCODERS)
def test_pretrained_vectors_and_bad_sizes(make: Callable[..., Any]) -> None:
    encoder = make(5, 2)
    encoder.load_vectors(torch.tensor([[torch.nan, torch.nan], [1.0, 2.0], [3.0, 7.0]]))
    assert encoder.embedding.weight[1:3].tolist() == [[1, 2], [3, 7]]
    with pytest.raises(InputError, match="do not fit the encoder's embedding table"):
        encoder.load_vectors(torch.zeros(5, 3))
    with pytest.raises(InputError, match="none of the 4 words has a vector"):
        encoder.load_vectors(torch.full((4, 2), torch.nan))
    with pytest.raises(InputError, match="sizes must be at least 1, found vocab_size=5, embedding_dim=0"):
        make(5, 0)
    with pytest.raises(InputError, match="dropout must be at least 0 and less than 1, found 1"):
        make(5, 2, dropout=1)


@pytest.mark.parametrize("make", ENCODERS)
def test_frozen_word_vectors_stay(make: Callable[..., Any]) -> None:
    encoder = make(20, 6, freeze_embedding=True)
    encoder.load_vectors(torch.ones(3, 6) * torch.tensor([[1.0], [2.0], [3.0]]))
    before = encoder.embedding.weight.clone()
    encoder(batch(DOCUMENTS)).square().sum().backward()
    torch.optim.Adam(encoder.parameters(), weight_decay=0.1).step()
    assert torch.equal(encoder.embedding.weight, before)
    others = [p for p in encoder.parameters() if p is not encoder.embedding.weight]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in others)


@pytest.mark.parametrize("make", ENCODERS)
def test_it_trains_in_a_network(
    make: Callable[..., Any], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    torch.manual_seed(0)
    model = NCMTL(make(400, 8), num_tasks=4, cluster_features=(8,), num_clusters=(2,))
    trainer = make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(warmup_epochs=1)])
    trainer.fit(model, datamodule=datamodule)
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_lstm_equals_one_that_is_not_packed() -> None:
    encoder = LSTM(20, 6, hidden_size=3).eval()
    for document, row in zip(DOCUMENTS, encoder(batch(DOCUMENTS)), strict=True):
        _, (hidden, _) = encoder.lstm(encoder.embedding(words(document)).unsqueeze(0))
        torch.testing.assert_close(row, hidden.flatten())


@pytest.mark.parametrize("make", [LSTM, TextCNN])
def test_long_documents_are_read_from_their_start(make: Callable[..., Any]) -> None:
    encoder = make(20, 6, max_words=4).eval()
    torch.testing.assert_close(encoder(batch([[[9, 3, 3, 3], [4, 5]]])), encoder(batch([[[9, 3], [3, 3], [8, 8, 8]]])))


def test_text_cnn_equals_a_loop_over_windows() -> None:
    encoder = TextCNN(20, 6, num_filters=5, widths=(2, 3)).eval()
    for document, row in zip(DOCUMENTS, encoder(batch(DOCUMENTS)), strict=True):
        expected = []
        for filters, width in zip(encoder.filters, (2, 3), strict=True):
            x = encoder.embedding(words(document))
            x = torch.cat([x, x.new_zeros(max(0, width - len(x)), 6)])
            windows = [x[start : start + width].T for start in range(len(x) - width + 1)]
            every = torch.stack([(filters.weight * window).sum((1, 2)) + filters.bias for window in windows])
            expected.append(every.amax(0).relu())
        torch.testing.assert_close(row, torch.cat(expected))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngram_equals_a_loop_over_runs(n: int) -> None:
    encoder = NGram(20, 6, n=n, num_buckets=7).eval()
    nn.init.normal_(encoder.runs.weight)
    for document, row in zip(DOCUMENTS, encoder(batch(DOCUMENTS)), strict=True):
        ids = words(document).tolist()
        vectors = [encoder.embedding.weight[word] for word in set(ids)]
        buckets = set()
        for size in range(2, n + 1):
            of_size = set()
            for start in range(len(ids) - size + 1):
                key = torch.tensor(ids[start])
                for word in ids[start + 1 : start + size]:
                    key = hash_run(key, torch.tensor(word))
                of_size.add(int(key % 7))
            buckets |= {(size, bucket) for bucket in of_size}
        vectors += [encoder.runs.weight[bucket] for _, bucket in buckets]
        torch.testing.assert_close(row, torch.stack(vectors).sum(0) / len(vectors) ** 0.5)


@pytest.mark.parametrize("n", [1, 2])
def test_ngram_trains_all_that_it_uses(n: int) -> None:
    """Which DDP asks for: with words alone, the vectors of runs are no part of the training."""
    encoder = NGram(20, 6, n=n, num_buckets=7)
    encoder(batch(DOCUMENTS)).sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.runs.weight.requires_grad == (n == 2)


@pytest.mark.parametrize("buckets", [1000, 4096, 200_000])
def test_runs_spread_over_all_buckets(buckets: int) -> None:
    """Pairs of neighbouring ids, those of frequent words, fill the buckets like balls that are thrown at random."""
    side = int(buckets**0.5)
    first, second = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    found = (hash_run(first.flatten(), second.flatten()) % buckets).unique()
    share = side * side / buckets
    assert len(found) / buckets == pytest.approx(1 - torch.tensor(-share).exp().item(), abs=0.03)
    assert int(found.min()) >= 0


def test_the_order_of_words_in_a_run_counts() -> None:
    one, two = torch.tensor([3]), torch.tensor([4])
    assert hash_run(one, two) != hash_run(two, one)


def test_word_dropout_leaves_out_words_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    encoder = NGram(20, 6, n=2, num_buckets=7, dropout=0.0, word_dropout=0.75)
    nn.init.normal_(encoder.runs.weight)
    inputs = batch(DOCUMENTS)
    whole = encoder.eval()(inputs)
    drawn = torch.stack([encoder.train()(inputs) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), whole, atol=0.06, rtol=0)
    # The one-word document is there in a quarter of the cases, four times as strong.
    present = drawn[:, 3].ne(0).any(1)
    assert present.double().mean() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(drawn[present, 3], 4 * whole[3].expand(int(present.sum()), -1))


@pytest.mark.parametrize("share", [-0.1, 1])
def test_word_dropout_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=f"word_dropout must be at least 0 and less than 1, found {share}"):
        NGram(20, 6, word_dropout=share)


def test_concat_puts_encoders_side_by_side() -> None:
    parts = [NGram(20, 6), TextCNN(20, 5, num_filters=2, widths=(2,))]
    encoder = Concat(parts, vocab_size=20).eval()
    inputs = batch(DOCUMENTS)
    assert encoder.out_features == 8
    torch.testing.assert_close(encoder(inputs), torch.cat([part(inputs) for part in parts], 1))
    with pytest.raises(InputError, match="the NGram has room for 20 words, fewer than the 30 of data.text.vocab_size"):
        Concat(parts, vocab_size=30)
    with pytest.raises(InputError, match="one or more encoders, found none"):
        Concat([])


@pytest.mark.parametrize("has_16_bits", [True, False])
def test_an_lstm_on_a_cpu_without_16_bits_computes_in_32(has_16_bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Types(nn.Module):
        def forward(self, packed: PackedSequence) -> tuple[torch.dtype, bool]:
            return packed.data.dtype, torch.is_autocast_enabled("cpu")

    monkeypatch.setattr(_packing, "_HAS_16_BITS", has_16_bits)
    packed = _packing.Packing.of(torch.tensor([2, 1])).pack(torch.zeros(3, 4, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        found = _packing.apply_lstm(Types(), packed)
    assert found == ((torch.bfloat16, True) if has_16_bits else (torch.float32, False))


@pytest.mark.parametrize(("dtype", "has_16_bits"), [(torch.float16, True), (torch.bfloat16, False)])
def test_an_lstm_on_cuda_has_no_bfloat16(dtype: torch.dtype, has_16_bits: bool) -> None:
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", dtype)  # what torch.autocast("cuda", dtype) does where there is a GPU
    try:
        assert _packing._has_16_bits("cuda") == has_16_bits
    finally:
        torch.set_autocast_dtype("cuda", before)


def test_a_gpu_keeps_what_stands_twice_but_does_not_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """NGram's way for a GPU, on a CPU: the same vectors and gradients."""
    results = []
    for on_gpu in (False, True):
        torch.manual_seed(0)
        encoder = NGram(20, 6, n=3, num_buckets=7)
        nn.init.normal_(encoder.runs.weight)
        encoder.eval()
        if on_gpu:
            monkeypatch.setattr(ngram, "_drops", lambda values: False)
        out = encoder(batch(DOCUMENTS))
        out.square().sum().backward()
        results.append([out, *[p.grad for p in encoder.parameters()]])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
