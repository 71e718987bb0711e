from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_tokenizer
from tokenizers import Tokenizer

from lightning_ncmtl.datamodules.cache import Cache
from lightning_ncmtl.datamodules.text import Encoder, encode_table, load_tokenizer, train_tokenizer
from lightning_ncmtl.errors import InputError

TEXTS = ["the camera is good . i love it !", "bad bad camera .", "the the the"]


def learn(texts: list[str], vocab_size: int = 100, min_frequency: int = 1, kind: str = "words") -> Tokenizer:
    return train_tokenizer(texts, kind, vocab_size, min_frequency)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return learn(TEXTS)


@pytest.fixture
def special(tmp_path: Path) -> Tokenizer:
    """A ready tokenizer that puts words before and behind each text."""
    save_tokenizer(tmp_path)
    return load_tokenizer(str(tmp_path))


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text).tokens


def encode(encoder: Encoder, *texts: str) -> dict[str, list[Any]]:
    return encoder(texts).to_pydict()


def test_plain_and_tokenised_text_give_the_same_words(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "The camera is GOOD. I love it!") == words(tokenizer, TEXTS[0]) == TEXTS[0].split()


def test_apostrophes_hyphens_and_inner_dots_stay_inside_words() -> None:
    tokenizer = learn(["don't well-made ph.d. 's 1.5"])
    assert words(tokenizer, "Don't well-made 's 1.5!")[:4] == ["don't", "well-made", "'s", "1.5"]


def test_padding_is_0_unknown_is_1_and_rare_words_are_unknown() -> None:
    tokenizer = learn(TEXTS, min_frequency=2)
    assert tokenizer.token_to_id("[PAD]") == 0
    assert set(tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "the", "camera", ".", "bad"}
    assert tokenizer.encode("good camera").ids == [1, tokenizer.token_to_id("camera")]


def test_the_vocabulary_is_bounded() -> None:
    assert learn(TEXTS, vocab_size=4).get_vocab_size() == 4


def test_parts_of_words_know_every_text() -> None:
    assert learn(TEXTS * 3, vocab_size=265, min_frequency=2, kind="bpe").get_vocab_size() == 265
    tokenizer = learn(TEXTS * 3, vocab_size=1000, min_frequency=2, kind="bpe")
    assert tokenizer.token_to_id("[PAD]") == 0
    assert "Ġcamera" in words(tokenizer, "Camera")
    text = "camera ä漢 unseen ."
    assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text
    assert 1 not in tokenizer.encode(text).ids
    columns = encode(Encoder(tokenizer), "bad camera. love it!")
    assert len(columns["sentence_lengths"][0]) == 2
    assert tokenizer.decode(columns["tokens"][0]).strip() == "bad camera . love it !"


def test_documents_become_sentences(tokenizer: Tokenizer) -> None:
    columns = encode(Encoder(tokenizer, max_words=10), "the camera is good . i love it ! the", "bad")
    assert columns["sentence_lengths"] == [[5, 4, 1], [1]]
    assert columns["length"] == [10, 1]
    assert columns["truncated"] == [False, False]
    assert columns["tokens"][0] == tokenizer.encode("the camera is good . i love it ! the").ids


def test_long_sentences_are_cut_and_long_documents_truncated(tokenizer: Tokenizer) -> None:
    columns = encode(Encoder(tokenizer, max_words=3, max_sentences=3), "the " * 7, "the . " * 3, "the . " * 4)
    assert columns["sentence_lengths"] == [[3, 3, 1], [2, 2, 2], [2, 2, 2]]
    assert columns["length"] == [7, 6, 6]
    assert columns["truncated"] == [False, False, True]


@pytest.mark.parametrize(
    ("keep", "kept", "sentences"), [("start", "abc", "ab"), ("end", "fgh", "gh"), ("both", "abh", "ah")]
)
def test_the_part_to_keep_can_be_chosen(keep: Any, kept: str, sentences: str) -> None:
    text = " ".join("abcdefgh")
    tokenizer = learn([text, "."])
    flat = encode(Encoder(tokenizer, max_tokens=3, keep=keep), text, "a b c")
    assert [tokenizer.id_to_token(i) for i in flat["tokens"][0]] == list(kept)
    assert flat["truncated"] == [True, False]
    cut = encode(Encoder(tokenizer, max_sentences=2, keep=keep), text.replace(" ", " . ") + " .")
    assert [tokenizer.id_to_token(i) for i in cut["tokens"][0]] == [c for word in sentences for c in (word, ".")]
    assert cut["sentence_lengths"] == [[2, 2]]


