"""What a run will cost, by what earlier runs in the store took; and whether it can be placed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selfshot.config.schema import Experiment
from selfshot.store.local import MANIFEST
from selfshot.studies.resources import GPU_STAGES, is_here
from selfshot.studies.run import open_store
from selfshot.studies.settings import table_rows
from selfshot.studies.sweeping import StudyPlan


@dataclasses.dataclass(frozen=True)
class Measured:
    """One earlier result of a stage: how much work it was, and what it took."""

    work: float
    seconds: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Part:
    """One result to make. `seconds` and `bytes` are None where nothing like it was measured."""

    stage: str
    status: str
    seconds: float | None
    bytes: float | None
    gpus: int

    @property
    def time(self) -> str:
        """As a person reads it; empty for what is done."""
        if self.status == "done":
            return ""
        return "not measured" if self.seconds is None else duration(self.seconds)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a whole run.

    Attributes:
        parts: every result, in order.
        shared_s: seconds of what runs before the trials.
        parallel: trials at one time.
        free: bytes that are free where the output is.
        measured: how many earlier results the estimate is from.
    """

    parts: tuple[Part, ...]
    shared_s: float
    parallel: int
    free: int
    measured: int

    def lines(self) -> list[str]:
        """The estimate in words."""
        left = [part for part in self.parts if part.status != "done"]
        if not left:
            return ["everything is done; only the report is written"]
        known = [part for part in left if part.seconds is not None]
        if not known:
            return [
                f"time: not known; the store has no earlier result of the {len(left)} to make"
            ]
        total = sum(part.seconds or 0.0 for part in known)
        rest = max(0.0, total - self.shared_s)
        elapsed = self.shared_s + rest / self.parallel
        unknown = sorted({part.stage for part in left if part.seconds is None})
        words = f", and what is not measured yet: {', '.join(unknown)}" if unknown else ""
        space = sum(part.bytes or 0.0 for part in known)
        gpu_hours = sum((part.seconds or 0.0) * part.gpus for part in known) / 3600
        side = f"{duration(total)} of work, {self.parallel} trials at one time"
        work = side if self.parallel > 1 else "one after another"
        lines = [
            f"time: about {duration(elapsed)} ({work}{words}), from {self.measured} earlier "
            "results",
            f"disk: about {size(space)}, {size(self.free)} are free",
            f"GPU hours: {gpu_hours:.1f}" if gpu_hours else "GPU hours: none, it runs on CPUs",
        ]
        if space > self.free:
            lines.append("warning: that does not fit on the disk")
        return lines


def estimate_stages(experiment: Experiment, stages: Sequence[tuple[str, str]]) -> Estimate:
    """Of one experiment: `(stage, status)` in order; the stages run one after another."""
    measured = _measured(open_store(experiment).root)
    parts = [_part(stage, status, experiment, measured) for stage, status in stages]
    total = sum(part.seconds or 0.0 for part in parts if part.status != "done")
    return Estimate(tuple(parts), total, 1, _free(experiment.output), _used(measured, parts))


def estimate_study(plan: StudyPlan) -> Estimate:
    """Of a study: what is shared runs first, then the trials."""
    experiment = plan.study.experiment
    measured = _measured(open_store(experiment).root)
    shared = {instance.id for instance in plan.shared()}
    waiting = {trial.number for trial in plan.open_trials}
    by_number = {trial.number: trial.trial.experiment for trial in plan.trials}
    parts, shared_s = [], 0.0
    for instance in plan.instances.values():
        needed = instance.status == "done" or waiting.intersection(instance.trials)
        status = instance.status if needed else "done"
        part = _part(instance.stage, status, by_number[instance.trials[0]], measured)
        parts.append(part)
        if instance.id in shared:
            shared_s += part.seconds or 0.0
    parallel = max(1, min(experiment.sweep.parallel, len(waiting)))
    if is_here(experiment):
        # What was measured here used all the cores: two trials side by side take as long.
        parallel = 1
    return Estimate(
        tuple(parts), shared_s, parallel, _free(experiment.output), _used(measured, parts)
    )


