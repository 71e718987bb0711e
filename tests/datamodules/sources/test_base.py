from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from lightning_ncmtl.datamodules.sources import Synthetic
from lightning_ncmtl.datamodules.sources.base import Label, fingerprint_files, plain_label
from lightning_ncmtl.errors import InputError


def test_sources_are_of_texts_unless_they_say_more() -> None:
    source = Synthetic(num_domains=2, num_groups=1)
    assert source.features() is None
    with pytest.raises(InputError, match="Synthetic cannot read new rows to predict, found 'new.csv'"):
        source.read_new(Path("new.csv"), ["age"], ["a"])


def test_fingerprints_follow_files_and_settings(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("one")
    link = tmp_path / "books.csv"
    link.symlink_to(tmp_path / "blob")
    seen = {fingerprint_files({"a": 1}, [link])}
    assert fingerprint_files({"a": 1}, [link]) in seen
    seen.add(fingerprint_files({"a": 2}, [link]))
    renamed = link.rename(tmp_path / "beer.csv")
    seen.add(fingerprint_files({"a": 1}, [renamed]))
    (tmp_path / "blob").write_text("two")
    seen.add(fingerprint_files({"a": 1}, [renamed]))
    (tmp_path / "blob").unlink()
    seen.add(fingerprint_files({"a": 1}, [renamed]))  # a link to nowhere
    assert len(seen) == 5
    assert fingerprint_files({}, [Path("\udcff.csv")])  # a name that is not UTF-8


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("3", 3),
        (" -1 ", -1),
        ("+1", 1),
        ("1e3", 1000),
        ("1.0", 1),
        ("-2.", -2),
        (1.0, 1),
        (Decimal("1.00"), 1),
        ("1E+05", 100_000),
        ("0.50", "0.5"),
        (".5", "0.5"),
        (0.5, "0.5"),
        ("1.10.0", "1.10.0"),
        ("9" * 19, "9" * 19),
        ("1e400", "1e400"),
        ("1e-400", "0.0"),
        ("0x10", "0x10"),
        (np.int64(2), 2),
        (True, 1),
        (" good ", "good"),
    ],
)
def test_numbers_of_the_same_value_are_one_label(given: object, label: Label) -> None:
    assert plain_label(given) == label
    assert type(plain_label(given)) is type(label)
