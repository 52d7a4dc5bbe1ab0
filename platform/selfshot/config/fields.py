"""What sections are made of: their base, their numbers, and their paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
)

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]

AS_YAML = "as yaml"
"""Context of a dump whose paths are to be read again: what would be filled in is escaped."""

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}|(?P<odd>))",
    re.ASCII,
)


def expand_path(text: str) -> str:
    """One path with its home folder and environment variables filled in.

    Raises:
        ValueError: A variable is not set and has no default, or the text can be no path.
    """

    def fill(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["odd"] is not None:
            raise ValueError(f"{text!r} has a lone '$' (write $NAME, ${{NAME:-default}} or $$)")
        name = match["plain"] or match["name"]
        value = os.environ.get(name) or match["default"]
        if value is None:
            raise ValueError(
                f"{text!r} needs the environment variable {name}, which is not set "
                f"(export {name}=…, or write ${{{name}:-default}})"
            )
        return value

    filled = os.path.expanduser(_VARIABLE.sub(fill, text))
    if not filled or not filled.isprintable():
        raise ValueError(f"{text!r} is not allowed (a path)")
    return filled


def _read(value: object) -> object:
    return expand_path(value) if isinstance(value, str) else value


def _written(path: Path | str, info: SerializationInfo) -> str:
    if info.context != AS_YAML:
        return str(path)
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


FilePath = Annotated[Path, BeforeValidator(_read), PlainSerializer(_written, when_used="json")]
PathText = Annotated[
    str,
    Field(min_length=1, json_schema_extra={"format": "path"}),
    BeforeValidator(_read),
    PlainSerializer(_written, when_used="json"),
]
"""A path, or the address of a folder elsewhere; a `Path` would lose a slash of `s3://`."""


class Section(BaseModel):
    """A frozen part of an experiment that accepts no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
