"""Paths in experiments: variables filled in before validation, existence checked after it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfshot.config.addresses import is_address as is_address
from selfshot.config.addresses import scheme_problem
from selfshot.config.allowed import Rule, experiment_rule, is_path, keys_of, resolve
from selfshot.config.document import Complaint, Document, Location, dotted
from selfshot.config.schema import Experiment
from selfshot.errors import UserError

_INPUTS: dict[str, tuple[str, bool]] = {
    "annotations": ("a JSON of annotated videos", False),
    "extra_annotations": ("a YouTube-VIS JSON", False),
    "eval_annotations": ("a COCO instances JSON", False),
    "frames": ("a folder of frames", True),
    "eval_frames": ("a folder of images", True),
    "masks": ("a folder of indexed PNGs", True),
    "classes": ("a CSV with columns sequence, object, class", False),
    "corpus": ("a folder of clips", True),
    "corpus_labels": ("a CSV with columns clip, rough_label", False),
    "segments": ("a CSV with columns clip, start_s", False),
}
"""Settings of a benchmark that name what must be there: what is wanted, and whether a folder."""

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}|(?P<odd>))",
    re.ASCII,
)


def expand_paths(document: Document) -> list[Complaint]:
    """Fills `~` and `$NAME` in where the schema wants a path; returns what could not be."""
    complaints: list[Complaint] = []

    def expand(text: str, location: Location) -> str:
        try:
            return expand_path(text)
        except UserError as error:
            place = document.place_of(location)
            complaints.append(Complaint(f"{dotted(location)}: {error}", place))
            return text

    document.data = _map_paths(document.data, experiment_rule(), (), expand)
    return complaints


def escape_paths(data: Any) -> Any:
    """Protects what `expand_paths` would change in paths that are complete already."""

    def escape(text: str, location: Location) -> str:
        text = text.replace("$", "$$")
        return f"./{text}" if text.startswith("~") else text

    return _map_paths(data, experiment_rule(), (), escape)


def expand_path(text: str) -> str:
    """One path with its home folder and environment variables filled in.

    Raises:
        UserError: A variable is not set and has no default, or the text can be no path.
    """

    def fill(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["odd"] is not None:
            raise UserError(f"{text!r} has a lone '$' (write $NAME, ${{NAME:-default}} or $$)")
        name = match["plain"] or match["name"]
        value = os.environ.get(name) or match["default"]
        if value is None:
            raise UserError(
                f"{text!r} needs the environment variable {name}, which is not set "
                f"(export {name}=…, or write ${{{name}:-default}})"
            )
        return value

    filled = os.path.expanduser(_VARIABLE.sub(fill, text))
    if not filled or not filled.isprintable():
        raise UserError(f"{text!r} is not allowed (a path)")
    return filled


def check_inputs(experiment: Experiment) -> None:
    """Looks for the files that an experiment reads and the folder that it writes.

    Raises:
        UserError: Something is missing or of the wrong kind; all of it in one message.
    """
    problems = [_output_problem(experiment.output)]
    if experiment.storage is not None:
        # Whether it answers is asked when the run begins.
        problems.append(
            scheme_problem("storage", experiment.storage)
            if is_address(experiment.storage)
            else _output_problem(Path(experiment.storage), "storage")
        )
    for name, (wanted, folder) in _INPUTS.items():
        value = getattr(experiment.benchmark, name, None)
        # What lies behind an address is looked at by the builder, which has to go there anyway.
        if value is None or (isinstance(value, str) and is_address(value)):
            continue
        problems.append(_input_problem(f"benchmark.{name}", Path(value), wanted, folder))
    weights = experiment.backbone.weights
    if weights is not None:
        wanted = "a .safetensors or PyTorch file of weights"
        problems.append(_input_problem("backbone.weights", weights, wanted))
    if experiment.vis.initial is not None:
        wanted = "the vis.safetensors that an earlier training exported"
        problems.append(_input_problem("vis.initial", experiment.vis.initial, wanted))
    given = experiment.encoder.weights
    if given is not None and not is_address(given):
        wanted = "a .safetensors or PyTorch file of weights"
        problems.append(_input_problem("encoder.weights", Path(given), wanted))
    found = [problem for problem in problems if problem]
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        lines = [f"{experiment.name}: {len(found)} paths are wrong", *found]
        raise UserError("\n  ".join(lines))


def _input_problem(name: str, path: Path, wanted: str, folder: bool = False) -> str | None:
    try:
        if path.is_dir() if folder else path.is_file():
            return None if os.access(path, os.R_OK) else f"{name}: {path} may not be read"
        if path.exists():
            return f"{name}: {path} is a {'file' if folder else 'folder'} (allowed: {wanted})"
    except OSError as error:
        return f"{name}: {path} cannot be looked at: {error.strerror}"
    start = "" if path.is_absolute() else f"; relative paths start at {Path.cwd()}"
    return f"{name}: {path} does not exist (allowed: {wanted}{start}){_nearest_path(path)}"


def _nearest_path(path: Path) -> str:
    """The deepest folder that does exist, and the likely name in it."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    try:
        names = os.listdir(missing.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, names, 1, 0.6)
    if close:
        return f", did you mean {missing.parent / close[0]}?"
    return f", {missing.parent} holds no {missing.name}" if missing != path else ""


def _output_problem(output: Path, name: str = "output") -> str | None:
    folder = output
    try:
        while not folder.exists() and folder.parent != folder:
            folder = folder.parent
        if not folder.is_dir():
            return f"{name}: {folder} is a file (allowed: a folder, made if need be)"
    except OSError as error:
        return f"{name}: {output} cannot be looked at: {error.strerror}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{name}: {folder} may not be written (choose another with --set {name}=…)"
    return None


def _map_paths(
    data: Any, rule: Rule, location: Location, change: Callable[[str, Location], str]
) -> Any:
    """A copy of `data` with every text that the schema calls a path changed."""
    rule = resolve(rule)
    if isinstance(data, str):
        return change(data, location) if is_path(rule) else data
    if not isinstance(data, dict):
        return data
    kinds = rule.get("discriminator", {}).get("mapping", {})
    if kinds:
        kind = data.get("kind")
        rule = {"$ref": kinds[kind]} if isinstance(kind, str) and kind in kinds else {}
    known = keys_of(rule)
    return {
        key: _map_paths(value, known[key], (*location, key), change) if key in known else value
        for key, value in data.items()
    }
