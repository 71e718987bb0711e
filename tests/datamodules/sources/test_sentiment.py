import gzip
import re
from pathlib import Path

import pytest

from lightning_ncmtl.datamodules.sources import Document, MultiDomainSentiment, Problem
from lightning_ncmtl.errors import InputError

REVIEW = """<review>
<unique_id>
1234:a_"joe"
</unique_id>
<rating>
5.0
</rating>
<title>
{title}
</title>
<review_text>
{text}
</review_text>
</review>
"""


def review(title: str, text: str) -> str:
    return REVIEW.format(title=title, text=text)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    data = text.encode("latin-1")
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "books/positive.review", review("Good", " A caf\xe9, a & b < c <br />\n\x1a and more\n"))
    write(tmp_path / "books/negative.review", review("", "Bad") + "\n\n" + review("Worse", "\n\nand worse"))
    write(tmp_path / "books/unlabeled.review.gz", review("Who knows", "?"))
    write(
        tmp_path / "dvd/positive.review",
        "fine:2 _:1 fine_film:1 <num>:1 a:b:3 ::1 #label#:positive\n\n#label#:negative\n",
    )
    write(tmp_path / "dvd/negative.review.gz", "<num>_times:1 bad:1 #label#:4.0\r\nbad:1\tgood:0 #label#:-2\n")
    write(tmp_path / ".hidden/positive.review", review("", "hidden"))
    write(tmp_path / "notes/readme.txt", "no reviews")
    write(tmp_path / "stray.review", review("", "stray"))
    (tmp_path / "books/deeper").mkdir()
    write(tmp_path / "books/deeper/positive.review", review("", "deeper"))
    return tmp_path


def test_reads_both_forms(folder: Path) -> None:
    source = MultiDomainSentiment(str(folder))
    assert source.domains() == ["books", "dvd"]
    assert source.splits() == {"train", "unlabel"}
    books, dvd = folder / "books", folder / "dvd"
    expected = [
        Document("Bad", {"books": 0}, f"{books}/negative.review:1"),
        Document("Worse\nand worse", {"books": 0}, f"{books}/negative.review:17"),
        Document("Good\nA caf\ufffd, a & b < c <br />\n\x1a and more", {"books": 1}, f"{books}/positive.review:1"),
        Document("bad", {"dvd": 4}, f"{dvd}/negative.review.gz:1"),
        Document("bad", {"dvd": -2}, f"{dvd}/negative.review.gz:2"),
        Document("fine fine _ <num> a:b a:b a:b :", {"dvd": 1}, f"{dvd}/positive.review:1"),
        Document("", {"dvd": 0}, f"{dvd}/positive.review:3"),
    ]
    assert list(source.read("train")) == expected
    assert list(source.read("train", ["dvd", "books"])) == expected[3:] + expected[:3]
    unlabelled = Document("Who knows\n?", {"books": None}, f"{books}/unlabeled.review.gz:1")
    assert list(source.read("unlabel")) == [unlabelled]
    assert list(source.read("unlabel", ["dvd"])) == []
    assert source.planted_groups is None
    assert not source.multi_label


def test_labels_of_unlabelled_documents_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a/unlabeled.review", "x:1 #label#:positive\ny:1\n")
    labels = [item.labels for item in MultiDomainSentiment(str(tmp_path)).read("unlabel") if isinstance(item, Document)]
    assert labels == [{"a": None}, {"a": None}]
    assert list(MultiDomainSentiment(str(tmp_path)).read("train")) == [
        Problem(f"{tmp_path}/a/{name}.review", "the file is missing") for name in ("negative", "positive")
    ]


