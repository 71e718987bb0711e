import pytest
import torch
from tokenizers import Tokenizer

from lightning_ncmtl.datamodules.text import collate, encode, train_tokenizer

TEXTS = ["the camera is good . i love it !", "bad bad camera .", "the the the"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=100, min_frequency=1)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text).tokens


def test_plain_and_tokenised_text_give_the_same_words(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "The camera is GOOD. I love it!") == words(tokenizer, TEXTS[0]) == TEXTS[0].split()


def test_apostrophes_hyphens_and_inner_dots_stay_inside_words() -> None:
    tokenizer = train_tokenizer(["don't well-made ph.d. 's 1.5"], 100, 1)
    assert words(tokenizer, "Don't well-made 's 1.5!")[:4] == ["don't", "well-made", "'s", "1.5"]


def test_padding_is_0_unknown_is_1_and_rare_words_are_unknown() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=100, min_frequency=2)
    assert tokenizer.token_to_id("[PAD]") == 0
    assert set(tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "the", "camera", ".", "bad"}
    assert tokenizer.encode("good camera").ids == [1, tokenizer.token_to_id("camera")]


def test_the_vocabulary_is_bounded() -> None:
    assert train_tokenizer(TEXTS, vocab_size=4, min_frequency=1).get_vocab_size() == 4


def test_documents_become_sentences(tokenizer: Tokenizer) -> None:
    columns = encode(["the camera is good . i love it ! the", "bad"], tokenizer, max_words=10, max_sentences=10)
    assert columns["sentence_lengths"] == [[5, 4, 1], [1]]
    assert columns["length"] == [10, 1]
    assert columns["truncated"] == [False, False]
    assert columns["tokens"][0] == tokenizer.encode("the camera is good . i love it ! the").ids


def test_long_sentences_are_cut_and_long_documents_truncated(tokenizer: Tokenizer) -> None:
    columns = encode(["the " * 7, "the . " * 3, "the . " * 4], tokenizer, max_words=3, max_sentences=3)
    assert columns["sentence_lengths"] == [[3, 3, 1], [2, 2, 2], [2, 2, 2]]
    assert columns["length"] == [7, 6, 6]
    assert columns["truncated"] == [False, False, True]


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_documents_without_words_become_one_unknown_word(tokenizer: Tokenizer, text: str) -> None:
    columns = encode([text], tokenizer, max_words=5, max_sentences=5)
    assert (columns["tokens"], columns["sentence_lengths"], columns["empty"]) == ([[1]], [[1]], [True])


def test_collate_pads() -> None:
    rows = {
        "tokens": [[5, 6, 7], [8]],
        "sentence_lengths": [[1, 2], [1]],
        "task_id": [2, 0],
        "label": [1, 0],
        "index": [10, 11],
    }
    batch = collate(rows)
    assert batch["inputs"]["tokens"].tolist() == [[5, 0], [6, 7], [8, 0]]
    assert batch["inputs"]["sentence_lengths"].tolist() == [1, 2, 1]
    assert batch["inputs"]["document_lengths"].tolist() == [2, 1]
    assert batch["task_ids"].tolist() == [2, 0]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["index"].tolist() == [10, 11]
    assert batch["index"].dtype == torch.int64


def test_collate_of_nothing_is_an_empty_batch() -> None:
    batch = collate({key: [] for key in ("tokens", "sentence_lengths", "task_id", "label", "index")})
    assert batch["labels"].shape == (0,)
    assert batch["inputs"]["tokens"].shape == (0, 0)
