"""`--set a.b.c=value`: one setting changed from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from selfshot.config.document import Document, Location, Place, read_document
from selfshot.errors import UserError

_KEY = re.compile(r"[^\s.=\[\]{}]+(\.[^\s.=\[\]{}]+)*")


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Writes `--set` values into a document, later ones over earlier ones.

    A value is read as YAML (`3`, `1e-3`, `true`, `[1, 5]`, `{steps: 20}`, empty for null), and
    lists are replaced whole. What reads as no YAML value, such as `a: b`, is plain text.

    Raises:
        UserError: An override has no `=`, an odd key, or goes through something that holds no keys.
    """
    if overrides and document.data is None:
        document.data = {}
    for override in overrides:
        location, value, place = parse_override(override)
        put(document, location, value, place)


def parse_override(override: str) -> tuple[Location, Any, Place]:
    """Where, what, and how messages call it."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise UserError(
            f"--set {override}: no '=' in it (write --set key=value, as in --set vis.dim=72)"
        )
    if not _KEY.fullmatch(key):
        raise UserError(
            f"--set {override}: {key!r} is not a key (words joined by dots, as in "
            "vis.optimiser.steps; a list is set whole, as in evaluation.seeds=[0,1])"
        )
    place = Place(f"--set {override if len(override) <= 80 else override[:79] + '…'}")
    return tuple(key.split(".")), _value(text, place), place


def _value(text: str, place: Place) -> Any:
    stripped = text.strip()
    try:
        read = read_document(stripped, str(place), numbered=False)
    except UserError:
        # Brackets and quotes were meant as YAML; anything else is a text with odd marks in it.
        if stripped[:1] in ("[", "{", "'", '"', "!", "&"):
            raise
        _refuse_controls(stripped, place)
        return stripped
    if read.complaints:
        raise UserError(str(read.complaints[0]))
    if isinstance(read.data, dict) and not stripped.startswith("{"):
        return stripped
    if isinstance(read.data, list) and not stripped.startswith("["):
        return stripped
    return read.data


def _refuse_controls(text: str, place: Place) -> None:
    if not text.isprintable():
        raise UserError(f"the value holds characters that cannot be printed; {place}")


def put(document: Document, location: Location, value: Any, place: Place) -> None:
    """Writes one value into a document, as from `place`; sections on the way are made."""
    if not isinstance(document.data, dict):
        return  # the file is no mapping at all; the loader says so
    if location[0] == "benchmark" and len(location) > 1 and document.data.get("benchmark") is None:
        # The schema's own default, so that one of its settings can be changed by itself.
        document.data["benchmark"] = {"kind": "sprites"}
        document.places[("benchmark",)] = place
    section = document.data
    for depth, part in enumerate(location[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            document.places[location[:depth]] = place
        section = section[part]
        if not isinstance(section, dict):
            at = ".".join(str(word) for word in location[:depth])
            shown = "a list" if isinstance(section, list) else repr(section)
            raise UserError(f"{at}: holds {shown} and no keys, so set it whole; {place}")
    section[str(location[-1])] = value
    for written in [known for known in document.places if known[: len(location)] == location]:
        del document.places[written]
    document.places[location] = place