def test_special_words_stand_around_what_is_kept(special: Tokenizer) -> None:
    columns = encode(Encoder(special, max_tokens=5), "w5 . w6 w7 w8", "w5", "")
    assert columns["tokens"] == [[2, 5, 4, 6, 3], [2, 5, 3], [2, 1, 3]]
    assert columns["sentence_lengths"] == [[3, 2], [3], [3]]
    assert columns["length"] == [5, 3, 3]
    assert columns["truncated"] == [True, False, False]
    assert columns["empty"] == [False, False, True]
    assert encode(Encoder(special, max_sentences=1), "w5 . w6")["tokens"] == [[2, 5, 4, 3]]
    with pytest.raises(InputError, match="max_tokens must be more than the 2 special words, found 2"):
        Encoder(special, max_tokens=2)


def test_a_ready_tokenizer_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "tokenizer.json").write_text("{")
    for name in (str(tmp_path), "nobody/nothing"):
        with pytest.raises(InputError, match=r"data.text.tokenizer must be 'words', 'bpe', a folder .*, found '.*"):
            load_tokenizer(name)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_documents_without_words_become_one_unknown_word(tokenizer: Tokenizer, text: str) -> None:
    columns = encode(Encoder(tokenizer), text)
    assert (columns["tokens"], columns["sentence_lengths"], columns["empty"]) == ([[1]], [[1]], [True])


def test_replaced_bytes_are_seen(tokenizer: Tokenizer) -> None:
    assert encode(Encoder(tokenizer), "the \ufffd", "the")["invalid"] == [True, False]


def test_a_document_of_a_million_words(tokenizer: Tokenizer) -> None:
    columns = encode(Encoder(tokenizer, 50, 40), "the camera " * 500_000)
    assert columns["length"] == [2000]
    assert columns["truncated"] == [True]


def by_loops(ids: list[int], ends: set[int], max_words: int, max_sentences: int, max_tokens: int) -> list[list[int]]:
    sentences: list[list[int]] = [[]]
    for index in ids[:max_tokens]:
        if len(sentences[-1]) == max_words:
            sentences.append([])
        sentences[-1].append(index)
        if index in ends:
            sentences.append([])
    return [sentence for sentence in sentences if sentence][:max_sentences]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["the", "camera", ".", "!", "?!", "strange"]), max_size=12), max_size=5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 10),
)
def test_encoding_equals_loops(texts: list[list[str]], max_words: int, max_sentences: int, max_tokens: int) -> None:
    tokenizer = learn(["the camera . ! ?!"])
    ends = {tokenizer.token_to_id(word) for word in (".", "!", "?!")}
    columns = encode(Encoder(tokenizer, max_words, max_sentences, max_tokens), *map(" ".join, texts))
    for place, text in enumerate(texts):
        ids = tokenizer.encode(" ".join(text)).ids or [1]
        expected = by_loops(ids, ends, max_words, max_sentences, max_tokens)
        found = np.split(columns["tokens"][place], np.cumsum(columns["sentence_lengths"][place])[:-1])
        assert [part.tolist() for part in found] == expected
        assert columns["length"][place] == sum(map(len, expected))
        assert columns["truncated"][place] == (sum(map(len, expected)) < len(ids))


@pytest.mark.parametrize("processes", [None, 2])
def test_tables_are_encoded_once(tokenizer: Tokenizer, tmp_path: Path, processes: int | None) -> None:
    Dataset.from_dict({"text": TEXTS, "index": [0, 1, 2]}).to_parquet(str(tmp_path / "t.parquet"))
    table = Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "tables"))
    cache = Cache(str(tmp_path / "cache"))
    settings: dict[str, Any] = {"max_words": 3, "max_sentences": None, "max_tokens": None, "keep": "start"}
    first = encode_table(table, tokenizer, settings, cache, processes)

    def times() -> dict[Path, int]:
        files = [file for file in cache.folder.iterdir() if file.suffix != ".lock"]  # some filelock writes them anew
        return {file: file.stat().st_mtime_ns for file in files}

    before = times()
    again = encode_table(table, tokenizer, settings, cache, processes)
    assert times() == before
    assert first[:] == again[:]
    assert first["index"][:] == [0, 1, 2]
    assert "text" not in first.column_names
    assert first["tokens"][:] == Encoder(tokenizer, max_words=3)(TEXTS)["tokens"].to_pylist()
    other = encode_table(table, tokenizer, {**settings, "max_words": 2}, cache, processes)
    assert other["sentence_lengths"][2] == [2, 1]
