"""Table 4 of a trial: the score of query videos by how many instances and classes they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.data.ytvis import Annotations, load_results
from selfshot.evaluation.breakdown import CLASS_BINS, INSTANCE_BINS
from selfshot.evaluation.episodes import folds, row_name
from selfshot.evaluation.video_ap import episode_scores


def add_difficulty(
    rows: Sequence[dict[str, Any]],
    benchmark_folder: Path,
    evaluation_folder: Path,
    num_folds: int,
    max_queries: int | None,
) -> list[dict[str, Any]]:
    """Rows of results with their `breakdown`: AP50 in percent and the videos of each bin.

    What counts is everything that is annotated in the video, not only the class that is asked
    for; each bin is scored on its videos alone, all folds together.
    """
    benchmark = load_benchmark(benchmark_folder)
    annotations = benchmark.reader(benchmark_folder).annotations
    dealt = folds(benchmark, "test", num_folds, max_queries)
    queries = [pair for fold in dealt for pair in fold]
    ids = {name: number for number, name in annotations.categories.items()}
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
                truth = _truth(annotations, {(video, ids[name]) for video, name in part})
                own = [one for one in predictions if one.video_id in videos]
                score = episode_scores(truth, own)["AP50"] if part else -1.0
                breakdown[kind][label] = {
                    "AP50": 100 * score if score >= 0 else -1.0,
                    "videos": len(videos),
                }
        found.append({**row, "breakdown": breakdown})
    return found


def _truth(annotations: Annotations, wanted: set[tuple[int, int]]) -> Annotations:
    """The tracks of the classes that are asked for, in their videos."""
    videos = {video for video, _ in wanted}
    categories = {category for _, category in wanted}
    return dataclasses.replace(
        annotations,
        videos={v: one for v, one in annotations.videos.items() if v in videos},
        categories={i: name for i, name in annotations.categories.items() if i in categories},
        tracks=tuple(t for t in annotations.tracks if (t.video_id, t.category_id) in wanted),
    )
