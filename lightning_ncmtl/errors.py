"""The one exception that means "the input is wrong", as opposed to a bug."""

from collections.abc import Iterable


class InputError(ValueError):
    """Settings or data that cannot be used; found before training starts wherever that is possible.

    The message is one line: what was found, and the way out. The command line prints it without a traceback.
    """


_left_out: list[str] = []  # of this process


def remember_left_out(lines: Iterable[str]) -> None:
    """Keep what was left out and why, for :func:`find_message`: what is an error later may come from that."""
    _left_out.extend(line for line in lines if line not in _left_out)


def forget_left_out() -> None:
    """Forget it: another command begins."""
    _left_out.clear()


def find_message(error: BaseException) -> str | None:
    """One line for the user, if an error is about what the user gave; ``None`` if it is a bug.

    Where a whole file or domain was left out before, the line tells the first, which may be the reason.
    """
    cause: BaseException | None = error
    # Lightning's exception by its name, as there are two packages of Lightning
    while not (cause is None or isinstance(cause, InputError) or type(cause).__name__ == "MisconfigurationException"):
        cause = cause.__cause__  # jsonargparse wraps what constructors raise
    if cause is None:
        return None
    message = " ".join(str(cause).split())
    hint = next(iter(_left_out), "")
    return message if hint in message else f"{message}; left out before: {hint}"
