"""What the command line prints without a traceback: two exceptions, and that a disk is full."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator


class _SettingError(Exception):
    """An error that a setting or an option may mend: `setting`, such as vis.heads, or None."""

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class UserError(_SettingError):
    """A mistake in an experiment, a command line or an input file.

    The message names the place, the value received, what is allowed and the mend. The command
    line prints it as it stands, without a traceback, and exits with code 2. It is no `ValueError`,
    so an `except` for damaged content does not catch it.

    Attributes:
        setting: the setting or option to change, such as vis.optimiser.steps or --out; None where
            it is none.
    """


class StorageError(_SettingError):
    """Storage cannot be reached, read or written: nothing is known of what it holds.

    It is neither a `UserError` nor a `ValueError` nor an `OSError`: whoever reads damaged or
    missing content as "not there" must not read an outage so. The command line prints it without
    a traceback and exits with code 2: what is done is kept, and the same command goes on.

    Attributes:
        setting: the setting that names the storage; None where it is none.
    """


Reported = (UserError, StorageError)


def reported_error(error: BaseException | None) -> UserError | StorageError | None:
    """The `UserError` or `StorageError` that an exception is, or was caused by, if any.

    Ray raises a worker's exception as one of a class of its own, with the worker's traceback in
    its message and the exception itself as `cause`.
    """
    for one in _chain(error):
        cause = getattr(one, "cause", None)
        if isinstance(one, Reported) and not isinstance(cause, Reported):
            return one
    return None


def hidden_outage(error: FileNotFoundError) -> OSError | None:
    """What a web server answered where fsspec says that there is no such file; None: it is not.

    fsspec raises a `FileNotFoundError` whatever fails (a refusal, an overload, no answer), with the
    reason as its cause.
    """
    cause = error.__cause__
    status = getattr(cause, "status", None)
    of_the_web = type(cause).__module__.partition(".")[0] == "aiohttp"
    if status in (404, 410) or not (of_the_web or isinstance(cause, TimeoutError)):
        return None
    kind = PermissionError if status in (401, 403) else OSError
    return kind(str(cause) or type(cause).__name__)


_AWAY = (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EAGAIN,
)  # fmt: skip


def refuse_outage(error: BaseException, path: object) -> None:
    """Raise a `StorageError` if a file is not to blame for an error in reading it.

    A disk or a mount that fails, or a process that has too many files open, says nothing of what
    the file holds. Libraries' own errors carry numbers that mean something else.
    """
    own = isinstance(error, OSError) and type(error).__module__ == "builtins"
    if own and error.errno in _AWAY:  # type: ignore[attr-defined]
        raise StorageError(
            f"{path} cannot be read: {os.strerror(error.errno)}; "  # type: ignore[attr-defined]
            "run the same command again when it can"
        ) from error


_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full|Local disk is full"
    # NumPy and PyTorch say of a write that was cut short no more than this.
    r"|\d+ requested and \d+ written|inline_container\.cc.*unexpected pos"
)


def full_disk(error: BaseException | None) -> str | None:
    """The line that says that a disk is full, of an exception or of what caused it, if any.

    Libraries raise many types for it, and a worker's error arrives as text.
    """
    for one in _chain(error):
        for line in str(one).splitlines():
            if _FULL.search(line):
                return line.strip()
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it; Ray names the cause `cause`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__
