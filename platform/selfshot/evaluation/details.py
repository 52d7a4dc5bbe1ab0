"""What the mean over folds hides: the score of each class, of each group of queries, of each query.

For a query the best IoU of any track stands beside that of the first one: where only the second is
low, the mask was found and not chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.data.ytvis import Annotations, Prediction, load_annotations, load_results
from selfshot.evaluation.bootstrap import bootstrap
from selfshot.evaluation.episodes import episode_truth, row_name
from selfshot.evaluation.matches import compare_tracks
from selfshot.evaluation.track_iou import track_iou
from selfshot.evaluation.video_ap import evaluate_tracks, score_tracks

DETAILS = "details.json"

RIGHT = 0.5
"""IoU of a track that is right."""


def table_details(
    benchmark: Path,
    predictions: Path,
    rows: Sequence[Mapping[str, Any]],
    folds: int,
    most: int | None,
) -> dict[str, Any]:
    """`row_details` of each row of the table, by its name.

    Args:
        benchmark: its folder.
        predictions: folder of the result files that `evaluate_fold` wrote.
        rows: of {supports, shots, extra}.
        folds: how many there are.
        most: queries of a fold at most; none: all.
    """
    manifest = load_benchmark(benchmark)
    annotations = load_annotations(benchmark / "annotations.json")
    queries = [query for fold in manifest.folds("test", folds, most) for query in fold]
    found = {}
    for row in rows:
        name = row_name(dict(row))
        made = [
            one
            for fold in range(folds)
            for one in load_results(predictions / f"{name}.fold{fold}.json", annotations)
        ]
        found[name] = row_details(annotations, queries, made, manifest.groups)
    return found


def row_details(
    annotations: Annotations,
    queries: Sequence[tuple[int, str]],
    predictions: Sequence[Prediction],
    groups: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Scores of a row of the table, all folds as one.

    Args:
        annotations: of the queries' videos.
        queries: a video and the name of a class.
        predictions: of all of them.
        groups: videos of each group that is scored apart.

    Returns:
        `classes`: by its name, `AP50` in percent and `queries`; `groups`: likewise, as a mean over
        classes, with `low` and `high` of its 95% interval over clips, and the shares in percent of
        the queries whose first (`first_right`) and any (`any_right`) track reaches IoU 0.5 with an
        instance; `queries`: for each `video`, `class`, `group`, and the IoU of its `first` and its
        `best` track.
    """
    numbers = {name: number for number, name in annotations.categories.items()}
    by_query: dict[tuple[int, int], list[Prediction]] = {
        (video, numbers[name]): [] for video, name in queries
    }
    for one in predictions:
        if (one.video_id, one.category_id) in by_query:
            by_query[one.video_id, one.category_id].append(one)
    predictions = [one for some in by_query.values() for one in some]
    figures = evaluate_tracks(episode_truth(annotations, list(queries)), predictions)
    of_class = figures["AP50_per_category"]
    counts = Counter(name for _, name in queries)
    classes = {
        name: {"AP50": 100 * of_class[numbers[name]], "queries": counts[name]}
        for name in sorted(counts)
    }
    group_of = {video: name for name, videos in groups.items() for video in videos}
    found = [
        {"video": video, "class": name, "group": group_of.get(video, "")}
        | _ious(annotations, video, numbers[name], by_query[video, numbers[name]])
        for video, name in queries
    ]
    scored = {
        name: _group(
            annotations, [q for q in queries if group_of.get(q[0]) == name], predictions, found
        )
        for name in groups
    }
    return {
        "classes": classes,
        "groups": {name: one for name, one in scored.items() if one is not None},
        "queries": found,
    }


def _group(
    annotations: Annotations,
    queries: Sequence[tuple[int, str]],
    predictions: Sequence[Prediction],
    found: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    if not queries:
        return None
    videos = {video for video, _ in queries}
    compared = compare_tracks(
        episode_truth(annotations, list(queries)),
        [prediction for prediction in predictions if prediction.video_id in videos],
    )
    interval = bootstrap(compared)["AP50"]
    mine = [one for one in found if one["video"] in videos]
    shares = {
        f"{name}_right": 100 * sum(one[which] >= RIGHT for one in mine) / len(mine)
        for name, which in (("first", "first"), ("any", "best"))
    }
    return {
        "AP50": 100 * score_tracks(compared)["AP50"],
        "low": _percent(interval["low"]),
        "high": _percent(interval["high"]),
        "queries": len(queries),
        **shares,
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _ious(
    annotations: Annotations, video: int, category: int, predictions: Sequence[Prediction]
) -> dict[str, float]:
    """IoU with the nearest instance: of the track with the highest score, and of the best one."""
    mine = sorted(predictions, key=lambda one: -one.score)
    truth = [
        track.segmentations
        for track in annotations.tracks_of(video)
        if track.category_id == category and not track.iscrowd
    ]
    if not mine or not truth:
        return {"first": 0.0, "best": 0.0}
    best = track_iou([one.segmentations for one in mine], truth).max(1)
    return {"first": float(best[0]), "best": float(best.max())}
