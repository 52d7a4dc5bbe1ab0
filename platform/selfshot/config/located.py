"""The line of a setting, for mistakes that are found after the file was read and understood."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selfshot.config.document import Document, Location
from selfshot.config.load import read_experiment, read_text
from selfshot.errors import Reported, StorageError, UserError, reported_error

_SETTING = re.compile(r"\s*([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*): ")
_PLACED = re.compile(r"(, line \d+|; --set .*)$")


@contextmanager
def located(path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Add to a mistake that a block finds where its setting was written.

    A missing file or a GPU that no machine has is found long after the YAML was read. A message
    that starts with a setting's name is told with the line of the file, or the `--set`, that gave
    it; other messages are left as they are.

    Args:
        path: the experiment's file.
        overrides: `--set` values.
    """
    try:
        yield
    except Reported as error:
        inner = reported_error(error) or error
        kind = StorageError if isinstance(inner, StorageError) else UserError
        raise kind(with_places(str(inner), path, overrides)) from error


def with_places(message: str, path: Path, overrides: Sequence[str] = ()) -> str:
    """A message with the place of each setting that a line of it starts with."""
    try:
        document = read_experiment(read_text(Path(path)), str(path), overrides)
    except UserError:
        return message  # It is about the file itself, and says so.
    return "\n".join(_with_place(line, document) for line in message.splitlines())


def _with_place(line: str, document: Document) -> str:
    match = _SETTING.match(line)
    if match is None or _PLACED.search(line):
        return line
    location: Location = tuple(match[1].split("."))
    place = document.places.get(location)
    return line if place is None else f"{line}; {place}"
