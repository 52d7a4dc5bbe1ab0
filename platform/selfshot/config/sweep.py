"""`sweep:`: one experiment's file → the experiments of all its trials, each validated."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from selfshot.config.document import Document, Location, Place, dotted, read_document, read_text
from selfshot.config.fields import Section
from selfshot.config.layers import lay, put_override
from selfshot.config.load import checked
from selfshot.config.messages import (
    ConfigError,
    Message,
    messages_of,
    nearest,
    same_name,
    setting_names,
    shown,
)
from selfshot.config.schema import Experiment
from selfshot.config.studies import SweepConfig
from selfshot.errors import UserError

MAX_TRIALS = 10_000
CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_OF_THE_STUDY = (
    "name", "description", "output", "sweep", "base", "scale", "scales", "tracking", "report"
)  # fmt: skip
_OVER, _CASES = ("sweep", "over"), ("sweep", "cases")

Written = tuple[Any, Place]
"""A value, and where it was written."""


@dataclass(frozen=True)
class Trial:
    """One point of a sweep.

    Attributes:
        case: its name in `sweep.cases`; empty if there are none.
        point: dotted setting → value of what the sweep's axes change.
        settings: the same with what the case changes.
        repeat: which repetition, from 0.
        repeats: how many there are.
        experiment: all settings, valid, without a sweep.
    """

    case: str
    point: dict[str, Any]
    settings: dict[str, Any]
    repeat: int
    repeats: int
    experiment: Experiment

    @property
    def name(self) -> str:
        """What people call all repetitions of it: the case and the point."""
        parts = [self.case] if self.case else []
        parts += [
            f"{name.rpartition('.')[2]}={value if isinstance(value, str) else shown(value)}"
            for name, value in self.point.items()
        ]
        return ", ".join(parts or ["as it stands"])

    @property
    def label(self) -> str:
        """What people call this trial alone."""
        return f"{self.name} #{self.repeat + 1}" if self.repeats > 1 else self.name


@dataclass(frozen=True)
class Study:
    """An experiment's file, with the trials of its sweep; a plain experiment has none.

    Attributes:
        experiment: what the file says; what the trials start from.
        trials: every one of them valid.
        document: the file, for the lines of its settings.
    """

    experiment: Experiment
    trials: tuple[Trial, ...]
    document: Document = field(default_factory=lambda: Document({}), compare=False, repr=False)

    @property
    def experiments(self) -> list[Experiment]:
        """Those of the trials; of a plain experiment, it alone."""
        return [trial.experiment for trial in self.trials] or [self.experiment]


def load_study(path: str | Path, overrides: Sequence[str] = (), *, trials: bool = True) -> Study:
    """Reads an experiment with its sweep, and validates every trial.

    Args:
        path: the YAML file.
        overrides: `key=value` strings, as `--set` takes them.
        trials: whether the sweep's trials are wanted.

    Raises:
        UserError: the file, an override or a trial is wrong; all mistakes are in one message.
    """
    return parse_study(read_text(Path(path)), str(path), overrides, trials=trials)


def parse_study(
    text: str, source: str, overrides: Sequence[str] = (), *, trials: bool = True
) -> Study:
    """Validates the text of an experiment and of its sweep; see `load_study`."""
    document = lay(read_document(text, source), source, overrides)
    base = checked(document, source)
    if not trials or not base.sweep.is_study:
        return Study(base, (), document)
    messages = [*_wrong_keys(document, base.sweep)]
    axes = {} if messages else _axes(document, base.sweep, messages)
    if messages:
        raise ConfigError.of(messages, source)
    return Study(base, tuple(_trials(document, base, axes, source)), document)


def _flat(
    section: Mapping[str, Any], at: Location, within: str = ""
) -> Iterator[tuple[str, Any, Location]]:
    """Settings by their dotted names, whether a file writes them dotted or nested in sections."""
    for key, value in section.items():
        name, location = within + key, (*at, key)
        if isinstance(value, Mapping) and setting_names().get(name):
            yield from _flat(value, location, f"{name}.")
        else:
            yield name, value, location


def _wrong_keys(document: Document, sweep: SweepConfig) -> Iterator[Message]:
    """Settings that are swept, and cannot be."""

    def wrong(location: Location, text: str) -> Message:
        name = dotted(location)
        return Message(name, f"{name}{text}", document.place_of(location))

    over = {name: location for name, _, location in _flat(sweep.over, _OVER)}
    named = [(location, name) for name, location in over.items()]
    for case, changes in sweep.cases.items():
        if not CASE.fullmatch(case):
            text = f"sweep.cases: {case!r} is not allowed (letters, digits and . _ + -)"
            yield Message("sweep.cases", text, document.place_of((*_CASES, case)))
        named += [(location, name) for name, _, location in _flat(changes, (*_CASES, case))]
    if sweep.repeat > 1:
        named.append((("sweep", "repeat_setting"), sweep.repeat_setting))
    if sweep.stopping.budgets:
        named.append((("sweep", "stopping", "setting"), sweep.stopping.setting))
    for location, name in named:
        # Where the place names no setting, the setting follows it.
        its = "" if dotted(location).endswith(name) else f": {name!r}"
        if name.partition(".")[0] in _OF_THE_STUDY:
            yield wrong(location, f"{its}: belongs to the whole study, and cannot be swept")
        elif name not in setting_names():
            meant = same_name(name.rpartition(".")[2]) or nearest(name, sorted(setting_names()))
            hint = f", did you mean {meant}?" if meant else ""
            yield wrong(location, f"{its}: no setting of an experiment{hint}")
    if sweep.repeat > 1 and sweep.repeat_setting in over:
        text = ": is what sweep.repeat counts up; take one of them"
        yield wrong(over[sweep.repeat_setting], text)


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PydanticCustomError("number", "should be a number")
    return value


Number = Annotated[float, PlainValidator(_number)]
"""A number that stays an integer if it is written as one."""


class _Range(Section):
    """A range of numbers: `{from, to, step}` or `{from, to, count, scale: linear|log}`."""

    low: Number = Field(alias="from")
    high: Number = Field(alias="to")
    step: Number | None = None
    count: int | None = Field(None, ge=2, le=MAX_TRIALS)
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _together(self, info: ValidationInfo) -> _Range:
        if not self.low < self.high:
            raise ValueError(f"from: {self.low} is not below to: {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"from: {self.low} is not allowed on a log scale (a number > 0)")
        if info.context == "grid" and (self.step is None) == (self.count is None):
            raise ValueError("step: a range needs either step or count")
        if self.step is not None and (self.scale == "log" or self.step <= 0):
            raise ValueError("step: needs scale: linear and a number > 0 (on a log scale, count)")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers, as its ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """The number at a share of the way from one end to the other."""
        value = (
            self.low * (self.high / self.low) ** share
            if self.scale == "log"
            else self.low + (self.high - self.low) * share
        )
        return round(value) if self.whole else float(f"{value:.12g}")

    def values(self) -> list[float]:
        """All that `step` or `count` give."""
        if self.step is None:
            parts = (self.count or 2) - 1
            return list(dict.fromkeys(self.at(i / parts) for i in range(parts + 1)))
        steps = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        values = [self.low + i * self.step for i in range(min(steps, MAX_TRIALS + 1))]
        return [float(f"{one:.12g}") if isinstance(one, float) else one for one in values]


_Axis = list[Written] | tuple[_Range, Place]
"""The values of one setting; or the range that they are drawn from, and where it was written."""


def _axes(document: Document, sweep: SweepConfig, messages: list[Message]) -> dict[str, _Axis]:
    axes: dict[str, _Axis] = {}
    for name, value, location in _flat(sweep.over, _OVER):
        place, problem = document.place_of(location), None
        if isinstance(value, Mapping):
            try:
                found = _Range.model_validate(value, strict=True, context=sweep.method)
            except ValidationError as error:
                messages += messages_of(error, document, location, _Range)
                continue
            drawn = sweep.method == "random"
            axes[name] = (found, place) if drawn else [(one, place) for one in found.values()]
        elif isinstance(value, list | tuple):
            axes[name] = [(one, document.place_of((*location, i))) for i, one in enumerate(value)]
            if not value:
                problem = "an empty list is not allowed (at least one value)"
            elif len({repr(one) for one in value}) < len(value):
                problem = f"{shown(list(value))} names a value twice"
        else:
            problem = (
                f"{shown(value)} is not allowed (a list of values, or a range such as "
                "{from: 1, to: 9, step: 2})"
            )
        if problem:
            messages.append(Message(dotted(location), f"{dotted(location)}: {problem}", place))
    return axes


def _points(sweep: SweepConfig, axes: Mapping[str, _Axis], seed: int) -> list[dict[str, Written]]:
    """What the axes say, as setting → value and place, for each point."""
    if sweep.method == "random":
        rng = random.Random(f"sweep {seed}")
        return [
            {
                key: rng.choice(axis)
                if isinstance(axis, list)
                else (axis[0].at(rng.random()), axis[1])
                for key, axis in axes.items()
            }
            for _ in range(sweep.samples)
        ]
    lists = [axis for axis in axes.values() if isinstance(axis, list)]
    total = math.prod(map(len, lists))
    if total > MAX_TRIALS:
        raise UserError(
            f"sweep.over: {total} combinations (allowed: at most {MAX_TRIALS})",
            setting="sweep.over",
        )
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*lists)]


def _trials(
    document: Document, base: Experiment, axes: Mapping[str, _Axis], source: str
) -> list[Trial]:
    sweep = base.sweep
    points = _points(sweep, axes, base.seed)
    cases: Mapping[str, Mapping[str, Any]] = sweep.cases or {"": {}}
    total = len(points) * len(cases) * sweep.repeat
    if total > MAX_TRIALS:
        raise UserError(
            f"sweep: {total} trials (allowed: at most {MAX_TRIALS}); {source}", setting="sweep"
        )
    plain = {key: value for key, value in document.data.items() if key != "sweep"}
    trials, problems = [], dict[str, None]()
    for case, changes in cases.items():
        of_case = {
            name: (value, document.place_of(location))
            for name, value, location in _flat(changes, (*_CASES, case))
        }
        for point, repeat in itertools.product(points, range(sweep.repeat)):
            settings = of_case | point
            try:
                made = _trial(Document(plain, document.places), settings, sweep, repeat, source)
            except UserError as error:
                problems[str(error)] = None
                continue
            values = {name: value for name, (value, _) in settings.items()}
            own = {name: value for name, (value, _) in point.items()}
            trials.append(Trial(case, own, values, repeat, sweep.repeat, made))
    if problems:
        raise ConfigError("\n".join(problems))
    return trials


def _trial(
    plain: Document,
    settings: Mapping[str, Written],
    sweep: SweepConfig,
    repeat: int,
    source: str,
) -> Experiment:
    """One trial's experiment."""

    def made(changes: Mapping[str, Written]) -> Experiment:
        document = Document(deepcopy(plain.data), dict(plain.places))
        for name, (value, place) in changes.items():
            put_override(document, tuple(name.split(".")), deepcopy(value), place)
        return checked(document, source)

    def whole(key: str, name: str) -> int:
        value: Any = experiment
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(
                f"{key}: {name!r} is not allowed (a setting that is a whole number); "
                f"{plain.place_of(tuple(key.split('.')))}",
                setting=key,
            )
        return value

    experiment, budgets = made(settings), sweep.stopping.budgets
    if budgets:
        # The shortest budget must be possible too; the trial is that of the longest.
        name = sweep.stopping.setting
        whole("sweep.stopping.setting", name)
        place = Place(f"sweep.stopping.budgets, {source}")
        made({**settings, name: (budgets[0], place)})
        settings = {**settings, name: (budgets[-1], place)}
        experiment = made(settings)
    if sweep.repeat > 1:
        first = whole("sweep.repeat_setting", sweep.repeat_setting)
        place = Place(f"sweep.repeat, {source}")
        if repeat:
            return made({**settings, sweep.repeat_setting: (first + repeat, place)})
    return experiment
