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
from selfshot.config.document import Location, Place, dotted, place_of
from selfshot.config.fields import Section
from selfshot.config.schema import Experiment
from selfshot.errors import Reported, StorageError, UserError, reported_error

MAX_MESSAGES = 10

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
def located(data: Any) -> Iterator[None]:
    """Add where its setting was written to a mistake that a block finds.

    A missing file or a GPU that no machine has is found long after the YAML was read.
    """
    try:
        yield
    except Reported as error:
        inner = reported_error(error) or error
        if (located_error := placed(inner, data)) is inner:
            raise
        raise located_error from error


def placed(error: UserError | StorageError, data: Any) -> UserError | StorageError:
    """An error that says where its setting was written, if a person wrote it and it does not."""
    place = place_of(data, tuple((error.setting or "").split(".")), exact=True)
    if place is None or isinstance(error, ConfigError):
        return error
    kind = StorageError if isinstance(error, StorageError) else ConfigError
    return kind(f"{error}; {place}", setting=error.setting)


@cache
def settings() -> dict[Location, FieldInfo]:
    """Every setting and section, where pydantic finds it: kinds of benchmark are a level."""

    def walk(section: type[Section], at: Location) -> Iterator[tuple[Location, FieldInfo]]:
        for name, field in section.model_fields.items():
            yield (*at, name), field
            inner = _sections(field.annotation)
            for one in inner:
                kind = get_args(one.model_fields["kind"].annotation) if len(inner) > 1 else ()
                yield from walk(one, (*at, name, *kind))

    return dict(walk(Experiment, ()))


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold: none, one, or one of each kind."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _written(at: Location) -> Location:
    """A place as people write it, without the benchmark's kind that pydantic puts into it."""
    return at[:1] + at[2:] if at[:1] == ("benchmark",) else at


def messages_of(error: ValidationError, data: Any, source: str) -> list[Message]:
    """One message for each finding, with the place that wrote the value.

    Args:
        error: what pydantic found.
        data: what was validated.
        source: the place of what nobody wrote.
    """
    found = error.errors(include_url=False)
    return [
        _message(one, data, source)
        for one in found
        # A list that holds a wrong item is reported as too short as well: the item is enough.
        if not any(o["loc"][: len(one["loc"])] == one["loc"] != o["loc"] for o in found)
    ]


def _message(error: ErrorDetails, data: Any, source: str) -> Message:
    location = _written(error["loc"])
    name = dotted(location) or "the experiment"
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        text = f"{name}: unknown key{_mend_key(error['loc'])}"
    elif kind == "missing":
        field = settings().get(error["loc"])
        text = f"{name}: missing ({(field and field.description) or 'a value'})"
    elif kind == "value_error":
        # A rule between several keys begins with the key to look at first.
        text = str(context["error"])
        if leading := _LEADING_KEY.match(text):
            text = f"{dotted(location)}.{text}" if location else text
            location = (*location, *leading.group().split("."))
        else:
            text = f"{name}: {text}"
    elif kind.startswith("union_tag") and isinstance(value, dict):
        location = (*location, "kind")
        given = f"{shown(value['kind'])} is not allowed" if "kind" in value else "missing"
        choices = f" (one of {', '.join(KINDS)}){mend(value.get('kind', ''), KINDS)}"
        text = f"{name}.kind: {given}{choices}"
    else:
        choice = mend(value, re.findall("'(.*?)'", context.get("expected", "")))
        allowed = error["msg"].partition(" ")[2]  # Without its `Input`.
        text = f"{name}: {shown(value)} is not allowed ({allowed}){choice}"
    return Message(dotted(location), text, place_of(data, location) or Place(source))


def _mend_key(at: Location) -> str:
    """What to write in place of an unknown key: its like here, or that name further inside."""
    here = [str(one[-1]) for one in settings() if one[:-1] == at[:-1]]
    inside = [
        dotted(_written(one))
        for one in settings()
        if one[-1] == at[-1] and one[: len(at) - 1] == at[:-1]
    ]
    meant = " or ".join(inside[:3]) or nearest(at[-1], here)
    hint = f", did you mean {meant}?" if meant else ""
    return hint + f" (known here: {', '.join(here)})" * bool(here)


def mend(value: object, choices: Sequence[str]) -> str:
    """The choice that was probably meant, as the end of a message."""
    meant = nearest(value, choices)
    return f", did you mean {meant!r}?" if meant else ""


def nearest(word: object, words: Sequence[str]) -> str | None:
    """The word that the person probably meant."""
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
