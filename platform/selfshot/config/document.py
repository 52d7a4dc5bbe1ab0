"""YAML text → plain data whose keys know where they were written, and back.

ruamel.yaml reads it, as YAML 1.2: `no` and `on` are texts and `1e-3` is a number. Tags are refused,
and a file cannot grow in memory: its size, depth and values are bounded.
"""

from __future__ import annotations

import difflib
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from selfshot.errors import UserError

Location = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_VALUES = 20_000

_STANDARD = "tag:yaml.org,2002:"
_READ = ("null", "bool", "int", "float")
_TEXTS = ("str", "timestamp", "value", "merge")


class Place(NamedTuple):
    """Where a value was written; line 0: the source has no lines that mean something."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


class Key(str):
    """A section's key, with the place where it and its value were written."""

    place: Place

    @classmethod
    def of(cls, text: str, place: Place) -> Key:
        """A key that was written there."""
        key = cls(text)
        key.place = place
        return key


class Items(list[Any]):
    """A list, with the place of each item."""

    places: tuple[Place, ...] = ()


def place_of(data: Any, location: Location, *, exact: bool = False) -> Place | None:
    """Where a value was written, or unless `exact` the nearest section around it that was."""
    place = None
    for part in location:
        if isinstance(data, dict) and part in data:
            key = next(key for key in data if key == part)
            own, data = getattr(key, "place", None), data[key]
        elif isinstance(data, Items) and isinstance(part, int) and part < len(data):
            own, data = data.places[part], data[part]
        else:
            return None if exact else place
        place = own if own or exact else place
    return place


def dotted(location: Location) -> str:
    """A location as people write it: `vis.optimiser.steps`, `supports.shots[2]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_yaml(text: str, source: str, *, numbered: bool = True) -> Any:
    """Read one YAML document, as dicts, lists and scalars.

    Args:
        text: The YAML.
        source: What to call it in messages, such as the file's path.
        numbered: Whether its lines mean something to the person.

    Raises:
        UserError: The text is no YAML, or is not one that is read here.
    """
    return _Reader(source, numbered).read(text)


def read_text(path: Path) -> str:
    """The text of an experiment's file, or a `UserError` that says what is wrong with it."""
    try:
        if not str(path).isprintable():
            raise UserError(f"{str(path)!r}: not a path (it holds unprintable characters)")
        if path.is_dir():
            raise UserError(f"{path}: a folder, not an experiment file")
        if not path.exists():
            raise UserError(f"{path}: no such file{likely_path(path)}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{str(path)!r} cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: an experiment has at most {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = Place(str(path), content[: error.start].count(b"\n") + 1)
        raise UserError(
            f"the byte 0x{content[error.start]:02x} is not UTF-8, save the file as UTF-8; {place}"
        ) from None


def likely_path(path: Path) -> str:
    """The path that was meant in place of one that is not there, as the end of a message."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    try:
        close = difflib.get_close_matches(missing.name, os.listdir(missing.parent), 1, 0.6)
    except OSError:
        return ""
    if close:
        return f", did you mean {missing.parent / close[0]}?"
    return f", {missing.parent} holds no {missing.name}" if missing != path else ""


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back alike."""
    yaml: Any = YAML(typ="safe", pure=True)
    stream = io.StringIO()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    yaml.width, yaml.allow_unicode = 100, True
    yaml.representer.ignore_aliases = lambda data: True
    yaml.dump(data, stream)
    return stream.getvalue()


class _Reader:
    """Turns ruamel's nodes into data."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.values = 0
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.max_depth = MAX_DEPTH
        self.yaml.composer.warn_double_anchors = False

    def place(self, mark: Any) -> Place:
        return Place(self.source, mark.line + 1 if mark and self.numbered else 0)

    def read(self, text: str) -> Any:
        try:
            node = self.yaml.compose(text)
        except MarkedYAMLError as error:
            causes = [one for one in (error.problem, error.context) if one]
            if isinstance(error, MaxDepthExceededError):
                causes = [f"more than {MAX_DEPTH} levels of nesting"]
            elif "'\\t'" in causes[0]:
                causes.append("indent with spaces, not tabs")
            elif "mapping values are not allowed" in causes[0]:
                causes.append("a text with ': ' in it needs quotes, and keys of one section one "
                              "indent")  # fmt: skip
            where = self.place(error.problem_mark or error.context_mark)
            raise UserError(f"not valid YAML: {', '.join(causes)}; {where}") from None
        except ReaderError as error:
            line = text[: error.position].count("\n") + 1 if self.numbered else 0
            raise UserError(
                f"the character {chr(error.character)!a} is not allowed in YAML; "
                f"{Place(self.source, line)}"
            ) from None
        except AssertionError as error:  # ruamel's word on a directive such as %YAML 1.9
            raise UserError(f"not valid YAML: {error}; {self.source}") from None
        return None if node is None else self.build(node, 0)

    def build(self, node: Any, depth: int) -> Any:
        """The value of a node."""
        self.values += 1
        where = self.place(node.start_mark)
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"aliases make this file too large; write the values out; {where}")
        kind = node.tag.removeprefix(_STANDARD)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            items = Items(self.build(item, depth + 1) for item in node.value)
            items.places = tuple(self.place(item.start_mark) for item in node.value)
            return items
        if isinstance(node, ScalarNode) and kind in _READ + _TEXTS:
            return self._scalar(node, kind, where)
        tag = node.tag.replace(_STANDARD, "!!")
        raise UserError(f"the tag {tag} is not read here, leave it out; {where}")

    def _mapping(self, node: MappingNode, depth: int) -> dict[Key, Any]:
        own: dict[Key, Any] = {}
        merged: dict[Key, Any] = {}
        for key_node, value_node in node.value:
            where = self.place(key_node.start_mark)
            if key_node.tag == _STANDARD + "merge":
                several = isinstance(value_node, SequenceNode)
                for source in value_node.value if several else [value_node]:
                    found = self.build(source, depth + 1)
                    if not isinstance(found, dict):
                        raise UserError(f"<<: takes a mapping's alias such as *name; {where}")
                    merged = found | merged
                continue
            if not isinstance(key_node, ScalarNode):
                raise UserError(f"a key must be a word, not a list or a mapping; {where}")
            key = Key.of(self._scalar(key_node, "str", where), where)
            if key in own:
                raise UserError(f"{key}: given twice, keep one; {where}", setting=str(key))
            own[key] = self.build(value_node, depth + 1)
        return {key: value for key, value in merged.items() if key not in own} | own

    def _scalar(self, node: ScalarNode, kind: str, where: Place) -> Any:
        try:
            node.value.encode()  # No file or database can hold half a character.
            return self.yaml.constructor.construct_object(node) if kind in _READ else node.value
        except (ValueError, KeyError, IndexError):
            text = f"{node.value[:40]}…" if len(node.value) > 40 else node.value
            raise UserError(f"{text!a} cannot be read as {kind}; {where}") from None
