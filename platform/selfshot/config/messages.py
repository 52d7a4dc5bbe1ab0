"""Mistakes in words: pydantic's findings, and where their settings were written."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from selfshot.config.benchmarks import KINDS
from selfshot.config.document import Document, Location, Place, dotted
from selfshot.config.fields import Section
from selfshot.config.schema import Experiment
from selfshot.errors import Reported, StorageError, UserError, reported_error

MAX_MESSAGES = 10

_WORDS = {
    "greater than or equal to": "≥",
    "less than or equal to": "≤",
    "greater than": ">",
    "less than": "<",
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid array": "a list",
    "an object": "keys and values",
}
"""Pydantic's words → those of people who write YAML."""
_LEADING_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


class Message(NamedTuple):
    """One mistake: the setting, all that is to be said, and where it was written if known."""

    setting: str
    text: str
    place: Place | None = None

    def __str__(self) -> str:
        return self.text if self.place is None else f"{self.text}; {self.place}"


class ConfigError(UserError):
    """Mistakes in an experiment; `setting` is that of the only one, or None."""

    @classmethod
    def of(cls, messages: Sequence[Message], source: str, what: str = "mistakes") -> ConfigError:
        """One error for all messages about a file, in the order of its lines."""
        ordered = sorted(
            dict.fromkeys(messages),
            key=lambda one: (not (one.place and one.place.line), one.place or (), one.text),
        )
        if len(ordered) == 1:
            return cls(str(ordered[0]), setting=ordered[0].setting or None)
        lines = [f"{source}: {len(ordered)} {what}"]
        lines += [f"  {one}" for one in ordered[:MAX_MESSAGES]]
        if len(ordered) > MAX_MESSAGES:
            lines.append(f"  … and {len(ordered) - MAX_MESSAGES} more")
        return cls("\n".join(lines))


@contextmanager
def located(document: Document) -> Iterator[None]:
    """Add where its setting was written to a mistake that a block finds.

    A missing file or a GPU that no machine has is found long after the YAML was read.
    """
    try:
        yield
    except Reported as error:
        inner = reported_error(error) or error
        if (told := placed(inner, document)) is inner:
            raise
        raise told from error


def placed(error: UserError | StorageError, document: Document) -> UserError | StorageError:
    """An error that says where its setting was written, if a person wrote it and it does not."""
    place = document.places.get(tuple((error.setting or "").split(".")))
    if place is None or isinstance(error, ConfigError):
        return error
    kind = StorageError if isinstance(error, StorageError) else ConfigError
    return kind(f"{error}; {place}", setting=error.setting)


@cache
def settings() -> dict[Location, FieldInfo]:
    """Every setting and section, where pydantic finds it: kinds of benchmark are a level."""

    def walk(section: type[Section], at: Location) -> Iterator[tuple[Location, FieldInfo]]:
        for name, field in section.model_fields.items():
            inner = _sections(field.annotation)
            yield (*at, name), field
            for one in inner:
                kind = get_args(one.model_fields["kind"].annotation) if len(inner) > 1 else ()
                yield from walk(one, (*at, name, *kind))

    return dict(walk(Experiment, ()))


@cache
def setting_names() -> dict[str, bool]:
    """The dotted name of every setting and section → whether it is a section."""
    return {
        dotted(_shown_location(at)): bool(_sections(field.annotation))
        for at, field in settings().items()
    }


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold: none, one, or one of each kind."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _shown_location(at: Location) -> Location:
    """A place as people write it, without the benchmark's kind that pydantic puts into it."""
    return at[:1] + at[2:] if at[:1] == ("benchmark",) else at


def messages_of(error: ValidationError, document: Document) -> list[Message]:
    """One message for each finding, with the place that wrote the value."""
    found = error.errors(include_url=False)
    return [
        _message(one, document)
        for one in found
        # A list that holds a wrong item is reported as too short as well: the item is enough.
        if not any(o["loc"][: len(one["loc"])] == one["loc"] != o["loc"] for o in found)
    ]


def _message(error: ErrorDetails, document: Document) -> Message:
    location = _shown_location(error["loc"])
    name = dotted(location) or "the experiment"
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        text = f"{name}: unknown key{_mend_key(error['loc'])}"
    elif kind == "missing":
        field = settings().get(error["loc"])
        text = f"{name}: missing ({(field and field.description) or 'a value'})"
    elif kind == "value_error":
        return _of_validator(str(context["error"]), location, document)
    elif kind.startswith("union_tag") and isinstance(value, dict):
        location, name = (*location, "kind"), f"{name}.kind"
        given = f"{shown(value['kind'])} is not allowed" if "kind" in value else "missing"
        text = f"{name}: {given} (one of {', '.join(KINDS)}){mend(value.get('kind', ''), KINDS)}"
    else:
        text = f"{name}: {shown(value)} is not allowed ({allowed(error)})"
        text += mend(value, re.findall("'(.*?)'", context.get("expected", "")))
    return Message(name, text, document.place_of(location))


def allowed(error: ErrorDetails) -> str:
    """What a value should be, such as `should be ≥ 1`."""
    text = re.sub(r"^(Input|String|Tuple) ", "", error["msg"])
    for word, instead in _WORDS.items():
        text = text.replace(word, instead)
    return text


def _of_validator(text: str, section: Location, document: Document) -> Message:
    """A rule between several keys; its message begins with the key to look at first."""
    leading = _LEADING_KEY.match(text)
    location = section + tuple(leading.group().split(".")) if leading else section
    if section:
        text = dotted(section) + ("." if leading else ": ") + text
    return Message(dotted(location), text, document.place_of(location))


def _mend_key(at: Location) -> str:
    """What to write in place of an unknown key."""
    known = [str(one[-1]) for one in settings() if one[:-1] == at[:-1]]
    section = dotted(_shown_location(at[:-1]))
    places = sorted(one for one in setting_names() if one.rpartition(".")[2] == at[-1])
    within = [one for one in places if one.startswith(section)]
    meant = " or ".join((within or places)[:3]) or nearest(at[-1], known)
    return (f", did you mean {meant}?" if meant else "") + (
        f" (known here: {', '.join(known)})" if known else ""
    )


def mend(value: object, choices: Sequence[str]) -> str:
    """The choice that was probably meant, as the end of a message."""
    meant = nearest(value, choices)
    return f", did you mean {meant!r}?" if meant else ""


def nearest(word: object, words: Sequence[str]) -> str | None:
    """The known word that the person probably meant."""
    matches = difflib.get_close_matches(str(word).lower().replace("-", "_"), words, 1, 0.6)
    return matches[0] if matches else None


def shown(value: Any) -> str:
    """A value as the person wrote it, cut to a readable length."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, float):
        return repr(value)
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