@pytest.mark.parametrize(
    ("damage", "line", "message"),
    [
        ("<review>\n<review_text>\nlost\n", 15, "the <review> is not closed"),
        ("<review>\n<title>\nlost\n</title>\n</review>\n", 15, "the <review> has no <review_text>"),
        (review("title", " \n"), 15, "the <review> has no <review_text>"),
        ("\nlost\n</review>\n\nlost\n", 16, "expected <review>, found 'lost'"),
    ],
)
def test_damaged_reviews_are_left_out(folder: Path, damage: str, line: int, message: str) -> None:
    first, second = review("", "first"), review("", "second")
    assert first.count("\n") == 14
    write(folder / "books/positive.review", first + damage + second)
    items = list(MultiDomainSentiment(str(folder)).read("train", ["books"]))[2:]
    assert [item.text for item in items if isinstance(item, Document)] == ["first", "second"]
    (problem,) = [item for item in items if isinstance(item, Problem)]
    assert problem.where == f"{folder}/books/positive.review:{line}"
    assert problem.what.startswith(message)
    write(folder / "books/positive.review", first + damage)
    assert isinstance(list(MultiDomainSentiment(str(folder)).read("train", ["books"]))[-1], Problem)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("good:1", "the line has no #label#"),
        ("good #label#:positive", "expected 'term:count', found 'good'"),
        ("good:one #label#:positive", "expected 'term:count', found 'good:one'"),
        ("good:-1 #label#:positive", "expected 'term:count'"),
        (":1 #label#:positive", "expected 'term:count'"),
        ("good:10001 #label#:positive", "expected 'term:count', found 'good:10001'"),
        (f"good:{'9' * 9999} #label#:positive", "expected 'term:count'"),
        ("a:10000 " * 101 + "#label#:positive", "the terms are counted more than 1,000,000 times"),
        ("good:1 #label#:perhaps", "expected #label#:positive, negative or a whole number, found 'perhaps'"),
        ("good:1 #label#:4.5", "found '4.5'"),
    ],
)
def test_damaged_lines_are_left_out(folder: Path, line: str, message: str) -> None:
    write(folder / "dvd/positive.review", f"a:1 #label#:positive\n{line}\nb:1 #label#:positive\n")
    first, problem, last = list(MultiDomainSentiment(str(folder)).read("train", ["dvd"]))[2:]
    assert isinstance(problem, Problem)
    assert problem.where == f"{folder}/dvd/positive.review:2"
    assert message in problem.what
    assert [item.text for item in (first, last) if isinstance(item, Document)] == ["a", "b"]


def test_empty_and_broken_files_are_told(folder: Path) -> None:
    for text in ("", " \n\n"):
        write(folder / "books/positive.review", text)
        problem = list(MultiDomainSentiment(str(folder)).read("train", ["books"]))[-1]
        assert str(problem) == f"{folder}/books/positive.review:1: empty: the file has no reviews"
    write(folder / "books/unlabeled.review.gz", "".join(review("", f"{n * 7919 % 10007}") for n in range(3000)))
    whole = (folder / "books/unlabeled.review.gz").read_bytes()
    for keep, message in ((len(whole) - 1000, "broken download"), (5, "broken download")):
        (folder / "books/unlabeled.review.gz").write_bytes(whole[:keep])
        items = list(MultiDomainSentiment(str(folder)).read("unlabel"))
        assert any(isinstance(item, Problem) and message in item.what for item in items)
        assert (len(items) > 100) == (keep > 5)


def test_missing_folders_domains_and_splits_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="nowhere' of reviews does not exist: set data.source.path"):
        MultiDomainSentiment("nowhere").domains()
    with pytest.raises(InputError, match=re.escape("holds no file DOMAIN/positive.review: set data.source.path")):
        MultiDomainSentiment(str(folder / "notes")).domains()
    with pytest.raises(InputError, match="unknown domain 'cars': .* has books, dvd"):
        next(MultiDomainSentiment(str(folder)).read("train", ["cars"]))
    with pytest.raises(InputError, match="have no test split"):
        next(MultiDomainSentiment(str(folder)).read("test"))
    (folder / "books/unlabeled.review.gz").unlink()
    assert MultiDomainSentiment(str(folder)).splits() == {"train"}
    with pytest.raises(InputError, match="have no unlabel split"):
        next(MultiDomainSentiment(str(folder)).read("unlabel"))


def test_the_fingerprint_changes_with_the_files(folder: Path) -> None:
    source = MultiDomainSentiment(str(folder))
    first = source.fingerprint()
    assert list(source.read("train"))
    assert MultiDomainSentiment(str(folder)).fingerprint() == first
    write(folder / "books/positive.review", review("", "other"))
    assert source.fingerprint() != first
