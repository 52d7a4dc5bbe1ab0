"""An experiment file → one validated `Experiment`, or one message that says what to mend."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfshot.config.allowed import editor_rule, shown, with_defaults
from selfshot.config.complaints import complaints_of, fail
from selfshot.config.document import (
    MAX_BYTES,
    Complaint,
    Document,
    read_document,
    write_yaml,
)
from selfshot.config.overrides import apply_overrides
from selfshot.config.paths import escape_paths, expand_paths
from selfshot.config.scales import apply_scale, names_scale
from selfshot.config.schema import Experiment
from selfshot.errors import UserError


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads, changes and validates an experiment.

    Relative paths inside the file start at the current working directory, not at the file, so
    that one file serves several checkouts. In fields that hold a path, `~`, `$NAME`, `${NAME}`
    and `${NAME:-default}` are filled in; `$$` is a dollar sign.

    Args:
        path: The YAML file.
        overrides: `key=value` strings, as `--set` takes them; later ones win.

    Raises:
        UserError: The file, or an override, is wrong; all mistakes are in one message.
    """
    source = str(path)
    return parse_experiment(read_text(Path(path)), source, overrides)


def parse_experiment(text: str, source: str, overrides: Sequence[str] = ()) -> Experiment:
    """Validates an experiment's text; see `load_experiment`.

    Args:
        text: The YAML.
        source: What messages call it.
        overrides: `key=value` strings.

    Raises:
        UserError: As `load_experiment`.
    """
    return checked(read_experiment(text, source, overrides), source)


def read_experiment(text: str, source: str, overrides: Sequence[str] = ()) -> Document:
    """What an experiment's text says with its scale and overrides applied, not yet validated."""
    document = read_document(text, source)
    apply_scale(document, overrides, source, read_text)
    apply_overrides(document, [one for one in overrides if not names_scale(one)])
    return document


def load_builder(kind: str, path: Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """Reads what `selfshot benchmark build KIND --config FILE.yaml` builds.

    Args:
        kind: Of the benchmark.
        path: An experiment with a benchmark of that kind; or only the keys of such a section,
            with `seed` and `output` beside them if wanted. None: all defaults.
        overrides: As in `load_experiment`, with the dotted paths of an experiment.

    Returns:
        An experiment of which only the benchmark is meant.

    Raises:
        UserError: As `load_experiment`; or the file is about another kind.
    """
    source = "the defaults" if path is None else str(path)
    document = read_document("" if path is None else read_text(path), source)
    if document.data is None:
        document.data = {}
    if isinstance(document.data, dict) and not {"name", "benchmark"} & set(document.data):
        _check_kind(document.data.get("kind", kind), kind, source)
        _wrap(document, kind)
    apply_overrides(document, overrides)
    experiment = checked(document, source)
    _check_kind(experiment.benchmark.kind, kind, source)
    return experiment


def _check_kind(said: object, kind: str, source: str) -> None:
    if said != kind:
        raise UserError(
            f"--config: {source} is about a benchmark of kind {said}, not {kind}; name that kind, "
            "or give another file"
        )


def _wrap(document: Document, kind: str) -> None:
    """Makes an experiment of the keys of a benchmark's section."""
    outer = {key: document.data.pop(key) for key in ("seed", "output") if key in document.data}
    whole = document.place_of(())
    document.places = {
        location if location[:1] and location[0] in outer else ("benchmark", *location): place
        for location, place in document.places.items()
    } | {(): whole}
    section = {"kind": kind, **document.data}
    document.data = {"name": kind, **outer, "benchmark": section}
    if kind == "sprites":
        # Batches of stages that are not meant must not be too large for a small benchmark.
        document.data["backbone"] = {"classes_per_batch": 2}
        document.data["encoder"] = {"videos_per_batch": 2, "queue_length": 0}


def checked(document: Document, source: str) -> Experiment:
    """The experiment that a document says; its paths are filled in.

    Raises:
        UserError: It says none, or there are mistakes in it.
    """
    if document.data is None:
        raise UserError(f"{source}: empty; an experiment needs at least a name (name: my-study)")
    if not isinstance(document.data, dict):
        raise UserError(
            f"{source}: holds {shown(document.data)}, not keys and values (name: my-study)"
        )
    complaints = document.complaints + expand_paths(document)
    experiment = _validate(document, complaints)
    if complaints or experiment is None:
        raise fail(complaints, source)
    return experiment


def json_schema() -> dict[str, Any]:
    """The schema that editors complete and check experiment files with."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **editor_rule()}


def resolved_yaml(experiment: Experiment) -> str:
    """The whole experiment, defaults included, as YAML that loads as the same experiment."""
    return write_yaml(escape_paths(experiment.model_dump(mode="json")))


def _validate(document: Document, complaints: list[Complaint]) -> Experiment | None:
    """Adds what is wrong to `complaints`.

    A section changes the keys that it names and no others. Validated as JSON and strictly: lists
    become tuples and texts become paths, but `true` is no number and "3" no integer.
    """
    try:
        return Experiment.model_validate_json(json.dumps(with_defaults(document.data)), strict=True)
    except ValidationError as error:
        complaints += complaints_of(error, document)
        return None


def read_text(path: Path) -> str:
    """The text of an experiment's file, or a `UserError` that says what is wrong with it."""
    try:
        if not str(path).isprintable():
            raise UserError(f"{str(path)!r}: not a path (it holds unprintable characters)")
        if not path.exists():
            raise UserError(f"{path}: no such file{_neighbour(path)}")
        if path.is_dir():
            raise UserError(f"{path}: a folder, not an experiment file{_inside(path)}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size} bytes; an experiment has at most {MAX_BYTES}")
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
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise UserError(
            f"the byte 0x{byte:02x} is not UTF-8, save the file as UTF-8; {path}, line {line}"
        ) from None


def _neighbour(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    files = {found.stem: found.name for found in folder.iterdir() if found.suffix == ".yaml"}
    close = difflib.get_close_matches(path.stem, files, 1, 0.6)
    return (
        f", did you mean {folder / files[close[0]]}?"
        if close
        else " (experiments are in experiments/)"
    )


def _inside(path: Path) -> str:
    names = sorted(str(found) for found in path.glob("*.yaml"))
    return f", such as {names[0]}" if names else ""
