"""What lies over what: a `base`, the experiment, one of its `scales`, and `--set`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfshot.config.document import Document, Location, Place, read_document, read_text
from selfshot.config.messages import mend, shown
from selfshot.errors import UserError

_KEY = re.compile(r"[^\s.=\[\]{}]+(\.[^\s.=\[\]{}]+)*")
_LAYERS = ("base", "scale", "scales")
_OF_ITS_OWN = ("name", "description", "sweep")
_WHOLE: tuple[Location, ...] = (("sweep", "over"), ("sweep", "cases"))


def lay(document: Document, source: str, overrides: Sequence[str] = ()) -> Document:
    """A document with its base under it, and its scale and `--set` over it.

    A section that lies above changes the keys that it names; one of another `kind`, a list and a
    sweep's `over` and `cases` take the place of what was there.

    Args:
        document: as it was read; it is changed.
        source: its file; a base's path starts at its folder.
        overrides: `--set` values, later ones over earlier ones.

    Raises:
        UserError: a layer cannot be read, or does not fit.
    """
    parsed = [parse_override(one) for one in overrides]
    if parsed and document.data is None:
        document.data = {}
    if isinstance(document.data, dict):
        for early in (True, False):
            for location, value, place in parsed:
                if (location[0] in _LAYERS) == early:
                    put_override(document, location, value, place)
            if early:
                _lay_scale(document)
                document = _over_base(document, source, (Path(source).resolve(),))
    return document


def _lay_scale(document: Document) -> None:
    """Lays the scale that is chosen over a document, and takes `scales` out of it."""
    chosen, scales = document.data.get("scale"), document.data.get("scales") or {}
    if not isinstance(scales, dict) or not all(isinstance(one, dict) for one in scales.values()):
        return  # the schema says what is wrong
    if chosen:
        if not isinstance(chosen, str) or chosen not in scales:
            known = f"one of {', '.join(scales)}" if scales else "there is no section scales"
            raise UserError(
                f"scale: {shown(chosen)} is not allowed ({known}){mend(chosen, list(scales))}; "
                f"{document.place_of(('scale',))}",
                setting="scale",
            )
        places = document.places_in(("scales", chosen))
        _lay(document, Document(scales[chosen], places))
    document.data.pop("scale", None)
    document.data.pop("scales", None)


def _over_base(document: Document, source: str, above: tuple[Path, ...]) -> Document:
    """A document laid over its base, if it has one; a base's name and sweep do not count.

    Args:
        document: as it was read.
        source: its file.
        above: this file, and those whose base it is.
    """
    base = document.data.pop("base", None)
    if base is None or base == "":
        return document
    where = document.place_of(("base",))
    if not isinstance(base, str) or not base.isprintable():
        raise _wrong_base(f"{shown(base)} is not allowed (an experiment's file)", where)
    folder = Path(source).parent
    path = folder / base
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(folder.resolve().parent):
        raise _wrong_base(
            f"{base!r} is not allowed (a file beside {source}, in a folder there or in the folder "
            "above)",
            where,
        )
    if real in above:
        circle = " → ".join(one.name for one in (*above, path))
        raise _wrong_base(f"{base!r} leads in a circle ({circle}), take one of them out", where)
    try:
        under = read_document(read_text(path), str(path))
    except UserError as error:
        raise _wrong_base(str(error), where) from None
    if not isinstance(under.data, dict):
        raise _wrong_base(f"{path} holds no experiment", where)
    for key in (*_OF_ITS_OWN, "scale", "scales"):
        under.data.pop(key, None)
    under = _over_base(under, str(path), (*above, real))
    _lay(under, document)
    return under


def _wrong_base(message: str, where: Place) -> UserError:
    return UserError(f"base: {message}; {where}", setting="base")


def _lay(under: Document, over: Document, at: Location = ()) -> None:
    """Merges a section of a document into the section of the same place below, with its places."""
    old, new = under.data, over.data
    for part in at:
        old, new = old[part], new[part]
    for key, value in new.items():
        where, below = (*at, key), old.get(key)
        both = isinstance(value, dict) and isinstance(below, dict) and where not in _WHOLE
        if both and value.get("kind", below.get("kind")) == below.get("kind"):
            _lay(under, over, where)
        else:
            under.put(where, value, over.places_in(where))


def parse_override(override: str) -> tuple[Location, Any, Place]:
    """Where `--set a.b.c=value` writes, what, and how messages call it.

    A value is read as YAML (`3`, `1e-3`, `true`, `[1, 5]`, `{steps: 20}`, empty for null), and
    lists are replaced whole. What reads as no YAML value, such as `a: b`, is plain text.

    Raises:
        UserError: it has no `=`, an odd key, or a value that cannot be read.
    """
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
    return tuple(key.split(".")), _value(text.strip(), place), place


def _value(text: str, place: Place) -> Any:
    try:
        read = read_document(text, str(place), numbered=False).data
    except UserError:
        # Brackets and quotes were meant as YAML; anything else is a text with odd marks in it.
        if text[:1] in ("[", "{", "'", '"', "!", "&"):
            raise
        if not text.isprintable():
            raise UserError(f"the value holds characters that cannot be printed; {place}") from None
        return text
    block = isinstance(read, dict | list) and text[:1] not in ("{", "[")
    return text if block else read


def put_override(document: Document, location: Location, value: Any, place: Place) -> None:
    """Writes one value into a document, as from `place`; sections on the way are made.

    Raises:
        UserError: it goes through something that holds no keys.
    """
    section = document.data
    for depth, part in enumerate(location[:-1], start=1):
        if section.get(part) is None:
            # The schema's own default, so that one of its settings can be changed by itself.
            section[part] = {"kind": "sprites"} if location[:depth] == ("benchmark",) else {}
            document.places[location[:depth]] = place
        section = section[part]
        if not isinstance(section, dict):
            held = "a list" if isinstance(section, list) else repr(section)
            at = ".".join(map(str, location[:depth]))
            raise UserError(f"{at}: holds {held} and no keys, so set it whole; {place}", setting=at)
    document.put(location, value, {(): place})
