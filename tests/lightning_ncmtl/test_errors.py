from collections.abc import Iterator

import pytest

from lightning_ncmtl.errors import InputError, find_message, forget_left_out, remember_left_out


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    forget_left_out()
    yield
    forget_left_out()


def test_the_line_for_the_user_is_that_of_the_cause() -> None:
    error = ValueError("wrapped")
    error.__cause__ = InputError("two\n lines")
    assert find_message(error) == "two lines"
    assert find_message(ValueError("a bug")) is None


def test_it_ends_with_the_first_file_that_was_left_out() -> None:
    remember_left_out(["a.csv:1: empty", "b.csv:1: empty", "a.csv:1: empty"])
    assert find_message(InputError("too few tasks")) == "too few tasks; left out before: a.csv:1: empty"
    assert find_message(InputError("no documents; a.csv:1: empty")) == "no documents; a.csv:1: empty"
    assert find_message(ValueError("a bug")) is None
    forget_left_out()
    assert find_message(InputError("too few tasks")) == "too few tasks"
