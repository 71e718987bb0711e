import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError


def batch(documents: list[list[list[int]]]) -> dict[str, Tensor]:
    sentences = [torch.tensor(sentence) for document in documents for sentence in document]
    return {
        "tokens": nn.utils.rnn.pad_sequence(sentences, batch_first=True),
        "sentence_lengths": torch.tensor([len(sentence) for sentence in sentences]),
        "document_lengths": torch.tensor([len(document) for document in documents]),
    }


DOCUMENTS = [[[3, 4, 5], [6]], [[7, 8]], [[9, 3, 3, 3], [4, 5], [6, 7, 8]]]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_document_does_not_depend_on_its_batch(bidirectional: bool) -> None:
    encoder = HAN(20, 6, 5, bidirectional=bidirectional).eval()
    together = encoder(batch(DOCUMENTS))
    assert together.shape == (3, encoder.out_features) == (3, 10 if bidirectional else 5)
    for document, row in zip(DOCUMENTS, together, strict=True):
        torch.testing.assert_close(encoder(batch([document]))[0], row)


def test_equals_unpacked_lstms_on_one_document() -> None:
    """The oracle: plain LSTMs and the attention of Yang et al., equations 5 to 10, sentence by sentence."""
    encoder = HAN(20, 6, 5, num_layers=2).eval()

    def attend(level: nn.Module, x: Tensor) -> Tensor:
        for lstm in level.layers:
            x, _ = lstm(x)
        u = torch.tanh(x @ level.attention.weight.T + level.attention.bias)
        weight = (u @ level.context.weight[0]).exp()
        return (weight / weight.sum()) @ x

    document = DOCUMENTS[2]
    sentences = torch.stack([attend(encoder.words, encoder.embedding(torch.tensor(s))) for s in document])
    torch.testing.assert_close(encoder(batch([document]))[0], attend(encoder.sentences, sentences))


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
