"""The one exception that means "the input is wrong", as opposed to a bug."""

import errno
from collections.abc import Iterable


class InputError(ValueError):
    """Settings or data that cannot be used; found before training starts wherever that is possible.

    The message is one line: what was found, and the way out. The command line prints it without a traceback.
    """


# Of the machine, not of the program
_DISK = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
}  # fmt: skip

_left_out: list[str] = []  # of this process


def remember_left_out(lines: Iterable[str]) -> None:
    """Keep what was left out and why, for :func:`find_message`: what is an error later may come from that."""
    _left_out.extend(line for line in lines if line not in _left_out)


def forget_left_out() -> None:
    """Forget it: another command begins."""
    _left_out.clear()


def find_message(error: BaseException) -> str | None:
    """One line for the user, if an error is about what the user gave or about files; ``None`` if it is a bug.

    Where a whole file or domain was left out before, the line tells the first, which may be the reason.
    """
    cause: BaseException | None = error
    while (message := _message_of(cause)) is None and cause is not None:
        cause = cause.__cause__  # jsonargparse wraps what constructors raise
    if message is None:
        return None
    message = " ".join(message.split())
    hint = next(iter(_left_out), "")
    return message if hint in message else f"{message}; left out before: {hint}"


def _message_of(error: BaseException | None) -> str | None:
    # Others' exceptions by their names: there are two packages of Lightning, and safetensors need not be imported
    if isinstance(error, InputError) or type(error).__name__ == "MisconfigurationException":
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.strerror}: {str(error.filename)!r}" if error.filename else str(error.strerror)
    if type(error).__name__ == "SafetensorError" and "os error" in str(error):
        return str(error)
    return None
