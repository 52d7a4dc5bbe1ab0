"""An experiment file → one validated `Experiment`, or one message that says what to mend."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfshot.config.document import (
    Key,
    Location,
    Place,
    place_of,
    read_text,
    read_yaml,
    write_yaml,
)
from selfshot.config.fields import AS_YAML
from selfshot.config.messages import ConfigError, messages_of, shown
from selfshot.config.schema import Experiment
from selfshot.errors import UserError

_KEY = re.compile(r"[^\s.=\[\]{}]+(\.[^\s.=\[\]{}]+)*")
_OF_ITS_OWN = ("name", "description", "sweep")
_WHOLE = (("sweep", "over"), ("sweep", "cases"))


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
    """Validates an experiment's text, called `source` in messages; see `load_experiment`."""
    return checked(layered(read_yaml(text, source), source, overrides), source)


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
    data: Any = {} if path is None else read_yaml(read_text(path), source) or {}
    if isinstance(data, dict) and not {"name", "benchmark"} & data.keys():
        whole = {key: value for key, value in data.items() if key in ("seed", "output")}
        section = {key: value for key, value in data.items() if key not in whole}
        data = {"name": kind, **whole, "benchmark": {"kind": kind} | section}
        if kind == "sprites":
            # Batches of stages that are not meant must not be too large for a small benchmark.
            data["backbone"] = {"classes_per_batch": 2}
            data["encoder"] = {"videos_per_batch": 2, "queue_length": 0}
    experiment = checked(layered(data, source, overrides), source)
    if experiment.benchmark.kind != kind:
        raise UserError(
            f"--config: {source} is about a benchmark of kind {experiment.benchmark.kind}, not "
            f"{kind}; name that kind, or give another file",
            setting="--config",
        )
    return experiment


def layered(data: Any, source: str, overrides: Sequence[str] = ()) -> Any:
    """What a file says, with its base under it and `--set` over it.

    Raises:
        UserError: a layer cannot be read, or does not fit.
    """
    layers = [parse_override(one) for one in overrides]
    if data is None and layers:
        data = {}
    if isinstance(data, dict):
        bases = [one for one in layers if "base" in one]
        data = _over_base(reduce(laid, bases, data), source, (os.path.realpath(source),))
        data = overridden(data, [one for one in layers if one not in bases])
    return data


def overridden(data: dict[str, Any], layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sections of an experiment with others over them, which may change a default benchmark."""
    if "benchmark" not in data:
        data = data | {"benchmark": {"kind": "sprites"}}
    return reduce(laid, layers, data)


def laid(
    under: Mapping[str, Any], over: Mapping[str, Any], at: Location = ()
) -> dict[str, Any]:
    """A section with another over it, which changes the keys that it names.

    One of another `kind`, a list, and a sweep's `over` and `cases` take the place of what was
    there.
    """
    result = dict(under)
    for key, value in over.items():
        below, where = under.get(key), (*at, key)
        if (
            isinstance(value, dict) and isinstance(below, dict) and where not in _WHOLE
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):  # fmt: skip
            result[key] = laid(below, value, where)
        else:
            result.pop(key, None)  # A dict keeps its key where a value is replaced, and its place.
            result[key] = value
    return result


def _over_base(data: dict[str, Any], source: str, above: tuple[str, ...]) -> dict[str, Any]:
    """An experiment laid over its base, if it has one; `above`: itself and what lies over it."""
    base, where = data.get("base"), place_of(data, ("base",))
    data = {key: value for key, value in data.items() if key != "base"}
    if not base:
        return data
    try:
        if not isinstance(base, str):
            raise UserError(f"{shown(base)} is not allowed (an experiment's file)")
        path = Path(source).parent / base
        under = read_yaml(read_text(path), str(path))
        if not isinstance(under, dict):
            raise UserError(f"{path} holds no experiment")
        real = os.path.realpath(path)
        if real in above:
            circle = " → ".join(os.path.basename(one) for one in (*above, real))
            raise UserError(f"{base!r} leads in a circle ({circle}), take one of them out")
    except UserError as error:
        raise UserError(f"base: {error}; {where}", setting="base") from None
    under = {key: value for key, value in under.items() if key not in _OF_ITS_OWN}
    return laid(_over_base(under, str(path), (*above, real)), data)


def parse_override(override: str) -> dict[str, Any]:
    """The layer that `--set a.b.c=value` stands for.

    A value is read as YAML (`3`, `1e-3`, `true`, `[1, 5]`, `{steps: 20}`, empty for null), and
    lists are replaced whole. What reads as no YAML value, such as `a: b`, is plain text.

    Raises:
        UserError: it has no `=`, an odd key, or a value that cannot be read.
    """
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not equals:
        raise UserError(
            f"--set {override}: no '=' in it (write --set key=value, as in --set vis.heads=4)",
            setting="--set",
        )
    if not _KEY.fullmatch(key):
        raise UserError(
            f"--set {override}: {key!r} is not a key (words joined by dots, as in "
            "vis.optimiser.steps; a list is set whole, as in supports.shots=[1,5])",
            setting="--set",
        )
    place = Place(f"--set {override if len(override) <= 80 else override[:79] + '…'}")
    try:
        value = read_yaml(text, str(place), numbered=False)
    except UserError:
        # Brackets and quotes were meant as YAML; anything else is a text with odd marks in it.
        if text[:1] in ("[", "{", "'", '"', "!", "&"):
            raise
        if not text.isprintable():
            raise UserError(
                f"the value holds characters that cannot be printed; {place}", setting="--set"
            ) from None
        value = text
    if isinstance(value, dict | list) and text[:1] not in ("{", "["):
        value = text
    return nested(key, value, place)


def nested(name: str, value: Any, place: Place) -> dict[str, Any]:
    """Sections that say no more than one setting, by its dotted name."""
    for part in reversed(name.split(".")):
        value = {Key.of(part, place): value}
    result: dict[str, Any] = value
    return result


def checked(data: Any, source: str) -> Experiment:
    """The experiment that a file's data say.

    Validated as JSON and strictly: lists become tuples and texts become paths, but `true` is no
    number and "3" no integer.

    Raises:
        UserError: They say none, or there are mistakes in them.
    """
    if data is None:
        raise UserError(f"{source}: empty; an experiment needs at least a name (name: my-study)")
    if not isinstance(data, dict):
        raise UserError(f"{source}: holds {shown(data)}, not keys and values (name: my-study)")
    try:
        text = json.dumps(_filled(data, _defaults()))
        return Experiment.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError.of(messages_of(error, data, source), source) from None


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
