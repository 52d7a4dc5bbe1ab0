"""Whether the files that an experiment reads are there, and its folders can be written."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfshot.config.addresses import is_address, scheme_problem
from selfshot.config.document import place_of
from selfshot.config.messages import ConfigError, Message
from selfshot.config.schema import Experiment

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

_WEIGHTS = "a .safetensors or PyTorch file of weights"


def check_inputs(*experiments: Experiment, data: Any = None) -> None:
    """Looks for the files that experiments read and the folders that they write.

    Args:
        experiments: those of one file; what several of them name is looked for once.
        data: the file's, for the lines of the settings.

    Raises:
        ConfigError: Something is missing or of the wrong kind; all of it in one message.
    """
    found = []
    for experiment in experiments:
        problems = [(one[0], _input_problem(*one)) for one in _inputs(experiment)]
        problems.append(("output", _output_problem(experiment.output, "output")))
        if experiment.storage is not None:
            problems.append(("storage", _storage_problem(experiment.storage)))
        for name, problem in problems:
            if problem:
                place = place_of(data, tuple(name.split(".")), exact=True)
                found.append(Message(name, problem, place))
    if found:
        raise ConfigError.of(found, experiments[0].name, "paths are wrong")


def _storage_problem(storage: str) -> str | None:
    # Whether an address answers is asked when the run begins.
    if is_address(storage):
        return scheme_problem("storage", storage)
    return _output_problem(Path(storage), "storage")


def _inputs(experiment: Experiment) -> Iterator[tuple[str, Path, str, bool]]:
    """Setting, path, what is wanted, and whether a folder."""
    named = [
        (f"benchmark.{name}", getattr(experiment.benchmark, name, None), wanted, folder)
        for name, (wanted, folder) in _INPUTS.items()
    ]
    initial = "the vis.safetensors that an earlier training exported"
    named += [
        ("backbone.weights", experiment.backbone.weights, _WEIGHTS, False),
        ("vis.initial", experiment.vis.initial, initial, False),
        ("encoder.weights", experiment.encoder.weights, _WEIGHTS, False),
    ]
    for name, value, wanted, folder in named:
        # What lies behind an address is looked at by the builder, which has to go there anyway.
        if value is not None and not is_address(str(value)):
            yield name, Path(value), wanted, folder


def _input_problem(name: str, path: Path, wanted: str, folder: bool) -> str | None:
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


def _output_problem(output: Path, name: str) -> str | None:
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
