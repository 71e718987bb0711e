"""Whatever bytes are in its files, a source reads documents and problems, or refuses them in one line."""

import contextlib
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io
from table_files import WRITERS, compress

from lightning_ncmtl.datamodules.sources import FDUMTL, Document, FeatureTables, MultiDomainSentiment, Source, Tables
from lightning_ncmtl.errors import InputError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))  # to search for longer, elsewhere each time
ROWS = [
    {"text": f'film {number}, "fine"\n\u20ac', "label": number % 2, "of": f"d{number % 3}", "x": number / 7, "y": 2}
    for number in range(12)
]
TAGS = "".join(
    f"<review>\n<title>\ntitle {number}\n</title>\n<review_text>\na & b\n</review_text>\n</review>\n"
    for number in range(5)
)
TERMS = "".join(
    f"film:{number} <num>_fine:1 a:b:2 #label#:{sign}\n" for number, sign in enumerate(["positive", "2.0"] * 4)
)


Case = tuple[str, Callable[[Path], list[Source]], Callable[[Path], object]]  # name of a file, its sources, its maker


def table(kind: str) -> Case:
    def sources(file: Path) -> list[Source]:
        name = str(file)
        return [
            Tables(name, unlabel=name),
            Tables(name, domain="of"),
            Tables(name, text=["text", "of"], label={"a": "label", "b": "of"}),
            FeatureTables(name, features=["x", "y"], task="of", id="text"),
            FeatureTables(name, features="x", label=["lab*", "y"]),
        ]

    def make(file: Path) -> None:
        plain = file.with_name(file.name.removesuffix(".gz"))
        WRITERS[kind.removesuffix(".gz")](plain, ROWS)
        if kind.endswith(".gz"):
            compress(plain)

    return f"a.{kind}", sources, make


def arrays(kind: str) -> Case:
    values = {"x": np.arange(24.0).reshape(12, 2), "y": np.arange(12) % 2, "of": np.arange(12) // 4}

    def sources(file: Path) -> list[Source]:
        name = str(file)
        return [FeatureTables(name, label="y", task="of"), FeatureTables(name, features="x*", label=["y", "of"])]

    def make(file: Path) -> None:
        if kind == "npz":
            np.savez_compressed(file, **values)  # type: ignore[arg-type]
        else:
            io.savemat(file, values, do_compression=True, oned_as="column")

    return f"a.{kind}", sources, make


def text(name: str, content: str, sources: Callable[[Path], list[Source]]) -> Case:
    data = content.encode()
    return name, sources, lambda file: file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def fdu_mtl(file: Path) -> list[Source]:
    return [FDUMTL(str(file.parent))]


def sentiment(file: Path) -> list[Source]:
    return [MultiDomainSentiment(str(file.parent.parent))]


CASES: dict[str, Case] = {
    "fdu_mtl": text("a.task.train", "1\tgood\n0\tbad \u20ac\n" * 5, fdu_mtl),
    "tags": text("positive.review", TAGS, sentiment),
    "tags.gz": text("positive.review.gz", TAGS, sentiment),
    "terms": text("positive.review", TERMS, sentiment),
    "terms, unlabelled": text("unlabeled.review.gz", TERMS, sentiment),
    **{kind: arrays(kind) for kind in ("npz", "mat")},
    **{kind: table(kind) for kind in ("csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz", "parquet")},
}


def check(source: Source) -> None:
    domains = source.domains()
    assert all(domains)
    for split in source.splits():
        for item in [*source.read(split), *source.read(split, domains)]:
            if isinstance(item, Document):
                assert all(type(label) in (int, str, type(None)) for label in item.labels.values())
                message = item.where
            else:
                message = str(item)
            assert "\n" not in message
            assert repr(item).encode()  # no half characters
            assert str(item[0]).encode() is not None
    source.fingerprint()


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(changed)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "end", "repeat"]))
        length = draw(st.integers(1, 20))
        if kind == "flip" and start < len(changed):
            changed[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[start : start + length]
        elif kind == "insert":
            changed[start:start] = draw(
                st.binary(max_size=20) | st.sampled_from([b'"', b"\n", b"\r", b"\0", b":9999 "])
            )
        elif kind == "end":
            del changed[start:]
        else:
            changed[start:start] = changed[start : start + length] * 3
    return bytes(changed)


INSIDE = [(case, True) for case, (name, _, _) in CASES.items() if name.endswith(".gz")]  # what a whole .gz holds


@pytest.mark.parametrize(("case", "inside"), [*((case, False) for case in CASES), *INSIDE])
def test_damaged_files_are_read_as_far_as_they_go(
    tmp_path_factory: pytest.TempPathFactory, case: str, inside: bool
) -> None:
    name, sources, make = CASES[case]
    file = tmp_path_factory.mktemp("fuzz") / "domain" / name
    file.parent.mkdir()
    make(file)
    for source in sources(file):
        check(source)
    valid = gzip.decompress(file.read_bytes()) if inside else file.read_bytes()

    @settings(max_examples=EXAMPLES or 50, deadline=10_000, derandomize=not EXAMPLES, database=None)
    @given(mutations(valid) | st.binary(max_size=200))
    def damage(data: bytes) -> None:
        file.write_bytes(gzip.compress(data) if inside else data)
        for source in sources(file):
            with contextlib.suppress(InputError):
                check(source)

    damage()
