"""`sweep:`: one experiment's file → the experiments of all its trials, each validated."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

from selfshot.config.document import Items, Place, place_of, read_text, read_yaml
from selfshot.config.load import checked, layered, nested, overridden
from selfshot.config.messages import ConfigError, Message, shown
from selfshot.config.schema import Experiment
from selfshot.errors import UserError

MAX_TRIALS = 10_000
CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
DRAWS = ("uniform", "loguniform", "randint", "choice")
"""Named and bounded as Ray Tune's. Drawn before Tune begins: what a trial reads, and whether it is
done, follows from its settings."""
_OF_THE_STUDY = ("name", "description", "output", "sweep", "base", "tracking", "report")

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
        data: the file's, which know the lines of its settings.
    """

    experiment: Experiment
    trials: tuple[Trial, ...]
    data: Any = field(default=None, compare=False, repr=False)

    @property
    def experiments(self) -> list[Experiment]:
        """Those of the trials; of a plain experiment, it alone."""
        return [trial.experiment for trial in self.trials] or [self.experiment]

    @property
    def budgets(self) -> tuple[int, ...]:
        """Values of `sweep.asha.setting` at which trials are compared; empty: they are not."""
        rule = self.experiment.sweep.asha
        if rule is None:
            return ()
        most: int = value_of(self.experiment, rule.setting)
        rungs = itertools.count()
        below = (rule.grace_period * rule.reduction_factor**rung for rung in rungs)
        return (*itertools.takewhile(lambda one: one < most, below), most)


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
    data = layered(read_yaml(text, source), source, overrides)
    base = checked(data, source)
    if not trials or not base.sweep.is_study:
        return Study(base, (), data)
    return Study(base, tuple(_trials(data, base, source)), data)


def value_of(experiment: Experiment, name: str) -> Any:
    """The value of a setting by its dotted name; None if there is none of that name."""
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _flat(section: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any, Place]]:
    """Settings by their dotted names, whether a file writes them dotted or nested in sections."""
    for key, value in section.items():
        name = within + key
        if isinstance(value, dict) and value and value.keys().isdisjoint(DRAWS):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value, key.place


def _draw(rng: random.Random, kind: str, bounds: Any) -> Any:
    if kind == "choice":
        return rng.choice(bounds)
    low, high = bounds
    if not low < high:
        raise ValueError
    if kind == "randint":
        return rng.randrange(index(low), index(high))
    log = kind == "loguniform"
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return float(f"{value:.6g}")


_Axis = list[Written] | tuple[str, Any, Place]
"""The values of one setting; or the distribution that they are drawn from."""


def _axes(over: Mapping[Any, Any], messages: list[Message]) -> dict[str, _Axis]:
    axes: dict[str, _Axis] = {}
    for name, value, place in _flat(over):
        problem = None
        if isinstance(value, Items) and value:
            axes[name] = list(zip(value, value.places, strict=True))
            if len({repr(one) for one in value}) < len(value):
                problem = f"{shown(value)} names a value twice"
        else:
            try:
                ((kind, bounds),) = value.items()
                _draw(random.Random(0), kind, bounds)
                axes[name] = (kind, bounds, place)
            except (AttributeError, TypeError, ValueError, IndexError, KeyError):
                problem = (
                    f"{shown(value)} is not allowed (a list of values; one of {', '.join(DRAWS)} "
                    "and its bounds, such as {uniform: [0.1, 0.9]})"
                )
        if problem:
            at = f"sweep.over.{name}"
            messages.append(Message(at, f"{at}: {problem}", place))
    return axes


