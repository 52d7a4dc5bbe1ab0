"""`sweep:`: one experiment's file → the experiments of all its trials, each validated."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfshot.config.allowed import all_keys, find_rule, nearest, shown
from selfshot.config.complaints import fail
from selfshot.config.document import Complaint, Document, Location, Place, dotted
from selfshot.config.load import checked, read_experiment, read_text
from selfshot.config.overrides import put
from selfshot.config.schema import Experiment
from selfshot.config.studies import SweepConfig
from selfshot.errors import UserError

MAX_TRIALS = 10_000
CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_OF_THE_STUDY = ("name", "description", "output", "sweep", "scale", "scales", "tracking", "report")
_RANGE_KEYS = ("from", "to", "step", "count", "scale")
_OVER, _CASES = ("sweep", "over"), ("sweep", "cases")


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
    """An experiment's file, with the trials of its sweep; a plain experiment has none."""

    experiment: Experiment
    trials: tuple[Trial, ...]


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Reads an experiment with its sweep, and validates every trial.

    Args:
        path: the YAML file.
        overrides: `key=value` strings, as `--set` takes them.

    Raises:
        UserError: the file, an override or a trial is wrong; all mistakes are in one message.
    """
    return parse_study(read_text(Path(path)), str(path), overrides)


def parse_study(text: str, source: str, overrides: Sequence[str] = ()) -> Study:
    """Validates the text of an experiment and of its sweep; see `load_study`."""
    document = read_experiment(text, source, overrides)
    raw = deepcopy(document)
    base = checked(document, source)
    if not base.sweep.is_study:
        return Study(base, ())
    complaints = [*_complaints_of_keys(raw, base.sweep)]
    axes = {} if complaints else _axes(raw, base.sweep, complaints)
    if complaints:
        raise fail(complaints, source)
    return Study(base, tuple(_trials(raw, base, axes, source)))


def _flat(section: Mapping[str, Any], at: Location) -> dict[str, tuple[Any, Location]]:
    """Settings by their dotted names, whether a file writes them dotted or nested in sections."""
    found: dict[str, tuple[Any, Location]] = {}
    for key, value in section.items():
        known = {place[0] for place in all_keys() if len(place) > 1}
        if isinstance(value, Mapping) and key in known and "from" not in value:
            for inner, (one, location) in _flat_below(value, (*at, key)).items():
                found[f"{key}.{inner}"] = one, location
        else:
            found[key] = value, (*at, key)
    return found


def _flat_below(section: Mapping[str, Any], at: Location) -> dict[str, tuple[Any, Location]]:
    found: dict[str, tuple[Any, Location]] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and not {"from", "to", "kind"} & set(value):
            for inner, (one, location) in _flat_below(value, (*at, key)).items():
                found[f"{key}.{inner}"] = one, location
        else:
            found[key] = value, (*at, key)
    return found


def _complaints_of_keys(document: Document, sweep: SweepConfig) -> Iterator[Complaint]:
    """Settings that are swept, and cannot be."""
    known = {dotted(place) for place in all_keys()}
    over = _flat(sweep.over, _OVER)
    named = [(location, key) for key, (_, location) in over.items()]
    for case, changes in sweep.cases.items():
        if not CASE.fullmatch(case):
            message = f"sweep.cases: {case!r} is not allowed (letters, digits and . _ + -)"
            yield Complaint(message, document.place_of((*_CASES, case)))
        named += [(at, key) for key, (_, at) in _flat(changes, (*_CASES, case)).items()]
    if sweep.repeat > 1:
        named.append((("sweep", "repeat_setting"), sweep.repeat_setting))
    if sweep.stopping.budgets:
        named.append((("sweep", "stopping", "setting"), sweep.stopping.setting))
    for location, key in named:
        place = document.place_of(location)
        if key.partition(".")[0] in _OF_THE_STUDY:
            message = f"{_shown(location, key)}: belongs to the whole study, and cannot be swept"
            yield Complaint(message, place)
        elif key not in known:
            last = key.rpartition(".")[2]
            same = sorted(name for name in known if name.rpartition(".")[2] == last)
            meant = " or ".join(same[:3]) or nearest(key, sorted(known))
            hint = f", did you mean {meant}?" if meant else ""
            yield Complaint(f"{_shown(location, key)}: no setting of an experiment{hint}", place)
    for name in ("repeat_setting", "stopping.setting"):
        value = sweep.repeat_setting if name == "repeat_setting" else sweep.stopping.setting
        if value in known and not _is_whole(value):
            message = f"sweep.{name}: {value!r} is not allowed (a setting that is a whole number)"
            yield Complaint(message, document.place_of(("sweep", *name.split("."))))
    if sweep.repeat > 1 and sweep.repeat_setting in over:
        name = sweep.repeat_setting
        message = f"sweep.over.{name}: is what sweep.repeat counts up; take one of them"
        yield Complaint(message, document.place_of(over[name][1]))


def _is_whole(setting: str) -> bool:
    """Whether a setting is a whole number; of a benchmark's, whether one of any kind is."""
    head, _, rest = setting.partition(".")
    _, rule = find_rule((head,))
    kinds = (rule or {}).get("discriminator", {}).get("mapping", {})
    places = [(head, kind, *rest.split(".")) for kind in kinds] or [tuple(setting.split("."))]
    rules = [find_rule(place)[1] for place in places]
    return any(rule is not None and rule.get("type") == "integer" for rule in rules)


