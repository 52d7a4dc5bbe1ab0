"""Whether the files that an experiment reads are there, and its folders can be written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfshot.config.addresses import is_address, scheme_problem
from selfshot.config.document import likely_path, place_of
from selfshot.config.fields import Section
from selfshot.config.messages import ConfigError, Message
from selfshot.config.schema import Experiment

_TEXTS = ("benchmark.corpus", "encoder.weights", "backbone.weights")
"""Settings that are a path or an address, and so are no `Path`."""


def check_inputs(*experiments: Experiment, data: Any = None) -> None:
    """Looks for the files that experiments read and the folders that they write.

    Args:
        experiments: those of one file; what several of them name is reported once.
        data: the file's, for the lines of the settings.

    Raises:
        ConfigError: Something is missing or of the wrong kind; all of it in one message.
    """
    found = [
        Message(name, f"{name}: {problem}", place_of(data, _steps(name), exact=True))
        for name, problem in dict.fromkeys(one for each in experiments for one in _problems(each))
        if problem
    ]
    if found:
        raise ConfigError.of(found, experiments[0].name, "paths are wrong")


def _problems(experiment: Experiment) -> Iterator[tuple[str, str | None]]:
    yield "output", _output_problem(experiment.output, "output")
    storage = experiment.storage
    if storage is not None:
        # Whether an address answers is tried when the run begins.
        there = is_address(storage)
        problem = scheme_problem(storage) if there else _output_problem(Path(storage), "storage")
        yield "storage", problem
    yield from _inputs(experiment)


def _steps(name: str) -> tuple[str | int, ...]:
    """`sources[0].images` as the steps to it."""
    steps = re.findall(r"[^.\[\]]+", name)
    return tuple(int(step) if step.isdecimal() else step for step in steps)


def _inputs(section: Section, within: str = "") -> Iterator[tuple[str, str | None]]:
    """What is wrong with each setting that names a file; its description says what is wanted."""
    for field, info in type(section).model_fields.items():
        name, value = within + field, getattr(section, field)
        if isinstance(value, Section):
            yield from _inputs(value, f"{name}.")
        elif isinstance(value, tuple) and any(isinstance(one, Section) for one in value):
            for index, one in enumerate(value):
                yield from _inputs(one, f"{name}[{index}].")
        elif name == "output" or is_address(str(value)):
            continue  # Behind an address looks the builder, which has to go there anyway.
        elif isinstance(value, Path) or (value and value != "random" and name in _TEXTS):
            yield name, _input_problem(Path(value), str(info.description))


def _input_problem(path: Path, wanted: str) -> str | None:
    folder = "folder" in wanted
    try:
        if path.is_dir() if folder else path.is_file():
            return None if os.access(path, os.R_OK) else f"{path} may not be read"
        if path.exists():
            return f"{path} is a {'file' if folder else 'folder'} (allowed: {wanted})"
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    start = "" if path.is_absolute() else f"; relative paths start at {Path.cwd()}"
    return f"{path} does not exist (allowed: {wanted}{start}){likely_path(path)}"


def _output_problem(output: Path, name: str) -> str | None:
    folder = output
    try:
        while not folder.exists() and folder.parent != folder:
            folder = folder.parent
        if not folder.is_dir():
            return f"{folder} is a file (allowed: a folder, made if need be)"
    except OSError as error:
        return f"{output} cannot be looked at: {error.strerror}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} may not be written (choose another with --set {name}=…)"
    return None
