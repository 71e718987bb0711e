"""The two levels against plain LSTMs, sentence by sentence, and against the form for ``torch.export``."""

import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError


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


def random_batch(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    documents = torch.randint(1, 7, (5,), generator=draw)
    sentences = torch.randint(1, 9, (int(documents.sum()),), generator=draw)
    tokens = torch.randint(1, 20, (int(sentences.sum()),), generator=draw)
    return {"tokens": tokens, "sentence_lengths": sentences, "document_lengths": documents}


def gradients(encoder: HAN, out: Tensor) -> list[Tensor]:
    weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    return list(torch.autograd.grad((out * weight).sum(), list(encoder.parameters())))


DOCUMENTS = [[[3, 4, 5], [6]], [[7, 8]], [[9, 3, 3, 3], [4, 5], [6, 7, 8]]]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_document_does_not_depend_on_its_batch(bidirectional: bool) -> None:
    encoder = HAN(20, 6, 5, bidirectional=bidirectional).eval()
    together = encoder(batch(DOCUMENTS))
    assert together.shape == (3, encoder.out_features) == (3, 10 if bidirectional else 5)
    for document, row in zip(DOCUMENTS, together, strict=True):
        torch.testing.assert_close(encoder(batch([document]))[0], row)


def plain(encoder: HAN, inputs: dict[str, Tensor]) -> Tensor:
    """The oracle: plain LSTMs and the attention of Yang et al., equations 5 to 10, sentence by sentence."""

    def attend(level: nn.Module, x: Tensor) -> Tensor:
        for lstm in level.layers:  # type: ignore[union-attr]
            x, _ = lstm(x)
        u = torch.tanh(x @ level.attention.weight.T + level.attention.bias)  # type: ignore[union-attr, operator]
        weight = (u @ level.context.weight[0]).exp()  # type: ignore[union-attr, index]
        return (weight / weight.sum()) @ x

    words = encoder.embedding(inputs["tokens"]).split(inputs["sentence_lengths"].tolist())
    sentences = torch.stack([attend(encoder.words, x) for x in words]).split(inputs["document_lengths"].tolist())
    return torch.stack([attend(encoder.sentences, x) for x in sentences])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("bidirectional", "num_layers"), [(True, 1), (True, 2), (False, 2)])
def test_equals_plain_lstms_and_the_form_for_export(seed: int, bidirectional: bool, num_layers: int) -> None:
    encoder = HAN(20, 6, 5, num_layers, bidirectional).double().eval()
    inputs = random_batch(seed)
    out = encoder(inputs)
    found = gradients(encoder, out)
    for other in (plain(encoder, inputs), encoder._padded(padded(inputs)), encoder(padded(inputs))):
        torch.testing.assert_close(out, other)
        torch.testing.assert_close(found, gradients(encoder, other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_torch_export_needs_padded_tokens() -> None:
    encoder, inputs = HAN(20, 6, 5).eval(), batch(DOCUMENTS)
    program = torch.export.export(encoder, (padded(inputs),), strict=False)
    torch.testing.assert_close(program.module()(padded(inputs)), encoder(inputs))
    with pytest.raises(InputError, match=r"torch.export needs tokens \[S, L\], a sentence a row"):
        torch.export.export(encoder, (inputs,), strict=False)


def test_the_order_of_words_and_sentences_matters() -> None:
    encoder = HAN(20, 6, 5).eval()
    out = encoder(batch([[[3, 4], [5]], [[4, 3], [5]], [[5], [3, 4]]]))
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[0], out[2])


def test_pretrained_vectors() -> None:
    encoder = HAN(5, 2, 3)
    before = encoder.embedding.weight.clone()
    vectors = torch.tensor([[torch.nan, torch.nan], [1.0, 2.0], [3.0, 7.0]])
    encoder.load_vectors(vectors)
    torch.testing.assert_close(encoder.embedding.weight[1:3], vectors[1:])
    torch.testing.assert_close(encoder.embedding.weight[3:], before[3:] * vectors[1:].std())
    assert encoder.embedding.weight[0].eq(0).all()


@pytest.mark.parametrize("shape", [(3, 4), (6, 2)])
def test_vectors_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"do not fit the encoder's embedding table \[5, 2\]: set the encoder's"):
        HAN(5, 2, 3).load_vectors(torch.zeros(shape))
