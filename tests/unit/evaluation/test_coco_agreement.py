"""Videos of one frame are images: the score is COCOeval's, areas apart.

Two things differ by design. COCO's area ranges are those of images (32², 96²), so APs to ARl are
not compared. And COCO divides what a prediction shares with a crowd by the prediction's area, the
YouTube-VIS evaluator by the union as for any track; the two are equal where the prediction holds
the whole crowd, or none of it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from selfshot.data.ytvis import Annotations, Prediction, Track, Video
from selfshot.evaluation.video_ap import evaluate_tracks
from selfshot.ops.masks import Rle, encode_rle, rle_area, rle_to_box

HEIGHT, WIDTH = 37, 61
CATEGORIES = {2: "swan", 3: "bear", 5: "fish", 7: "never seen", 11: "never annotated"}
NAMES = {"AP": 0, "AP50": 1, "AP75": 2, "AR1": 6, "AR10": 7, "AR100": 8}


def _box(x: int, y: int, width: int, height: int) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[max(y, 0) : y + height, max(x, 0) : x + width] = True
    return encode_rle(mask)


def _scene(seed: int, *, crowds: bool) -> tuple[Annotations, list[Prediction]]:
    """Boxes on the left, crowds on the right; predictions hold a crowd whole, or none of it."""
    rng = np.random.default_rng(seed)
    tracks: list[Track] = []
    predictions: list[Prediction] = []

    def annotate(video: int, category: int, rle: Rle, crowd: bool) -> None:
        area = float(rle_area(rle))
        number = len(tracks) + 1
        tracks.append(Track(number, video, category, (rle,), (None,), (area,), crowd))

    def predict(video: int, category: int, rle: Rle) -> None:
        # Few different scores: there are ties in a video and between videos.
        predictions.append(Prediction(video, category, float(rng.integers(0, 7)) / 7, (rle,)))

    videos = range(3, 3 + 13)
    for video in videos:
        for _ in range(int(rng.integers(0, 5))):
            category = int(rng.choice([2, 3, 5]))
            x, y = int(rng.integers(0, 20)), int(rng.integers(0, 20))
            width, height = int(rng.integers(5, 13)), int(rng.integers(5, 13))
            annotate(video, category, _box(x, y, width, height), False)
            for _ in range(int(rng.integers(0, 4))):
                dx, dy = (int(one) for one in rng.integers(-2, 3, 2))
                guess = category if rng.random() < 0.7 else int(rng.choice([2, 3, 5, 7, 11]))
                predict(video, guess, _box(x + dx, y + dy, width, height))
        if crowds and rng.random() < 0.6:
            category = int(rng.choice([2, 3, 5, 11]))
            annotate(video, category, _box(45, 10, 7, 9), True)
            for _ in range(int(rng.integers(0, 4))):
                grow = int(rng.integers(0, 4))
                predict(video, category, _box(45 - grow, 10, 7 + 2 * grow, 9 + grow))
    # A video may have more predictions than count.
    for _ in range(int(rng.integers(90, 130))):
        predict(3, 2, _box(*(int(one) for one in rng.integers(0, 20, 2)), 6, 6))
    return (
        Annotations({i: Video(i, WIDTH, HEIGHT, 1, ()) for i in videos}, CATEGORIES, tuple(tracks)),
        predictions,
    )


def _coco_figures(
    truth: Annotations, predictions: list[Prediction], class_agnostic: bool
) -> dict[str, float]:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in truth.videos],
        "categories": [{"id": i, "name": name} for i, name in truth.categories.items()],
        "annotations": [
            {
                "id": track.id,
                "image_id": track.video_id,
                "category_id": track.category_id,
                "iscrowd": int(track.iscrowd),
                "segmentation": track.segmentations[0],
                "area": track.areas[0],
                "bbox": list(rle_to_box(track.segmentations[0] or {})),
            }
            for track in truth.tracks
        ],
    }
    coco.createIndex()
    entries: list[dict[str, Any]] = [
        {
            "image_id": one.video_id,
            "category_id": one.category_id,
            "score": one.score,
            "segmentation": copy.deepcopy(one.segmentations[0]),
        }
        for one in predictions
    ]
    evaluation = COCOeval(coco, coco.loadRes(entries), "segm")
    evaluation.params.useCats = int(not class_agnostic)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(evaluation.stats[index]) for name, index in NAMES.items()}


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(11))
def test_images_are_scored_as_coco_scores_them(
    seed: int, crowds: bool, class_agnostic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = _scene(seed, crowds=crowds)
    expected = _coco_figures(truth, predictions, class_agnostic)
    ours = evaluate_tracks(truth, predictions, class_agnostic=class_agnostic)
    assert 0 < expected["AP50"] < 1
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_a_part_of_a_crowd_is_where_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """COCO forgives a small prediction inside a crowd; the YouTube-VIS evaluator counts it."""
    truth = Annotations(
        {1: Video(1, WIDTH, HEIGHT, 1, ())},
        {2: "swan"},
        (
            Track(1, 1, 2, (_box(0, 0, 9, 9),), (None,), (81.0,)),
            Track(2, 1, 2, (_box(20, 0, 30, 30),), (None,), (900.0,), iscrowd=True),
        ),
    )
    predictions = [
        Prediction(1, 2, 0.9, (_box(25, 5, 7, 7),)),
        Prediction(1, 2, 0.8, (_box(0, 0, 9, 9),)),
    ]
    assert _coco_figures(truth, predictions, False)["AP50"] == pytest.approx(1.0)
    assert evaluate_tracks(truth, predictions)["AP50"] == pytest.approx(0.5)