def _shown(location: Location, key: str) -> str:
    """A place in a sweep; where the place names no setting, the setting follows it."""
    return dotted(location) if dotted(location).endswith(key) else f"{dotted(location)}: {key!r}"


@dataclass(frozen=True)
class _Axis:
    """The values of one setting, each with the place that wrote it; or what draws them."""

    values: tuple[Any, ...]
    places: tuple[Place, ...]
    draw: tuple[float, float, bool, bool] | None = None  # from, to, logarithmic, whole

    def drawn(self, rng: random.Random) -> tuple[Any, Place]:
        if self.draw is None:
            index = rng.randrange(len(self.values))
            return self.values[index], self.places[index]
        low, high, logarithmic, whole = self.draw
        value = (
            math.exp(rng.uniform(math.log(low), math.log(high)))
            if logarithmic
            else rng.uniform(low, high)
        )
        return (min(max(round(value), int(low)), int(high)) if whole else value), self.places[0]


def _axes(
    document: Document, sweep: SweepConfig, complaints: list[Complaint]
) -> dict[str, _Axis]:
    axes = {}
    for key, (value, location) in _flat(sweep.over, _OVER).items():
        place = document.place_of(location)
        try:
            if isinstance(value, Mapping):
                axes[key] = _range(value, place, drawn=sweep.method == "random")
            elif isinstance(value, list | tuple):
                if not value:
                    raise ValueError("an empty list is not allowed (at least one value)")
                axes[key] = _Axis(
                    tuple(value),
                    tuple(document.place_of((*location, i)) for i in range(len(value))),
                )
                if len({repr(one) for one in value}) < len(value):
                    raise ValueError(f"{shown(list(value))} names a value twice")
            else:
                raise ValueError(
                    f"{shown(value)} is not allowed (a list of values, or a range such as "
                    "{from: 1, to: 9, step: 2})"
                )
        except ValueError as error:
            complaints.append(Complaint(f"{dotted(location)}: {error}", place))
    return axes


def _range(value: Mapping[str, Any], place: Place, *, drawn: bool) -> _Axis:
    """A range of numbers: `{from, to, step}` or `{from, to, count, scale: linear|log}`."""
    unknown = [key for key in value if key not in _RANGE_KEYS]
    if unknown:
        meant = nearest(unknown[0], list(_RANGE_KEYS))
        hint = f", did you mean {meant}?" if meant else ""
        raise ValueError(
            f"{unknown[0]!r} is no key of a range (known: {', '.join(_RANGE_KEYS)}){hint}"
        )
    numbers = {}
    for key in ("from", "to", "step", "count"):
        number = value.get(key)
        if number is None and key in ("step", "count"):
            continue
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{key}: {shown(number)} is not allowed (a number)")
        numbers[key] = number
    low, high, scale = numbers["from"], numbers["to"], value.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise ValueError(f"scale: {shown(scale)} is not allowed (one of linear, log)")
    if not low < high:
        raise ValueError(f"from: {low} is not below to: {high}")
    if scale == "log" and low <= 0:
        raise ValueError(f"from: {low} is not allowed on a log scale (a number > 0)")
    whole = isinstance(low, int) and isinstance(high, int)
    if drawn:
        return _Axis((), (place,), (low, high, scale == "log", whole))
    if ("step" in numbers) == ("count" in numbers):
        raise ValueError("a range needs either step or count")
    if "step" in numbers:
        if scale == "log" or numbers["step"] <= 0:
            raise ValueError("step: needs scale: linear and a number > 0 (on a log scale, count)")
        steps = math.floor((high - low) / numbers["step"] + 1e-9) + 1
        values = [low + i * numbers["step"] for i in range(min(steps, MAX_TRIALS + 1))]
    else:
        count = numbers["count"]
        if not isinstance(count, int) or not 2 <= count <= MAX_TRIALS:
            raise ValueError(f"count: {shown(count)} is not allowed (an integer ≥ 2)")
        part = [i / (count - 1) for i in range(count)]
        values = [
            low * (high / low) ** p if scale == "log" else low + (high - low) * p for p in part
        ]
        if whole:
            values = list(dict.fromkeys(round(one) for one in values))
    values = [float(f"{one:.12g}") if isinstance(one, float) else one for one in values]
    return _Axis(tuple(values), (place,) * len(values))


