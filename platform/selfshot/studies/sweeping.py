"""A study's plan: its trials, the stages that they share, and what of it is done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from selfshot.config.load import resolved_yaml
from selfshot.config.schema import Experiment
from selfshot.config.sweep import Study, Trial
from selfshot.store.local import Store, stage_key
from selfshot.studies.builders import known_digests
from selfshot.studies.run import (
    open_store,
    sharing_of,
    stage_keys,
    stage_settings,
    stage_status,
    wanted_stages,
)


@dataclasses.dataclass(frozen=True)
class StageInstance:
    """One result in the store that the study needs.

    Attributes:
        stage, key: which.
        needs: ids of the instances that it reads.
        trials: numbers of the trials that need it.
        status: `done`, `partial` or `to do`.
        path: where it is or will be.
    """

    stage: str
    key: str
    needs: frozenset[str]
    trials: tuple[int, ...]
    status: str
    path: Path

    @property
    def id(self) -> str:
        """Its name among all instances."""
        return f"{self.stage}-{self.key}"


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """A trial with its key, which is a hash of all that makes its result."""

    number: int
    trial: Trial
    key: str
    instances: tuple[str, ...]
    path: Path

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.result() is not None

    def result(self) -> dict[str, Any] | None:
        """Its result, if it was finished."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):  # Cut short, as by a loss of power: made again.
            return None
        return found


@dataclasses.dataclass(frozen=True)
class StudyPlan:
    """What a run of a study would do.

    Attributes:
        study: the study.
        trials: each with its key, in order; trials with the same settings are one.
        entries: every trial of the sweep with the key of its result.
        instances: by id, in an order in which they can be made.
        digests: of the benchmarks' files.
    """

    study: Study
    trials: tuple[PlannedTrial, ...]
    entries: tuple[tuple[Trial, str], ...]
    instances: dict[str, StageInstance]
    digests: dict[str, str]

    @property
    def folder(self) -> Path:
        """Where the study's own files are."""
        return study_folder(self.study.experiment)

    @property
    def open_trials(self) -> list[PlannedTrial]:
        """Trials without a result."""
        return [trial for trial in self.trials if not trial.done]

    def results(self) -> list[dict[str, Any]]:
        """Results of what is done, one for each entry, with the entry's own name and settings."""
        known = {trial.key: trial.result() for trial in self.trials}
        return [
            {**result, **facts_of(trial, key)}
            for trial, key in self.entries
            if (result := known[key]) is not None
        ]

    def shared(self) -> list[StageInstance]:
        """Instances that two or more open trials need and that are not done, in order."""
        waiting = {trial.number for trial in self.open_trials}
        return [
            instance
            for instance in self.instances.values()
            if instance.status != "done" and len(waiting.intersection(instance.trials)) > 1
        ]

    def own(self) -> list[StageInstance]:
        """Instances that are not done and that one open trial alone makes."""
        waiting = {trial.number for trial in self.open_trials}
        return [
            instance
            for instance in self.instances.values()
            if instance.status != "done" and len(waiting.intersection(instance.trials)) == 1
        ]


def study_folder(experiment: Experiment) -> Path:
    """Where a study keeps its trials, logs and report."""
    return experiment.output / experiment.name


def plan_study(study: Study) -> StudyPlan:
    """Plan every trial; nothing is written but trials' results that storage has."""
    store = open_store(study.experiment)
    sharing = sharing_of(study.experiment)
    if store.shared is not None and sharing is not None:
        store.shared.storage.look()
        # Results that another machine's run has sent are as good as those of this one.
        sharing.remote(study_folder(study.experiment) / "trials").pull_folder(missing=True)
    until = study.experiment.sweep.until
    found: dict[str, dict[str, Any]] = {}
    trials: dict[str, PlannedTrial] = {}
    entries: list[tuple[Trial, str]] = []
    with known_digests() as digests:
        for trial in study.trials:
            stages = wanted_stages(trial.experiment, until)
            keys = stage_keys(stages, stage_settings(stages, trial.experiment))
            key = stage_key("trial", 1, {}, keys)
            entries.append((trial, key))
            if key in trials:
                continue  # Table 8 has its default depth in each of its three parts.
            number = len(trials)
            ids = []
            for stage in stages:
                name = f"{stage.name}-{keys[stage.name]}"
                ids.append(name)
                entry = found.setdefault(
                    name,
                    {
                        "stage": stage.name,
                        "key": keys[stage.name],
                        "needs": frozenset(f"{n}-{keys[n]}" for n in stage.inputs if n in keys),
                        "trials": [],
                    },
                )
                entry["trials"].append(number)
            path = study_folder(study.experiment) / "trials" / f"{key}.json"
            trials[key] = PlannedTrial(number, trial, key, tuple(ids), path)
        known = dict(digests)
    known_keys: dict[str, set[str]] = {}
    instances = {
        name: StageInstance(
            **{**entry, "trials": tuple(entry["trials"])},
            **_where(store, known_keys, entry["stage"], entry["key"]),
        )
        for name, entry in found.items()
    }
    return StudyPlan(study, tuple(trials.values()), tuple(entries), instances, known)


def _where(store: Store, known: dict[str, set[str]], stage: str, key: str) -> dict[str, Any]:
    plan = stage_status(store, known, stage, key)
    return {"status": plan.status, "path": plan.path}


def facts_of(trial: Trial, key: str) -> dict[str, Any]:
    """What a result says of its trial."""
    return {
        "label": trial.label,
        "name": trial.name,
        "case": trial.case,
        "point": trial.point,
        "settings": trial.settings,
        "repeat": trial.repeat,
        "key": key,
    }


def worker_config(plan: StudyPlan, trial: PlannedTrial, until: str, log: str) -> dict[str, Any]:
    """What a worker needs to make a trial's stages up to one of them.

    Paths are made absolute: a worker of a cluster starts in a folder of its own.
    """
    experiment = trial.trial.experiment
    sharing = sharing_of(plan.study.experiment)
    asha = plan.study.experiment.sweep.asha
    absolute = experiment.model_copy(
        update={
            "output": experiment.output.resolve(),
            "storage": None if sharing is None else sharing.storage,
        }
    )
    return {
        "trial_id": trial.key,
        "experiment": resolved_yaml(absolute),
        "until": until,
        "log": str((plan.folder / "logs" / f"{log}.log").resolve()),
        "digests": plan.digests,
        "sharing": None if sharing is None else dataclasses.asdict(sharing),
        "trial": facts_of(trial.trial, trial.key),
        "metric": asha.metric if asha else "",
        "budget_setting": asha.setting if asha else "",
        "breakdown": plan.study.experiment.sweep.table.startswith("table04"),
    }
