"""The two exceptions that the command line prints without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in an experiment, a command line or an input file.

    The message names the place, the value received, what is allowed and the mend. The command
    line prints it as it stands, without a traceback, and exits with code 2. It is no `ValueError`,
    so an `except` for damaged content does not catch it.

    Attributes:
        setting: the setting to change, such as vis.optimiser.steps; None where it is none.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class StorageError(Exception):
    """Storage cannot be reached, read or written: nothing is known of what it holds.

    It is neither a `UserError` nor a `ValueError` nor an `OSError`: whoever reads damaged or
    missing content as "not there" must not read an outage so. The command line prints it without
    a traceback and exits with code 2: what is done is kept, and the same command goes on.
    """


Reported = (UserError, StorageError)


def reported_error(error: BaseException | None) -> UserError | StorageError | None:
    """The `UserError` or `StorageError` that an exception is, or was caused by, if any.

    Ray raises a worker's exception as one of a class of its own, with the worker's traceback in
    its message and the exception itself as `cause`.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        cause = getattr(error, "cause", None)
        if isinstance(error, Reported) and not isinstance(cause, Reported):
            return error
        seen.add(id(error))
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None
