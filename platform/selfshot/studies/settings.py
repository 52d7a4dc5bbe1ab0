"""What each stage is keyed by: every setting that changes its result, and none that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfshot.config.schema import Experiment
from selfshot.studies.builders import inputs_digest

_ADDED_LATER = {"VisConfig": ("support_frames",), "EvaluationConfig": ("support_frames",)}
"""Settings that came after results of their stages had been made.

At their default they mean what was meant before, so they are no part of a key there, and what was
made is found."""


def plain(section: Any) -> dict[str, Any]:
    """A section as JSON values."""
    settings: dict[str, Any] = section.model_dump(mode="json")
    for name in _ADDED_LATER.get(type(section).__name__, ()):
        if settings[name] == type(section).model_fields[name].default:
            del settings[name]
    return settings


def _without_pace(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what changes no weight: how often it is logged and saved."""
    optimiser = {
        key: value
        for key, value in settings["optimiser"].items()
        if key not in ("checkpoint_every", "log_every")
    }
    return {**settings, "optimiser": optimiser}


def training_settings(name: str) -> Callable[[Experiment], dict[str, Any]]:
    """Of a trained network, with what of the machine changes its weights."""

    def settings(experiment: Experiment) -> dict[str, Any]:
        section = _without_pace(plain(getattr(experiment, name)))
        compute = experiment.compute
        # Workers divide a batch and a GPU rounds otherwise: both change the weights.
        machine = {
            "num_workers": compute.num_workers,
            "use_gpu": compute.use_gpu,
            "zero_stage": compute.zero_stage,
        }
        return {**section, "seed": experiment.seed, "compute": machine}

    return settings


def benchmark_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the benchmark, with a digest of the files that it is made of."""
    settings = {**plain(experiment.benchmark), "seed": experiment.seed}
    digest = inputs_digest(experiment)
    if digest is not None:
        settings["inputs"] = digest
    return settings


def table_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """Rows of the table: supports without shots once, the others at each number of shots."""
    rows: list[dict[str, Any]] = []
    for kind in experiment.evaluation.supports:
        if kind in ("none", "no_fuser"):
            rows.append({"supports": kind, "shots": 0, "extra": 0})
        elif kind == "query_itself":
            rows.append({"supports": kind, "shots": 1, "extra": 0})
        else:
            most = max(experiment.supports.shots)
            for shots in experiment.supports.shots:
                extras = experiment.supports.extra if shots == most else (0,)
                rows += [{"supports": kind, "shots": shots, "extra": n} for n in extras]
    return rows


def evaluation_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the evaluation, with the rows that it fills."""
    return {**plain(experiment.evaluation), "rows": table_rows(experiment)}


def supports_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the choice of supports, with the seeds of what is drawn."""
    return {
        **plain(experiment.supports),
        "seeds": list(experiment.evaluation.seeds),
        "max_queries": experiment.evaluation.max_queries_per_seed,
    }
