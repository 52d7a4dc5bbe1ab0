"""YAML text → plain data, and the line on which each value stands.

The reader is stricter and smaller than YAML 1.1: words such as `no` and `on` are text, `1e-3` is
a number, tags are refused, a key given twice is a mistake, and a file cannot grow in memory
(its size, depth, aliases and values are bounded).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from selfshot.errors import UserError

Location = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_ALIASES = 100
MAX_VALUES = 20_000

_STANDARD = "tag:yaml.org,2002:"
_MERGE = _STANDARD + "merge"
_NUMBER_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever this reader or a YAML 1.1 reader would not take as text."""

    yaml_implicit_resolvers = {
        start: list(resolvers)
        for start, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Writes every value out, so that a dump reads as a person would write it."""
        return True


for _tag, _pattern, _starts in (
    ("null", r"^(?:~|null|Null|NULL|)$", [*"~nN", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+(?:_[0-9]+)*$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
        _NUMBER_STARTS,
    ),
    ("merge", r"^<<$", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_STANDARD + _tag, re.compile(_pattern), _starts)


@dataclass(frozen=True)
class Place:
    """Where a value was written."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


@dataclass(frozen=True)
class Complaint:
    """One mistake, and where it was made."""

    message: str
    place: Place

    def __str__(self) -> str:
        return f"{self.message}; {self.place}"


@dataclass
class Document:
    """What a YAML text says, before anybody asks whether it makes sense."""

    data: Any
    places: dict[Location, Place] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)

    def place_of(self, location: Location) -> Place:
        """The place of a value, or of the nearest section around it that was written."""
        while location not in self.places and location:
            location = location[:-1]
        return self.places.get(location, Place("the experiment"))


def dotted(location: Location) -> str:
    """A location as people write it: `vis.optimiser.steps`, `evaluation.seeds[2]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_document(text: str, source: str, *, numbered: bool = True) -> Document:
    """Reads one YAML document.

    Args:
        text: The YAML.
        source: What to call it in messages, such as the file's path.
        numbered: Whether its lines mean something to the person.

    Raises:
        UserError: The text is no YAML, or is not one that this reader takes.
    """
    reader = _Reader(source, numbered)
    try:
        reader.check_size(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise UserError(_syntax_message(error, reader)) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        where = Place(source, line if numbered else None)
        raise UserError(
            f"the character {chr(error.character)!a} is not allowed in YAML; {where}"
        ) from None
    document = Document(None)
    if node is not None:
        document.data = reader.build(node, (), document, depth=0)
    return document


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `read_document` reads back alike."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Reader:
    """Turns composed nodes into data, counting as it goes."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.values = 0

    def place(self, mark: yaml.Mark | None) -> Place:
        return Place(self.source, mark.line + 1 if mark and self.numbered else None)

    def check_size(self, text: str) -> None:
        """Walks the events, which needs no recursion, before anything is composed."""
        depth = aliases = documents = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.AliasEvent):
                aliases += 1
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
            where = self.place(event.start_mark)
            if depth > MAX_DEPTH:
                raise UserError(f"more than {MAX_DEPTH} levels of nesting; {where}")
            if aliases > MAX_ALIASES:
                raise UserError(f"more than {MAX_ALIASES} aliases (*name); {where}")
            if documents > 1:
                raise UserError(
                    f"a second document begins here (---), one file holds one experiment; {where}"
                )

    def build(self, node: yaml.Node, location: Location, document: Document, depth: int) -> Any:
        """The value of a node; notes the places of everything inside it."""
        self.values += 1
        where = self.place(node.start_mark)
        document.places.setdefault(location, where)
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"aliases make this file too large; write the values out; {where}")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, where)
        if node.tag not in (_STANDARD + "seq", _STANDARD + "map"):
            raise UserError(f"the tag {_shown_tag(node)} is not read here, leave it out; {where}")
        if isinstance(node, yaml.SequenceNode):
            return [
                self.build(item, (*location, index), document, depth + 1)
                for index, item in enumerate(node.value)
            ]
        return self._mapping(node, location, document, depth)

    def _mapping(
        self, node: yaml.MappingNode, location: Location, document: Document, depth: int
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = self.place(key_node.start_mark)
            if key_node.tag == _MERGE:
                merged = self._merged(value_node, location, document, depth) | merged
                continue
            key = self._key(key_node, where)
            at = (*location, key)
            if key in result:
                first = f" (first on line {first_lines[key]})" if self.numbered else ""
                message = f"{dotted(at)}: given twice{first}, keep one"
                document.complaints.append(Complaint(message, where))
            first_lines.setdefault(key, key_node.start_mark.line + 1)
            document.places[at] = where
            result[key] = self.build(value_node, at, document, depth + 1)
        return {key: value for key, value in merged.items() if key not in result} | result

    def _merged(
        self, node: yaml.Node, location: Location, document: Document, depth: int
    ) -> dict[str, Any]:
        """The keys that `<<: *name` brings; keys written beside it win, earlier names win."""
        result: dict[str, Any] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                where = self.place(node.start_mark)
                raise UserError(f"<<: takes a mapping's alias such as *name; {where}")
            result = self.build(source, location, document, depth + 1) | result
        return result

    def _key(self, node: yaml.Node, where: Place) -> str:
        if not isinstance(node, yaml.ScalarNode) or not isinstance(node.value, str):
            raise UserError(f"a key must be a word, not a list or a mapping; {where}")
        return _encodable(node.value, where)

    def _scalar(self, node: yaml.ScalarNode, where: Place) -> Any:
        kind, text = node.tag.removeprefix(_STANDARD), node.value
        if kind in ("str", "merge"):
            return _encodable(text, where)
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else text[:40] + "…"
            raise UserError(f"{shown!r} cannot be read as {kind}; {where}") from None
        raise UserError(f"the tag {_shown_tag(node)} is not read here, leave it out; {where}")


def _encodable(text: str, where: Place) -> str:
    """Refuses halves of surrogate pairs, which no file or database can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!a} holds half a character (a lone surrogate); {where}") from None
    return text


def _shown_tag(node: yaml.Node) -> str:
    return node.tag.replace(_STANDARD, "!!")


def _causes(error: yaml.MarkedYAMLError) -> Iterator[str]:
    if error.problem:
        yield error.problem
    if error.context:
        yield error.context
    if error.problem and "'\\t'" in error.problem:
        yield "indent with spaces, not tabs"
    elif error.problem and "mapping values are not allowed" in error.problem:
        yield "a text with ': ' in it needs quotes, and keys of one section one indent"


def _syntax_message(error: yaml.MarkedYAMLError, reader: _Reader) -> str:
    mark = error.problem_mark or error.context_mark
    return f"not valid YAML: {', '.join(_causes(error))}; {reader.place(mark)}"