def _points(
    sweep: SweepConfig, axes: Mapping[str, _Axis], seed: int
) -> list[dict[str, tuple[Any, Place]]]:
    """What the axes say, as setting → value and place, for each point."""
    if sweep.method == "random":
        rng = random.Random(f"sweep {seed}")
        return [
            {key: axis.drawn(rng) for key, axis in axes.items()} for _ in range(sweep.samples)
        ]
    choices = [list(zip(axis.values, axis.places, strict=True)) for axis in axes.values()]
    total = math.prod(map(len, choices))
    if total > MAX_TRIALS:
        raise UserError(f"sweep.over: {total} combinations (allowed: at most {MAX_TRIALS})")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*choices)]


def _trials(
    raw: Document, base: Experiment, axes: Mapping[str, _Axis], source: str
) -> list[Trial]:
    sweep = base.sweep
    points = _points(sweep, axes, base.seed)
    cases: Mapping[str, Mapping[str, Any]] = sweep.cases or {"": {}}
    total = len(points) * len(cases) * sweep.repeat
    if total > MAX_TRIALS:
        raise UserError(f"sweep: {total} trials (allowed: at most {MAX_TRIALS}); {source}")
    plain = deepcopy(raw)
    plain.data.pop("sweep", None)
    trials, messages = [], dict[str, None]()
    for case, changes in cases.items():
        of_case = {
            key: (value, raw.place_of(location))
            for key, (value, location) in _flat(changes, (*_CASES, case)).items()
        }
        for point, repeat in itertools.product(points, range(sweep.repeat)):
            settings = of_case | point
            trial = _trial(plain, settings, sweep, repeat, source, messages)
            if trial is not None:
                values = {key: value for key, (value, _) in settings.items()}
                own = {key: value for key, (value, _) in point.items()}
                trials.append(Trial(case, own, values, repeat, sweep.repeat, trial))
    if messages:
        raise UserError("\n".join(messages))
    return trials


def _trial(
    plain: Document,
    settings: Mapping[str, tuple[Any, Place]],
    sweep: SweepConfig,
    repeat: int,
    source: str,
    messages: dict[str, None],
) -> Experiment | None:
    """One trial's experiment; what is wrong with it is added to `messages`, each once."""

    def made(changes: Mapping[str, tuple[Any, Place]]) -> Experiment:
        document = Document(deepcopy(plain.data), dict(plain.places))
        for key, (value, place) in changes.items():
            put(document, tuple(key.split(".")), deepcopy(value), place)
        return checked(document, source)

    try:
        budgets = sweep.stopping.budgets
        if budgets:
            # The shortest budget must be possible too; the trial is that of the longest.
            place = Place(f"sweep.stopping.budgets, {source}")
            made({**settings, sweep.stopping.setting: (budgets[0], place)})
            settings = {**settings, sweep.stopping.setting: (budgets[-1], place)}
        experiment = made(settings)
        if repeat == 0:
            return experiment
        first: Any = experiment
        for part in sweep.repeat_setting.split("."):
            first = getattr(first, part)
        place = Place(f"sweep.repeat, {source}")
        return made({**settings, sweep.repeat_setting: (first + repeat, place)})
    except UserError as error:
        messages[str(error)] = None
        return None
