"""The one exception that means "the input is wrong", as opposed to a bug."""


class InputError(ValueError):
    """Settings or data that cannot be used; found before training starts wherever that is possible.

    The message is one line: what was found, and the way out. The command line prints it without a traceback.
    """


def find_message(error: BaseException) -> str | None:
    """One line for the user, if an error is about what the user gave; ``None`` if it is a bug."""
    cause: BaseException | None = error
    # Lightning's exception by its name, as there are two packages of Lightning
    while not (cause is None or isinstance(cause, InputError) or type(cause).__name__ == "MisconfigurationException"):
        cause = cause.__cause__  # jsonargparse wraps what constructors raise
    return None if cause is None else " ".join(str(cause).split())
