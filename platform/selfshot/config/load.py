"""An experiment file → one validated `Experiment`, or one message that says what to mend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfshot.config.document import Document, read_document, read_text, write_yaml
from selfshot.config.fields import AS_YAML
from selfshot.config.layers import lay
from selfshot.config.messages import ConfigError, messages_of, shown
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
    return parse_experiment(read_text(Path(path)), str(path), overrides)


def parse_experiment(text: str, source: str, overrides: Sequence[str] = ()) -> Experiment:
    """Validates an experiment's text; see `load_experiment`.

    Args:
        text: The YAML.
        source: What messages call it; a `base` is looked for beside it.
        overrides: `key=value` strings.

    Raises:
        UserError: As `load_experiment`.
    """
    return checked(lay(read_document(text, source), source, overrides), source)


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
    document = read_document("{}" if path is None else read_text(path), source)
    if document.data is None:
        document.data = {}
    if isinstance(document.data, dict) and not {"name", "benchmark"} & set(document.data):
        _check_kind(document.data.get("kind", kind), kind, source)
        _wrap(document, kind)
    experiment = checked(lay(document, source, overrides), source)
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
    """The experiment that a document says.

    Validated as JSON and strictly: lists become tuples and texts become paths, but `true` is no
    number and "3" no integer.

    Raises:
        UserError: It says none, or there are mistakes in it.
    """
    if document.data is None:
        raise UserError(f"{source}: empty; an experiment needs at least a name (name: my-study)")
    if not isinstance(document.data, dict):
        raise UserError(
            f"{source}: holds {shown(document.data)}, not keys and values (name: my-study)"
        )
    data = _filled(document.data, _defaults())
    try:
        return Experiment.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ConfigError.of(messages_of(error, document), source) from None


@cache
def _defaults() -> dict[str, Any]:
    """What sections say that are left out; a benchmark's depend on its kind."""
    return Experiment(name="x").model_dump(mode="json", exclude={"name", "benchmark"})


def _filled(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A section with its own place's defaults for what it does not name.

    An optimiser, for one, has other defaults in each stage, and no default by itself: without
    this, naming one of its keys would lose all the others.
    """
    return defaults | {
        key: _filled(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in data.items()
    }


def json_schema() -> dict[str, Any]:
    """The schema that editors complete and check experiment files with."""
    root = Experiment.model_json_schema()
    for section in [root, *root["$defs"].values()]:
        for rule in section["properties"].values():
            # A section's default meets its requirements, so that its keys may be left out.
            if "$ref" in rule and "default" in rule:
                root["$defs"][rule["$ref"].rsplit("/", 1)[1]].pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root}


def resolved_yaml(experiment: Experiment) -> str:
    """The whole experiment, defaults included, as YAML that loads as the same experiment."""
    return write_yaml(experiment.model_dump(mode="json", context=AS_YAML))