def _points(axes: Mapping[str, _Axis], samples: int, seed: int) -> list[dict[str, Written]]:
    """What the axes say, as setting → value and place: lists make a grid, each point is drawn."""
    rng = random.Random(f"sweep {seed}")
    lists = {name: axis for name, axis in axes.items() if isinstance(axis, list)}
    draws = {name: axis for name, axis in axes.items() if not isinstance(axis, list)}
    times = samples if draws else 1
    _refuse_many(times * math.prod(map(len, lists.values())), "sweep.over", "combinations")
    points = []
    for chosen in itertools.product(*lists.values()):
        for _ in range(times):
            drawn = {
                name: (_draw(rng, kind, bounds), place)
                for name, (kind, bounds, place) in draws.items()
            }
            point = dict(zip(lists, chosen, strict=True)) | drawn
            points.append({name: point[name] for name in axes})
    return points


def _refuse_many(total: int, setting: str, what: str) -> None:
    if total > MAX_TRIALS:
        raise UserError(
            f"{setting}: {total} {what} (allowed: at most {MAX_TRIALS})", setting=setting
        )


def _trials(data: dict[str, Any], base: Experiment, source: str) -> list[Trial]:
    sweep, written = base.sweep, data.get("sweep", {})
    messages: list[Message] = []
    over = written.get("over", {})
    axes = _axes(over, messages)
    cases = {
        key: {name: (value, place) for name, value, place in _flat(changes)}
        for key, changes in (written.get("cases") or {"": {}}).items()
    }
    named = [(f"sweep.over.{name}", name, place) for name, _, place in _flat(over)]
    for case, changes in cases.items():
        at = f"sweep.cases.{case}"
        named += [(f"{at}.{name}", name, place) for name, (_, place) in changes.items()]
        if case and not CASE.fullmatch(case):
            text = f"sweep.cases: {case!r} is not allowed (letters, digits and . _ + -)"
            messages.append(Message("sweep.cases", text, place_of(data, ("sweep", "cases", case))))
    counted = {"sweep.repeat_setting": sweep.repeat_setting} if sweep.repeat > 1 else {}
    if sweep.asha is not None:
        counted["sweep.asha.setting"] = sweep.asha.setting
    for at, name, place in named:
        if name.partition(".")[0] in _OF_THE_STUDY:
            text = f"{at}: belongs to the whole study, and cannot be swept"
            messages.append(Message(at, text, place))
        for key, other in counted.items():
            if name == other:
                text = f"{at}: is what {key} counts up; take one of them"
                messages.append(Message(at, text, place))
    for key, name in counted.items():
        value = value_of(base, name)
        if isinstance(value, bool) or not isinstance(value, int):
            text = f"{key}: {name!r} is not allowed (a setting that is a whole number)"
            messages.append(Message(key, text, place_of(data, tuple(key.split(".")))))
    if messages:
        raise ConfigError.of(messages, source)
    points = _points(axes, sweep.samples, base.seed)
    _refuse_many(len(points) * len(cases) * sweep.repeat, "sweep", "trials")
    plain = {key: value for key, value in data.items() if key != "sweep"}
    repeated, shortest = (
        place_of(data, ("sweep", *name)) or Place(source)
        for name in (("repeat",), ("asha", "grace_period"))
    )

    def made(settings: Mapping[str, Written]) -> Experiment:
        layers = (nested(name, *one) for name, one in settings.items())
        return checked(overridden(plain, layers), source)

    trials, problems = [], dict[str, None]()
    for (case, changes), point, repeat in itertools.product(
        cases.items(), points, range(sweep.repeat)
    ):
        settings = changes | point
        try:
            experiment = made(settings)
            if sweep.asha is not None:  # The shortest budget must be possible too.
                made(settings | {sweep.asha.setting: (sweep.asha.grace_period, shortest)})
            if repeat:
                count = value_of(experiment, sweep.repeat_setting) + repeat
                experiment = made(settings | {sweep.repeat_setting: (count, repeated)})
        except UserError as error:
            problems[str(error)] = None
            continue
        values = {name: value for name, (value, _) in settings.items()}
        own = {name: value for name, (value, _) in point.items()}
        trials.append(Trial(case, own, values, repeat, sweep.repeat, experiment))
    if problems:
        raise ConfigError("\n".join(problems))
    return trials
