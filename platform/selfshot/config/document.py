"""YAML text → plain data, and the line on which each value stands.

The reader is stricter and smaller than YAML 1.1: words such as `no` and `on` are text, `1e-3` is
a number, tags are refused, a key given twice is a mistake, and a file cannot grow in memory
(its size, depth, aliases and values are bounded).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from selfshot.errors import UserError

Location = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_ALIASES = 100
MAX_VALUES = 20_000

_STANDARD = "tag:yaml.org,2002:"
_SIGNED = list("-+.0123456789")
_SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    "null": (r"^(?:~|null|Null|NULL|)$", [*"~nN", ""], lambda text: None),
    "bool": (
        r"^(?:true|True|TRUE|false|False|FALSE)$",
        list("tTfF"),
        lambda text: {"true": True, "false": False}[text.lower()],
    ),
    "int": (r"^[-+]?[0-9]+(?:_[0-9]+)*$", _SIGNED, int),
    "float": (
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
        _SIGNED,
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
    "merge": (r"^<<$", ["<"], str),
    "str": (r"(?!)", [], str),
}
"""YAML 1.2's plain scalars: kind → what it looks like, how it may begin, and its value."""


class _Loader(yaml.SafeLoader):
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


for _kind, (_pattern, _starts, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_STANDARD + _kind, re.compile(_pattern), _starts)


class Place(NamedTuple):
    """Where a value was written; line 0: the source has no lines that mean something."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


@dataclass
class Document:
    """What a YAML text says, before anybody asks whether it makes sense."""

    data: Any
    places: dict[Location, Place] = field(default_factory=dict)

    def place_of(self, location: Location) -> Place:
        """The place of a value, or of the nearest section around it that was written."""
        while location not in self.places and location:
            location = location[:-1]
        return self.places.get(location, Place("the experiment"))

    def put(self, location: Location, value: Any, places: dict[Location, Place]) -> None:
        """Writes a value into a section that is there, with the places of all that is in it."""
        section = self.data
        for part in location[:-1]:
            section = section[part]
        section[location[-1]] = value
        for written in [known for known in self.places if known[: len(location)] == location]:
            del self.places[written]
        self.places |= {(*location, *inner): place for inner, place in places.items()}

    def places_in(self, location: Location) -> dict[Location, Place]:
        """The places of a value and of all that is in it, as seen from it."""
        depth = len(location)
        return {at[depth:]: one for at, one in self.places.items() if at[:depth] == location}


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
        causes = [one for one in (error.problem, error.context) if one]
        if "'\\t'" in causes[0]:
            causes.append("indent with spaces, not tabs")
        elif "mapping values are not allowed" in causes[0]:
            causes.append("a text with ': ' in it needs quotes, and keys of one section one indent")
        where = reader.place(error.problem_mark or error.context_mark)
        raise UserError(f"not valid YAML: {', '.join(causes)}; {where}") from None
    except yaml.reader.ReaderError as error:
        where = Place(source, text[: error.position].count("\n") + 1 if numbered else 0)
        raise UserError(
            f"the character {chr(error.character)!a} is not allowed in YAML; {where}"
        ) from None
    data = None if node is None else reader.build(node, ())
    return Document(data, reader.places)


def read_text(path: Path) -> str:
    """The text of an experiment's file, or a `UserError` that says what is wrong with it."""
    try:
        if not str(path).isprintable():
            raise UserError(f"{str(path)!r}: not a path (it holds unprintable characters)")
        if not path.exists():
            raise UserError(f"{path}: no such file{_neighbour(path)}")
        if path.is_dir():
            raise UserError(f"{path}: a folder, not an experiment file{_inside(path)}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: an experiment has at most {MAX_BYTES} bytes")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{str(path)!r} cannot be read: {reason}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise UserError(
            f"the byte 0x{byte:02x} is not UTF-8, save the file as UTF-8; {path}, line {line}"
        ) from None


def _neighbour(path: Path) -> str:
    """The file that was probably meant."""
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    files = {found.stem: found.name for found in folder.iterdir() if found.suffix == ".yaml"}
    close = difflib.get_close_matches(path.stem, files, 1, 0.6)
    if close:
        return f", did you mean {folder / files[close[0]]}?"
    return " (experiments are in experiments/)"


def _inside(path: Path) -> str:
    names = sorted(str(found) for found in path.glob("*.yaml"))
    return f", such as {names[0]}" if names else ""


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `read_document` reads back alike."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Reader:
    """Turns composed nodes into data, and notes where each value was written."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.places: dict[Location, Place] = {}
        self.values = 0

    def place(self, mark: yaml.Mark | None) -> Place:
        return Place(self.source, mark.line + 1 if mark and self.numbered else 0)

    def check_size(self, text: str) -> None:
        """Walks the events, which needs no recursion, before anything is composed."""
        depth = aliases = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            where = self.place(event.start_mark)
            if depth > MAX_DEPTH:
                raise UserError(f"more than {MAX_DEPTH} levels of nesting; {where}")
            if aliases > MAX_ALIASES:
                raise UserError(f"more than {MAX_ALIASES} aliases (*name); {where}")

    def build(self, node: yaml.Node, location: Location) -> Any:
        """The value of a node."""
        self.values += 1
        where = self.place(node.start_mark)
        self.places.setdefault(location, where)
        if self.values > MAX_VALUES or len(location) > MAX_DEPTH:
            raise UserError(f"aliases make this file too large; write the values out; {where}")
        kind = node.tag.removeprefix(_STANDARD)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.build(item, (*location, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return self._scalar(node, kind, where)
        tag = node.tag.replace(_STANDARD, "!!")
        raise UserError(f"the tag {tag} is not read here, leave it out; {where}")

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = self.place(key_node.start_mark)
            if key_node.tag == _STANDARD + "merge":
                merged = self._merged(value_node, location, where) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"a key must be a word, not a list or a mapping; {where}")
            key = self._scalar(key_node, "str", where)
            at = (*location, key)
            if key in result:
                first = f" (first on line {self.places[at].line})" if self.numbered else ""
                name = dotted(at)
                raise UserError(f"{name}: given twice{first}, keep one; {where}", setting=name)
            self.places[at] = where
            result[key] = self.build(value_node, at)
        return {key: value for key, value in merged.items() if key not in result} | result

    def _merged(self, node: yaml.Node, location: Location, where: Place) -> dict[str, Any]:
        """The keys that `<<: *name` brings; keys written beside it win, earlier names win."""
        result: dict[str, Any] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise UserError(f"<<: takes a mapping's alias such as *name; {where}")
            # One level deeper, so that a mapping that is merged into itself comes to an end.
            below = _Reader(self.source, self.numbered)
            below.values = self.values
            result = below.build(source, (*location, "<<")) | result
            self.values = below.values
            depth = len(location)
            for at, place in below.places.items():
                if len(at) > depth + 1:
                    self.places.setdefault((*location, *at[depth + 1 :]), place)
        return result

    def _scalar(self, node: yaml.ScalarNode, kind: str, where: Place) -> Any:
        text: str = node.value
        try:
            text.encode()
            return _SCALARS[kind][2](text)
        except UnicodeEncodeError:
            # No file or database can hold one.
            raise UserError(
                f"{text!a} holds half a character (a lone surrogate); {where}"
            ) from None
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else text[:40] + "…"
            raise UserError(f"{shown!r} cannot be read as {kind}; {where}") from None
