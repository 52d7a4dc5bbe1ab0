"""`scales:`: one experiment in several sizes, one of which is laid over it before it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from selfshot.config.allowed import nearest, shown
from selfshot.config.document import Document, Location, Place, read_document
from selfshot.config.overrides import parse_override
from selfshot.errors import UserError

BASE = "base"
_OF_THE_BASE = ("name", "description", "sweep", "scale", "scales")
_WHOLE: tuple[Location, ...] = (("sweep", "over"), ("sweep", "cases"))


def names_scale(override: str) -> bool:
    """Whether a `--set` chooses the scale; there is no such setting once it is laid."""
    return override.partition("=")[0].strip() == "scale"


def apply_scale(
    document: Document, overrides: Sequence[str], source: str, read: Callable[[Path], str]
) -> None:
    """Lays the chosen scale over a document, and takes `scale` and `scales` out of it.

    A section of the scale changes the keys that it names; one of another `kind`, a list and a
    sweep's `over` and `cases` take the place of what was there. A scale's `base` is another
    experiment's file, over which the document is laid first; its name and sweep do not count.

    Args:
        document: as it was read.
        overrides: `--set` values; the last `scale=NAME` among them wins over the file.
        source: the document's file; a base's path starts at its folder.
        read: the text of a file.

    Raises:
        UserError: there is no such scale, or its base cannot be read.
    """
    data = document.data
    if not isinstance(data, dict):
        return
    chosen, place = data.get("scale"), document.place_of(("scale",))
    for override in overrides:
        if names_scale(override):
            _, chosen, place = parse_override(override)
    scales = data.get("scales") or {}
    if not isinstance(scales, dict) or not all(isinstance(one, dict) for one in scales.values()):
        return  # the schema says what is wrong
    own = {key: value for key, value in data.items() if key not in ("scale", "scales")}
    written = Document(own, dict(document.places), document.complaints)
    if chosen is None or chosen == "":
        document.data = own
        return
    if not isinstance(chosen, str) or chosen not in scales:
        known = ", ".join(scales) or "none, as there is no section scales"
        meant = nearest(chosen, list(scales))
        hint = f", did you mean {meant}?" if meant else ""
        raise UserError(f"scale: {shown(chosen)} is not allowed (one of {known}){hint}; {place}")
    scale = deepcopy(scales[chosen])
    at = ("scales", chosen)
    if BASE in scale:
        where = document.place_of((*at, BASE))
        written = _over_base(written, scale.pop(BASE), where, source, read)
    _lay(written, (), scale, document.places, at)
    document.data, document.places = written.data, written.places
    document.complaints = written.complaints


def _over_base(
    own: Document, base: Any, place: Place, source: str, read: Callable[[Path], str]
) -> Document:
    """The document laid over the file that its scale starts from."""
    if not isinstance(base, str) or not base:
        raise UserError(
            f"scales: base: {shown(base)} is not allowed (an experiment's file); {place}"
        )
    path = Path(source).parent / base
    try:
        under = read_document(read(path), str(path))
    except UserError as error:
        raise UserError(f"scales: base: {error}; {place}") from None
    if not isinstance(under.data, dict):
        raise UserError(f"scales: base: {path} holds no experiment; {place}")
    for key in _OF_THE_BASE:
        under.data.pop(key, None)
    under.complaints += own.complaints
    _lay(under, (), own.data, own.places, ())
    return under


def _lay(
    document: Document,
    at: Location,
    overlay: dict[str, Any],
    places: dict[Location, Place],
    source: Location,
) -> None:
    """Merges a section into the section at a place of a document, with the lines of its own.

    Args:
        document: what lies below.
        at: where in it.
        overlay: what lies above.
        places: of the document that wrote the overlay.
        source: where it stands there.
    """
    section = document.data
    for part in at:
        section = section[part]
    for key, value in overlay.items():
        where, written = (*at, key), (*source, key)
        old = section.get(key)
        sections = isinstance(value, dict) and isinstance(old, dict) and where not in _WHOLE
        if sections and value.get("kind", old.get("kind")) == old.get("kind"):
            _lay(document, where, value, places, written)
            continue
        section[key] = value
        for place in [known for known in document.places if known[: len(where)] == where]:
            del document.places[place]
        for place, line in list(places.items()):
            if place[: len(written)] == written:
                document.places[where + place[len(written) :]] = line
