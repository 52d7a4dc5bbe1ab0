"""Intervals by drawing videos again, against evaluation on repeated videos and plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from selfshot.data.ytvis import Annotations, Prediction, Track, Video
from selfshot.evaluation.bootstrap import bootstrap, draw_videos, resampled_precision
from selfshot.evaluation.matches import Bins, compare_tracks, match_tracks
from selfshot.evaluation.video_ap import evaluate_tracks
from selfshot.ops.masks import Rle, encode_rle

HEIGHT, WIDTH, FRAMES = 29, 31, 3
EVERYTHING = Bins("area", np.array([[0.0, np.inf]]))


def _box(x: int, y: int) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + 9, x : x + 9] = True
    return encode_rle(mask)


def _scene(seed: int, videos: int = 7) -> tuple[Annotations, list[Prediction]]:
    """No score is given twice. The last video has no track, the last class is never annotated."""
    rng = np.random.default_rng(seed)
    tracks: list[Track] = []
    predictions: list[Prediction] = []
    scores = iter((rng.permutation(1000) / 1000).tolist())
    for video in range(1, videos + 1):
        for _ in range(int(rng.integers(1, 5)) if video < videos else 0):
            category = int(rng.integers(1, 4))
            x, y = int(rng.integers(0, 20)), int(rng.integers(0, 20))
            rles = (_box(x, y),) * FRAMES
            areas = tuple(float(coco_mask.area(rle)) for rle in rles)
            crowd = bool(rng.random() < 0.2)
            track = Track(len(tracks) + 1, video, category, rles, (None,) * FRAMES, areas, crowd)
            tracks.append(track)
            for _ in range(int(rng.integers(0, 4))):
                moved = (_box(x + int(rng.integers(0, 5)), y),) * FRAMES
                guess = category if rng.random() < 0.8 else int(rng.integers(1, 5))
                predictions.append(Prediction(video, guess, next(scores), moved))
        predictions.append(Prediction(video, 2, next(scores), (_box(0, 0),) * FRAMES))
    return (
        Annotations(
            {i: Video(i, WIDTH, HEIGHT, FRAMES, ()) for i in range(1, videos + 1)},
            {1: "swan", 2: "bear", 3: "fish", 4: "never annotated"},
            tuple(tracks),
        ),
        predictions,
    )


def _repeated(
    truth: Annotations, predictions: list[Prediction], counts: list[int]
) -> tuple[Annotations, list[Prediction]]:
    """Each video as often as it is counted, under ids of their own."""
    videos: dict[int, Video] = {}
    tracks: list[Track] = []
    again: list[Prediction] = []
    for video, count in zip(truth.videos.values(), counts, strict=True):
        for copy in range(count):
            number = 100 * video.id + copy
            videos[number] = dataclasses.replace(video, id=number)
            for track in truth.tracks_of(video.id):
                tracks.append(dataclasses.replace(track, id=len(tracks) + 1, video_id=number))
            again += [
                dataclasses.replace(one, video_id=number)
                for one in predictions
                if one.video_id == video.id
            ]
    return Annotations(videos, truth.categories, tuple(tracks)), again


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else -1.0


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_resample_is_the_score_of_repeated_videos(seed: int, class_agnostic: bool) -> None:
    truth, predictions = _scene(seed)
    matches = match_tracks(
        compare_tracks(truth, predictions), EVERYTHING, class_agnostic=class_agnostic
    )
    num_videos = len(truth.videos)
    counts = np.concatenate(
        [
            np.ones((1, num_videos), dtype=np.int64),
            np.full((1, num_videos), 3),
            np.eye(num_videos, dtype=np.int64),
            draw_videos(num_videos, 20, seed),
        ]
    )
    values = resampled_precision(matches, counts)
    for some, value in zip(counts, values, strict=True):
        expected = evaluate_tracks(
            *_repeated(truth, predictions, some.tolist()), class_agnostic=class_agnostic
        )
        assert _mean(value) == pytest.approx(expected["AP"], abs=1e-9)
        assert _mean(value[:, 0]) == pytest.approx(expected["AP50"], abs=1e-9)
        for index, category in enumerate(matches.categories):
            of_category = expected["AP50_per_category"][category]
            assert _mean(value[index, 0]) == pytest.approx(of_category, abs=1e-9)


def _in_loops(truth: Annotations, predictions: list[Prediction], draws: np.ndarray) -> list[float]:
    """AP50 of each draw, by evaluating the drawn videos themselves."""
    return [
        evaluate_tracks(*_repeated(truth, predictions, some.tolist()))["AP50"] for some in draws
    ]


def test_the_interval_in_loops() -> None:
    truth, predictions = _scene(0)
    compared = compare_tracks(truth, predictions)
    found = bootstrap(compared, resamples=60, seed=5)
    values = sorted(_in_loops(truth, predictions, draw_videos(len(truth.videos), 60, 5)))
    for name, share in (("low", 0.025), ("high", 0.975)):
        # The value at a share of the way through the sorted ones, between two neighbours.
        place = share * (len(values) - 1)
        below = int(place)
        expected = values[below] + (place - below) * (values[below + 1] - values[below])
        assert found["AP50"][name] == pytest.approx(expected, abs=1e-9)
    whole = evaluate_tracks(truth, predictions)
    bias = sum(values) / len(values) - whole["AP50"]
    assert found["AP50"]["bias"] == pytest.approx(bias, abs=1e-9)
    assert found["AP50"]["value"] == pytest.approx(whole["AP50"], abs=1e-9)
    assert found["AP"]["value"] == pytest.approx(whole["AP"], abs=1e-9)
    assert found["AP50"]["low"] < found["AP50"]["value"] < found["AP50"]["high"]
    assert (found["resamples"], found["seed"]) == (60, 5)


def test_a_result_does_not_differ_from_itself() -> None:
    truth, predictions = _scene(1)
    compared = compare_tracks(truth, predictions)
    found = bootstrap(compared, compared, resamples=50)
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "bias": 0.0, "above": 0.0}
    assert found["difference"] == {"AP50": nothing, "AP": nothing}
    assert found["other"] == {name: found[name] for name in ("AP50", "AP")}


def test_a_difference_is_paired() -> None:
    """Both results are drawn alike: the interval is narrower than that of two draws."""
    truth, predictions = _scene(2, videos=31)
    perfect = [
        Prediction(track.video_id, track.category_id, 2.0 + track.id, track.segmentations)
        for track in truth.tracks[::7]
    ]
    ours = compare_tracks(truth, predictions + perfect)
    theirs = compare_tracks(truth, predictions)
    found = bootstrap(ours, theirs, resamples=200, seed=3)
    difference, back = found["difference"], bootstrap(theirs, ours, resamples=200, seed=3)
    for name in ("AP50", "AP"):
        one = difference[name]
        assert one["value"] == pytest.approx(found[name]["value"] - found["other"][name]["value"])
        first, second = (each[name]["high"] - each[name]["low"] for each in (found, found["other"]))
        assert one["high"] - one["low"] < 0.8 * np.hypot(first, second)
        assert back["difference"][name]["low"] == pytest.approx(-one["high"])
        assert one["above"] > 0.9
        assert back["difference"][name]["above"] <= 1 - one["above"] + 1e-9


def test_the_seed_decides_the_draws() -> None:
    assert (draw_videos(7, 5, 1) == draw_videos(7, 5, 1)).all()
    assert (draw_videos(7, 5, 1) != draw_videos(7, 5, 2)).any()
    draws = draw_videos(7, 500, 0)
    assert (draws.sum(1) == 7).all()
    np.testing.assert_allclose(draws.mean(0), 1, atol=0.2)
    np.testing.assert_allclose(draws.var(0), 6 / 7, atol=0.2)


def test_many_predictions_are_summed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predictions = _scene(3)
    compared = compare_tracks(truth, predictions)
    whole = bootstrap(compared, resamples=23)
    monkeypatch.setattr("selfshot.evaluation.bootstrap._FLOATS_AT_ONCE", 50)
    assert bootstrap(compared, resamples=23) == whole


def test_without_ground_truth_there_is_no_interval() -> None:
    truth, predictions = _scene(4)
    empty = compare_tracks(dataclasses.replace(truth, tracks=()), predictions)
    found = bootstrap(empty, empty, resamples=5)
    unknown = dict.fromkeys(("value", "low", "high", "bias"))
    assert found["AP50"] == found["other"]["AP"] == unknown
    assert found["difference"]["AP"] == unknown | {"above": None}
    nothing = compare_tracks(Annotations({}, {1: "swan"}, ()), [])
    assert bootstrap(nothing, resamples=5)["AP"] == unknown
