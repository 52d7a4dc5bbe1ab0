"""One trial of a study, and one stage that trials share: what a worker process does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.config.load import parse_experiment
from selfshot.config.schema import Experiment
from selfshot.data.ytvis import load_results
from selfshot.errors import UserError
from selfshot.store.local import MANIFEST
from selfshot.studies.builders import known_digests
from selfshot.studies.progress import Progress
from selfshot.studies.run import (
    make_stages,
    open_store,
    stage_keys,
    stage_settings,
    wanted_stages,
)
from selfshot.studies.stages import Context


def make_until(config: dict[str, Any]) -> Context:
    """Make the stages of an experiment up to one of them.

    Args:
        config: `experiment` (its resolved YAML), `until`, `log` (a file that receives how far it
            is), and `digests` of the benchmark's files, as they were when the study was planned.
    """
    changed = [f"{config['budget_setting']}={config['budget']}"] if "budget" in config else []
    experiment = parse_experiment(config["experiment"], "the trial", changed)
    sharing, log = None, Path(config["log"])
    if config["sharing"] is not None:
        from selfshot.distributed.sharing import Sharing

        sent = Sharing(**config["sharing"])
        # This node's own folder, from here on and for whatever it starts.
        sharing, log = sent.here, sent.local(log)
        experiment = experiment.model_copy(update={"output": Path(sharing.sender)})
    with known_digests(config["digests"]):
        stages = wanted_stages(experiment, config["until"])
        every = wanted_stages(experiment)
        settings = stage_settings(every, experiment)
        keys = stage_keys(every, settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(stages), log)
    context = Context(experiment, {}, progress, [], tracking={}, keys={}, sharing=sharing)
    make_stages(stages, settings, keys, context, open_store(experiment, progress))
    return context


def run_trial(config: dict[str, Any]) -> dict[str, Any]:
    """Run one trial and gather what the study's report needs of it.

    Args:
        config: as for `make_until`, with `trial` (its name, settings and key), which is kept as
            it is, and `breakdown`: whether the score is also wanted by difficulty.

    Returns:
        `trial`, `seed`, `stages` (name → key), `timings`, the table's `rows`, the `retrieval`
        and the `benchmark`'s statistics, as far as the trial goes.
    """
    context = make_until(config)
    found = gather(context.experiment, context.folders, context.keys)
    if config["breakdown"] and "rows" in found:
        section = context.experiment.evaluation
        found["rows"] = add_difficulty(
            found["rows"],
            context.folders["benchmark"],
            context.folders["evaluation"],
            section.folds,
            section.max_queries_per_fold,
        )
    if config["metric"]:
        found["score"] = metric_of(found["metrics"], config["metric"])
    return {**config["trial"], **found, "timings": context.timings}


def metric_of(metrics: dict[str, dict[str, Any]], name: str) -> float:
    """A number of a stage's metrics, as in `supports:val.precision_at.5`.

    Raises:
        UserError: there is no such number.
    """
    stage, _, path = name.partition(":")
    value: Any = metrics.get(stage)
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = ", ".join(f"{one}:…" for one in metrics)
        raise UserError(
            f"sweep.asha.metric: {name!r} is no number of this trial's stages ({known}; "
            "manifest.json of each stage has its metrics)",
            setting="sweep.asha.metric",
        )
    return float(value)


def gather(
    experiment: Experiment, folders: dict[str, Path], keys: dict[str, str]
) -> dict[str, Any]:
    """What the finished stages of a trial say, in JSON values."""
    found: dict[str, Any] = {"seed": experiment.seed, "stages": dict(keys)}
    files = {
        "rows": ("evaluation", "results.json"),
        "retrieval": ("supports", "retrieval.json"),
        "benchmark": ("benchmark", "benchmark.json"),
    }
    for name, (stage, file) in files.items():
        if stage in folders and (folders[stage] / file).exists():
            found[name] = json.loads((folders[stage] / file).read_text())
    if "benchmark" in found:
        kept = ("name", "kind", "counts", "statistics", "files")
        found["benchmark"] = {key: found["benchmark"].get(key) for key in kept}
    metrics = {
        stage: json.loads((folder / MANIFEST).read_text())["metrics"]
        for stage, folder in folders.items()
    }
    return found | {"metrics": metrics}


def add_difficulty(
    rows: Sequence[dict[str, Any]],
    benchmark_folder: Path,
    evaluation_folder: Path,
    num_folds: int,
    max_queries: int | None,
) -> list[dict[str, Any]]:
    """Rows of results with their `breakdown` (Table 4): AP50 in percent and videos of each bin.

    What counts is everything that is annotated in the video, not only the class of the query;
    each bin is scored on its videos alone, all folds together.
    """
    from selfshot.evaluation.breakdown import CLASS_BINS, INSTANCE_BINS
    from selfshot.evaluation.episodes import episode_truth, row_name
    from selfshot.evaluation.video_ap import episode_scores

    benchmark = load_benchmark(benchmark_folder)
    annotations = benchmark.reader(benchmark_folder).annotations
    dealt = benchmark.folds("test", num_folds, max_queries)
    queries = [pair for fold in dealt for pair in fold]
    shown = {
        video: [track for track in annotations.tracks_of(video) if not track.iscrowd]
        for video, _ in queries
    }
    counts = {
        "instances": {video: len(tracks) for video, tracks in shown.items()},
        "classes": {v: len({track.category_id for track in ts}) for v, ts in shown.items()},
    }
    bins = {"instances": INSTANCE_BINS, "classes": CLASS_BINS}
    found = []
    for row in rows:
        predictions = [
            prediction
            for number in range(num_folds)
            for prediction in load_results(
                evaluation_folder / "predictions" / f"{row_name(row)}.fold{number}.json",
                annotations,
            )
        ]
        breakdown: dict[str, dict[str, Any]] = {}
        for kind, limits in bins.items():
            breakdown[kind] = {}
            for label, (low, high) in limits.items():
                part = [(v, name) for v, name in queries if low <= counts[kind][v] <= high]
                videos = {video for video, _ in part}
                truth = episode_truth(annotations, part)
                own = [one for one in predictions if one.video_id in videos]
                score = episode_scores(truth, own)["AP50"] if part else -1.0
                breakdown[kind][label] = {
                    "AP50": 100 * score if score >= 0 else -1.0,
                    "videos": len(videos),
                }
        found.append({**row, "breakdown": breakdown})
    return found
