"""Entries of a JSON file: read one by one, each error naming the file, the entry and the mend."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from selfshot.errors import UserError
from selfshot.files import atomic_file

_MEND = "correct or remove the entry"
_CHUNK = 2**22
TAKEN = "is already used by another entry"
_ENTRIES_AT_ONCE = 64

Watch = Callable[[str, int, int], None]
"""Receives the progress of reading a file: the step, how much of it is done, and of how much.

Steps are `bytes`, `parsing` (of unknown length: 0 of 0) and the sections of entries.
"""


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """An entry that could not be used, and why."""

    entry: str
    reason: str


class EntryError(UserError):
    """An entry of a file is wrong; without it the file can be read."""


def read_entries(
    path: Path | str,
    section: str,
    entries: list[Any],
    add: Callable[[Mapping[str, Any]], None],
    quarantined: list[Quarantined] | None,
    watch: Watch | None = None,
) -> None:
    """Add each entry; one that is wrong is named, and is an error or is quarantined.

    The list is emptied on the way, so that a large file is not held twice.
    """
    for index, entry in enumerate(entries):
        entries[index] = None
        if watch and index % _ENTRIES_AT_ONCE == 0:
            watch(section, index, len(entries))
        try:
            if not isinstance(entry, dict):
                raise ValueError(f"{short(entry)} is not allowed (an object)")
            add(entry)
        except ValueError as error:
            number = entry.get("id") if isinstance(entry, dict) else None
            name = f"{section}[{index}]" + (f" (id {number})" if isinstance(number, int) else "")
            if quarantined is None:
                raise EntryError(f"{path}: {name}: {error}; {_MEND}") from None
            quarantined.append(Quarantined(name, str(error)))
    if watch:
        watch(section, len(entries), len(entries))


def read_json(path: Path | str, watch: Watch | None = None) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        watch: receives how far the reading is.

    Raises:
        UserError: it cannot be opened, or is not JSON.
    """
    try:
        return json.loads(_read_text(path, watch))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a JSON file") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "is the file cut short? Copy it again"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {error.encoding.upper()} text at byte {error.start}; is it JSON?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: JSON that cannot be read: {error}") from None


def _read_text(path: Path | str, watch: Watch | None) -> str:
    content = bytearray()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK):
            content += chunk
            if watch:
                watch("bytes", len(content), max(size, len(content)))
    # UTF-8 with or without a byte order mark, or UTF-16 or -32, as Windows tools write.
    text = content.decode(json.detect_encoding(content))
    if watch:
        watch("parsing", 0, 0)
    return text


def write_json(path: Path | str, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_file(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=False, separators=(",", ":"))


def once(number: int, seen: Mapping[int, object]) -> None:
    """Refuse an id that is taken."""
    if number in seen:
        raise ValueError(f"id: {number} {TAKEN}")


def known(entry: Mapping[str, Any], key: str, among: Mapping[int, object]) -> int:
    """The id at `key`, refused if it is not in `among`."""
    number = integer(entry, key)
    if number not in among:
        some = ", ".join(str(one) for one in sorted(among)[:5])
        more = ", …" if len(among) > 5 else ""
        raise ValueError(f"{key}: {number} is not in the annotations (known: {some}{more})")
    return number


def integer(entry: Mapping[str, Any], key: str, *, low: int | None = None) -> int:
    """The integer at `key`, refused if it is none or below `low`."""
    value = entry.get(key)
    allowed = "an integer" if low is None else f"an integer ≥ {low}"
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        raise ValueError(f"{key}: {short(value)} is not allowed ({allowed})")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{key}: {short(value)} is not allowed (an integer of 64 bits)")
    return value


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a number that is neither infinite nor NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond every float.
        return False


def sized(value: object) -> str:
    """How many entries there are where a list of another length was expected."""
    return f"{len(value)} entries" if isinstance(value, list) else f"{short(value)} (no list)"


def kind(value: object) -> str:
    """What a JSON value is, for a message."""
    return "nothing" if value is None else f"a JSON {type(value).__name__}"


def short(value: object) -> str:
    """A value as it was received, cut to a length that a message can hold."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Deeper, or a longer integer, than can be written.
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "…"
