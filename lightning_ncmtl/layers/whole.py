"""Settings that are whole numbers, of Python or of a library."""

from numbers import Integral


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number, at least so great; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
