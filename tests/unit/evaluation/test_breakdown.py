"""The score by difficulty, against scores of the parts that are meant."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from selfshot.data.ytvis import Annotations, Prediction, Track, Video
from selfshot.evaluation.breakdown import (
    ABSENCE_BINS,
    AREA_NAMES,
    CLASS_BINS,
    INSTANCE_BINS,
    LENGTH_BINS,
    break_down,
)
from selfshot.evaluation.matches import compare_tracks
from selfshot.evaluation.video_ap import evaluate_tracks
from selfshot.ops.masks import Rle, encode_rle

HEIGHT, WIDTH = 290, 310
CATEGORIES = {1: "swan", 2: "bear", 3: "fish"}
LENGTHS = [3, 17, 5, 37, 2, 16]


def _box(x: int, y: int, side: int) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return encode_rle(mask)


def _scene(seed: int) -> tuple[Annotations, list[Prediction]]:
    """Videos of one to six instances of all sizes, absent now and then; and guesses at them."""
    rng = np.random.default_rng(seed)
    videos = {i: Video(i, WIDTH, HEIGHT, n, ()) for i, n in enumerate(LENGTHS, start=1)}
    tracks: list[Track] = []
    predictions: list[Prediction] = []
    for video in videos.values():
        for _ in range(video.id):
            side = int(rng.choice([30, 150, 270]))
            category = int(rng.integers(1, 4))
            absent = float(rng.choice([0.0, 0.2, 0.6]))
            x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
            rles = tuple(
                None if rng.random() < absent else _box(x, y, side) for _ in range(video.length)
            )
            areas = tuple(None if rle is None else float(coco_mask.area(rle)) for rle in rles)
            crowd = bool(rng.random() < 0.1)
            boxes = (None,) * video.length
            tracks.append(Track(len(tracks) + 1, video.id, category, rles, boxes, areas, crowd))
            for score in rng.random(2).tolist():
                moved = _box(x + int(rng.integers(0, side // 3)), y, side)
                guess = category if rng.random() < 0.8 else int(rng.integers(1, 4))
                seen = tuple(rle and moved for rle in rles)
                predictions.append(Prediction(video.id, guess, score, seen))
    return Annotations(videos, CATEGORIES, tuple(tracks)), predictions


def _only(
    truth: Annotations, predictions: list[Prediction], videos: set[int]
) -> tuple[Annotations, list[Prediction]]:
    return (
        Annotations(
            {i: video for i, video in truth.videos.items() if i in videos},
            truth.categories,
            tuple(track for track in truth.tracks if track.video_id in videos),
        ),
        [one for one in predictions if one.video_id in videos],
    )


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_bin_of_videos_is_the_score_of_these_videos(seed: int, class_agnostic: bool) -> None:
    truth, predictions = _scene(seed)
    found = break_down(compare_tracks(truth, predictions), class_agnostic=class_agnostic)
    instances = {i: sum(not track.iscrowd for track in truth.tracks_of(i)) for i in truth.videos}
    classes = {
        i: len({track.category_id for track in truth.tracks_of(i) if not track.iscrowd})
        for i in truth.videos
    }
    lengths = {i: video.length for i, video in truth.videos.items()}
    scored = 0
    for name, bins, values in (
        ("instances", INSTANCE_BINS, instances),
        ("classes", CLASS_BINS, classes),
        ("length", LENGTH_BINS, lengths),
    ):
        assert list(found[name]) == list(bins)
        for label, (low, high) in bins.items():
            chosen = {i for i, value in values.items() if low <= value <= high}
            expected = evaluate_tracks(
                *_only(truth, predictions, chosen), class_agnostic=class_agnostic
            )
            figures = found[name][label]
            assert figures["videos"] == len(chosen)
            assert figures["tracks"] == sum(instances[i] for i in chosen)
            assert figures["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)
            assert figures["AP"] == pytest.approx(expected["AP"], abs=1e-12)
            scored += figures["AP50"] > 0
    assert scored > 5


@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_the_evaluator(seed: int) -> None:
    truth, predictions = _scene(seed)
    found = break_down(compare_tracks(truth, predictions))["area"]
    whole = evaluate_tracks(truth, predictions)
    assert [found[name]["AP"] for name in AREA_NAMES] == [
        pytest.approx(whole[key], abs=1e-12) for key in ("APs", "APm", "APl")
    ]
    assert sum(one["tracks"] for one in found.values()) == sum(
        not track.iscrowd for track in truth.tracks
    )


def _by_hand(times_absent: int) -> dict[str, dict[str, float]]:
    """Of eight frames, one track is always seen and another only sometimes."""
    near, far = _box(0, 0, 50), _box(200, 200, 50)
    often: tuple[Rle | None, ...] = (far,) * (8 - times_absent) + (None,) * times_absent
    truth = Annotations(
        {1: Video(1, WIDTH, HEIGHT, 8, ())},
        {1: "swan"},
        (
            Track(1, 1, 1, (near,) * 8, (None,) * 8, (2500.0,) * 8),
            Track(2, 1, 1, often, (None,) * 8, tuple(rle and 2500.0 for rle in often)),
        ),
    )
    predictions = [
        Prediction(1, 1, 0.9, often),
        Prediction(1, 1, 0.8, (_box(100, 100, 20),) * 8),  # Finds nothing, and is never absent.
        Prediction(1, 1, 0.7, (near,) * 8),
    ]
    found: dict[str, dict[str, float]] = break_down(compare_tracks(truth, predictions))["absence"]
    return found


@pytest.mark.parametrize(("times_absent", "label"), [(1, 1), (2, 1), (3, 2), (7, 2)])
def test_absence_is_the_share_of_frames_out_of_sight(times_absent: int, label: int) -> None:
    names = list(ABSENCE_BINS)
    found = _by_hand(times_absent)
    # The wrong one is never absent, so it is wrong only there.
    assert found[names[0]]["AP50"] == pytest.approx(0.5)
    assert found[names[label]]["AP50"] == pytest.approx(1.0)
    assert found[names[0]]["tracks"] == found[names[label]]["tracks"] == 1
    assert found[names[3 - label]] == {"AP50": -1.0, "AP": -1.0, "tracks": 0}


def test_every_share_of_absence_has_one_bin() -> None:
    bounds = np.array(list(ABSENCE_BINS.values()))
    for share in [*np.arange(1001) / 1000, np.nextafter(0, 1), np.nextafter(0.25, 1)]:
        assert ((bounds[:, 0] <= share) & (share <= bounds[:, 1])).sum() == 1


def test_nothing_at_all() -> None:
    found = break_down(compare_tracks(Annotations({}, {1: "swan"}, ()), []))
    assert {figures["AP50"] for bins in found.values() for figures in bins.values()} == {-1.0}
