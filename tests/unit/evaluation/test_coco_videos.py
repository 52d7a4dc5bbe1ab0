"""Tracks are scored by COCOeval itself, which is given video IoUs and mean areas of the masks.

It knows nothing of ours but the format of the data: the IoU is a loop over pycocotools' merge and
area. Scenes have crowds, ties of score and of IoU, absent frames, tracks without a pixel,
categories without a track or a prediction, more predictions than count, and all three sizes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from selfshot.data.ytvis import Annotations, Prediction, Track, Video
from selfshot.evaluation.video_ap import evaluate_tracks
from selfshot.ops.masks import Rle, encode_rle

HEIGHT, WIDTH, FRAMES = 307, 419, 5
CATEGORIES = {2: "swan", 3: "bear", 5: "fish", 7: "never annotated", 11: "never at all"}
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIDES = (20, 100, 128, 129, 200, 256, 257, 300)  # At and about the bounds of the sizes.


def _square(x: int, y: int, side: int) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return encode_rle(mask)


def _mean_area(rles: tuple[Rle | None, ...]) -> float:
    areas = [float(coco_mask.area(rle)) for rle in rles if rle]
    seen = [area for area in areas if area]
    return float(np.mean(seen)) if seen else 0.0


def _video_iou(one: tuple[Rle | None, ...], other: tuple[Rle | None, ...]) -> float:
    inter = union = 0.0
    for pair in zip(one, other, strict=True):
        some = [rle for rle in pair if rle]
        if some:
            union += float(coco_mask.area(coco_mask.merge(some)))
        if len(some) == 2:
            inter += float(coco_mask.area(coco_mask.merge(some, intersect=True)))
    return inter / union if union else 0.0


def _scene(seed: int) -> tuple[Annotations, list[Prediction]]:
    rng = np.random.default_rng(seed)
    tracks: list[Track] = []
    predictions: list[Prediction] = []
    videos = range(3, 3 + 7)

    def moving(x: int, y: int, side: int) -> tuple[Rle | None, ...]:
        rles: list[Rle | None] = []
        for _ in range(FRAMES):
            kind = rng.random()
            dx, dy = (int(one) for one in rng.integers(0, 3, 2))
            rles.append(None if kind < 0.2 else _square(x + dx, y + dy, side if kind < 0.95 else 0))
        return tuple(rles)

    for video in videos:
        for _ in range(int(rng.integers(0, 4))):
            category, side = int(rng.choice([2, 3, 5])), int(rng.choice(SIDES))
            x, y = int(rng.integers(0, 100)), int(rng.integers(0, 5))
            rles = moving(x, y, side)
            areas = tuple(float(coco_mask.area(rle)) if rle else None for rle in rles)
            crowd = bool(rng.random() < 0.25)
            tracks.append(
                Track(len(tracks) + 1, video, category, rles, (None,) * FRAMES, areas, crowd)
            )
            for _ in range(int(rng.integers(0, 4))):
                guess = category if rng.random() < 0.7 else int(rng.choice([2, 3, 5, 7]))
                # The same masks again (a tie of IoU), or others.
                other = rles if rng.random() < 0.3 else moving(x, y, max(side - 7, 0))
                predictions.append(Prediction(video, guess, float(rng.integers(0, 5)) / 5, other))
        if rng.random() < 0.3:
            predictions.append(Prediction(video, 2, 0.9, (None,) * FRAMES))
    few = moving(0, 0, 20)
    for number in range(103):
        predictions.append(Prediction(3, 2, number / 103, few))
    return (
        Annotations(
            {i: Video(i, WIDTH, HEIGHT, FRAMES, ()) for i in videos}, CATEGORIES, tuple(tracks)
        ),
        predictions,
    )


class VideoCocoEval(COCOeval):  # type: ignore[misc]
    """COCOeval whose images are videos."""

    def computeIoU(self, image: int, category: int) -> Any:  # noqa: N802

        def of(kept: dict[tuple[int, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
            if self.params.useCats:
                return kept[image, category]
            return [one for each in self.params.catIds for one in kept[image, each]]

        tracks, predicted = of(self._gts), of(self._dts)
        order = np.argsort([-one["score"] for one in predicted], kind="mergesort")
        best = [predicted[i] for i in order][: self.params.maxDets[-1]]
        if not tracks and not best:
            return []
        return np.array(
            [[_video_iou(one["track"], other["track"]) for other in tracks] for one in best]
        ).reshape(len(best), len(tracks))


def _by_coco(
    truth: Annotations, predictions: list[Prediction], class_agnostic: bool
) -> dict[str, float]:
    def entry(number: int, one: Track | Prediction) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": one.video_id,
            "category_id": one.category_id,
            "track": one.segmentations,
            "area": _mean_area(one.segmentations),
        }

    found = []
    for entries in (
        [{**entry(one.id, one), "iscrowd": int(one.iscrowd)} for one in truth.tracks],
        [
            {**entry(i, one), "score": one.score, "iscrowd": 0}
            for i, one in enumerate(predictions, start=1)
        ],
    ):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in truth.videos],
            "categories": [{"id": i, "name": name} for i, name in truth.categories.items()],
            "annotations": copy.deepcopy(entries),
        }
        coco.createIndex()
        found.append(coco)
    evaluation = VideoCocoEval(*found, "bbox")
    evaluation.params.useCats = int(not class_agnostic)
    evaluation.params.maxDets = [1, 10, 100]
    evaluation.params.areaRng = [
        [0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10],
    ]  # fmt: skip
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("seed", range(13))
def test_tracks_are_scored_as_coco_scores_them(
    seed: int, class_agnostic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = _scene(seed)
    expected = _by_coco(truth, predictions, class_agnostic)
    ours = evaluate_tracks(truth, predictions, class_agnostic=class_agnostic)
    assert 0 < expected["AP50"] < 1
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_the_scenes_have_what_they_are_for() -> None:
    tracks = [track for seed in range(13) for track in _scene(seed)[0].tracks]
    areas = np.array([_mean_area(track.segmentations) for track in tracks])
    assert sum(track.iscrowd for track in tracks) > 10
    for low, high in [(0, 128**2), (128**2, 256**2), (256**2, 1e10)]:
        assert ((areas >= low) & (areas <= high)).sum() > 10
    assert (areas == 128**2).any() and (areas == 256**2).any()
