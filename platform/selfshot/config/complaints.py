"""Mistakes in words: pydantic's findings as lines that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from selfshot.config.allowed import (
    describe,
    elsewhere,
    find_rule,
    keys_of,
    nearest,
    resolve,
    shown,
)
from selfshot.config.document import Complaint, Document, Location, dotted
from selfshot.errors import UserError

MAX_COMPLAINTS = 10

_LEADING_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


def complaints_of(error: ValidationError, document: Document) -> list[Complaint]:
    """One complaint for each finding, with the place that wrote the value."""
    found = error.errors(include_url=False)
    return [
        _complaint(one, document)
        for one in found
        # A list that holds a wrong item is reported as too short as well: the item is enough.
        if not any(len(other["loc"]) > len(one["loc"]) == _shared(one, other) for other in found)
    ]


def fail(complaints: Sequence[Complaint], source: str) -> UserError:
    """One error for all complaints about a file, in the order of its lines."""
    ordered = sorted(
        dict.fromkeys(complaints),
        key=lambda one: (one.place.line is None, one.place.line or 0, one.message),
    )
    if len(ordered) == 1:
        return UserError(str(ordered[0]))
    lines = [f"{source}: {len(ordered)} mistakes"]
    lines += [f"  {one}" for one in ordered[:MAX_COMPLAINTS]]
    if len(ordered) > MAX_COMPLAINTS:
        lines.append(f"  … and {len(ordered) - MAX_COMPLAINTS} more")
    return UserError("\n".join(lines))


def _shared(one: ErrorDetails, other: ErrorDetails) -> int:
    """How many leading parts two findings' locations have in common."""
    pairs = zip(one["loc"], other["loc"], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _complaint(error: ErrorDetails, document: Document) -> Complaint:
    location, rule = find_rule(error["loc"])
    name = dotted(location) or "the experiment"
    value = error["input"]
    kind = error["type"]
    match kind:
        case "extra_forbidden":
            message = f"{name}: unknown key{_mend_key(error['loc'])}"
        case "missing":
            allowed = describe(rule) if rule else "a value"
            message = f"{name}: missing ({allowed})"
        case "union_tag_not_found" if isinstance(value, dict):
            kinds = _kinds(location)
            location = (*location, "kind")
            message = f"{dotted(location)}: missing (one of {', '.join(kinds)})"
        case "union_tag_invalid":
            kinds = _kinds(location)
            location = (*location, "kind")
            message = _not_allowed(dotted(location), value.get("kind"), kinds)
        case "value_error":
            return _of_validator(error, location, document)
        case "literal_error" if rule and "enum" in rule:
            message = _not_allowed(name, value, rule["enum"])
        case _:
            allowed = describe(rule) if rule else error["msg"]
            message = f"{name}: {shown(value)} is not allowed ({allowed})"
    return Complaint(message, document.place_of(location))


def _not_allowed(name: str, value: object, choices: Sequence[object]) -> str:
    allowed = ", ".join(shown(choice) for choice in choices)
    meant = nearest(value, [choice for choice in choices if isinstance(choice, str)])
    mend = f", did you mean {meant!r}?" if meant else ""
    return f"{name}: {shown(value)} is not allowed (one of {allowed}){mend}"


def _mend_key(location: Location) -> str:
    """What to write in place of an unknown key."""
    key = str(location[-1])
    at, section = find_rule(location[:-1])
    known = list(keys_of(section)) if section else []
    meant = elsewhere(key, at) or nearest(key, known)
    mend = f", did you mean {meant}?" if meant else ""
    return f"{mend} (known here: {', '.join(known)})" if known else mend


def _kinds(location: Location) -> list[str]:
    _, rule = find_rule(location)
    return list(resolve(rule)["discriminator"]["mapping"]) if rule else []


def _of_validator(error: ErrorDetails, section: Location, document: Document) -> Complaint:
    """A rule between several keys; its message begins with the key to look at first."""
    text = str(error.get("ctx", {}).get("error", error["msg"]))
    leading = _LEADING_KEY.match(text)
    location = section + tuple(leading.group().split(".")) if leading else section
    if section and leading:
        text = f"{dotted(section)}.{text}"
    return Complaint(text, document.place_of(location))
