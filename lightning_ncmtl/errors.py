"""The one exception that means "the input is wrong", as opposed to a bug."""


class InputError(ValueError):
    """Settings or data that cannot be used; found before training starts wherever that is possible.

    The message is one line: what was found, and the way out. The command line prints it without a traceback.
    """
