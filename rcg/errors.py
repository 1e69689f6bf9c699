"""What a person can do something about."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do, in one line.

    Commands print it to stderr without a traceback and exit with status 2; library callers catch it
    as a `ValueError`.
    """


class MismatchWarning(UserWarning):
    """A network was trained on another one than the one it is used with: it runs, maybe to little use."""