def _part(
    stage: str, status: str, experiment: Experiment, measured: dict[str, list[Measured]]
) -> Part:
    gpus = experiment.compute.num_workers if experiment.compute.use_gpu else 0
    gpus = gpus if stage in GPU_STAGES else 0
    known = measured.get(stage, [])
    if not known:
        return Part(stage, status, None, None, gpus)
    settings = experiment.model_dump(mode="json")
    settings["evaluation"]["rows"] = table_rows(experiment)
    work = work_of(stage, settings)
    # Results of nearly as much work say more than those of much less.
    nearest = sorted(known, key=lambda one: abs(math.log(one.work / work)))[:5]
    seconds = statistics.median(one.seconds / one.work for one in nearest) * work
    space = statistics.median(one.bytes / one.work for one in nearest) * work
    return Part(stage, status, seconds, space, gpus)


def work_of(stage: str, settings: dict[str, Any]) -> float:
    """How much a stage has to do, in a unit of its own: steps × batch × layers, clips × frames.

    Args:
        stage: which.
        settings: a whole experiment as JSON values.
    """
    section = settings.get("vis" if stage == "vis_no_fuser" else stage, {})
    if stage in ("backbone", "encoder", "vis", "vis_no_fuser"):
        batch = {
            "backbone": section.get("classes_per_batch", 1),
            "encoder": section.get("videos_per_batch", 1) * section.get("crops_per_video", 1),
        }.get(stage, section.get("episodes_per_batch", 1) * (1 + section.get("train_shots", 1)))
        layers = sum(section.get(f"{part}_layers", 0) for part in ("encoder", "fuser", "decoder"))
        return float(section["optimiser"]["steps"] * batch * max(1, layers))
    if stage == "evaluation":
        # Every row is a pass over the queries, and reads its supports.
        return float(sum(1 + row["shots"] + row["extra"] for row in section["rows"]))
    clips = settings.get("benchmark", {}).get("corpus_clips", 1)
    if stage == "embeddings":
        return float(clips * settings.get("embedding", {}).get("num_frames", 1))
    return float(clips) if stage in ("benchmark", "index") else 1.0


def _measured(root: Path) -> dict[str, list[Measured]]:
    """What every finished result in a store took, by stage."""
    found: dict[str, list[Measured]] = {}
    benchmarks: dict[str, dict[str, Any]] = {}
    manifests = []
    for path in sorted(root.glob(f"*/*/{MANIFEST}")):
        if "." in path.parent.name:
            continue  # a folder that is being made, or was quarantined
        try:
            manifest = json.loads(path.read_text())
            manifests.append(manifest)
            if manifest["stage"] == "benchmark":
                benchmarks[manifest["key"]] = manifest["settings"]
        except (OSError, ValueError, KeyError):
            continue
    inputs = {(one["stage"], one["key"]): one["inputs"] for one in manifests}
    for manifest in manifests:
        stage = manifest["stage"]
        # An index names its embeddings only, and they name the benchmark.
        above = inputs.get(("embeddings", manifest["inputs"].get("embeddings", "")), {})
        source = {**above, **manifest["inputs"]}.get("benchmark", "")
        name = "vis" if stage == "vis_no_fuser" else stage
        settings = {
            name: manifest["settings"],
            "embedding": manifest["settings"],
            "benchmark": benchmarks.get(source, {}),
        }
        if stage == "benchmark":
            settings["benchmark"] = manifest["settings"]
        try:
            work = work_of(stage, settings)
        except (KeyError, TypeError):
            continue
        space = sum(int(entry["bytes"]) for entry in manifest["files"].values())
        seconds = float(manifest["seconds"])
        if work > 0:
            found.setdefault(stage, []).append(Measured(work, seconds, space))
    return found


def _used(measured: dict[str, list[Measured]], parts: Iterable[Part]) -> int:
    stages = {part.stage for part in parts if part.status != "done"}
    return sum(len(ones) for stage, ones in measured.items() if stage in stages)


def _free(output: Path) -> int:
    folder = output
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """`12 MB`, `3.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
