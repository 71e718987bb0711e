import re

import pytest

from lightning_ncmtl.datamodules.sources.columns import find_column, match_columns


@pytest.mark.parametrize(
    ("columns", "found", "names"),
    [
        (["text", "label"], ["text ", "Label", "x "], ["text", "label", "x "]),
        (["text", "Text"], ["Text", "text"], ["Text", "text"]),
        (["TEXT"], [" straße", "text"], [" straße", "TEXT"]),
        (["STRASSE"], ["straße"], ["STRASSE"]),
        (["text"], ["TEXT", "text"], ["TEXT", "text"]),  # the same is meant first
        ([], ["a", "a"], ["a", "a"]),
    ],
)
def test_case_and_outer_spaces_make_no_difference(columns: list[str], found: list[str], names: list[str]) -> None:
    assert match_columns(columns, found) == names
    if len(columns) == 1:
        assert find_column(columns[0], found) == found[names.index(columns[0])]


@pytest.mark.parametrize(
    ("columns", "found", "message"),
    [
        (["text"], ["txt", "label"], "no column 'text' among 'txt', 'label' (is 'txt' meant?)"),
        (["label"], ["text", "Labels "], "no column 'label' among 'text', 'Labels ' (is 'Labels ' meant?)"),
        (["label"], ["text", "x"], "no column 'label' among 'text', 'x'"),
        (["label"], [], "no column 'label' among none"),
        (["label"], ["label", "label"], "2 columns 'label' among 'label', 'label'"),
        (["label"], ["Label", "label "], "2 columns 'label' among 'Label', 'label ' (is 'Label' meant?)"),
        (["text", "Text"], ["text"], "no column 'Text' among 'text' (is 'text' meant?)"),
        (["TEXT", "Text"], ["text"], "no column 'Text' among 'text' (is 'text' meant?)"),
    ],
)
def test_what_is_missing_or_there_twice(columns: list[str], found: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        match_columns(columns, found)


def test_optional_columns_may_be_missing_but_not_be_there_twice() -> None:
    assert match_columns(["a", "b"], ["A"], optional=["b"]) == ["a"]
    with pytest.raises(ValueError, match="2 columns 'b'"):
        match_columns(["b"], ["B", "B "], optional=["b"])
