"""Scores of classes, groups and queries, against the evaluator on the same queries alone."""

from __future__ import annotations

import numpy as np
import pytest

from selfshot.data.ytvis import Annotations, Prediction, Track, Video
from selfshot.evaluation.details import row_details
from selfshot.evaluation.video_ap import evaluate_tracks
from selfshot.ops.masks import Rle, encode_rle, rle_area

HEIGHT, WIDTH, FRAMES = 29, 31, 3
GROUPS = {"photos": (1, 2), "real": (3, 4)}
QUERIES = [(1, "swan"), (2, "swan"), (2, "bear"), (3, "swan"), (4, "bear")]


def _box(x: int, width: int = 10) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:13, x : x + width] = True
    return encode_rle(mask)


def _track(number: int, video: int, category: int, x: int, crowd: bool = False) -> Track:
    rles = (_box(x),) * FRAMES
    areas = tuple(float(rle_area(rle)) for rle in rles)
    return Track(number, video, category, rles, (None,) * FRAMES, areas, crowd)


def _predicted(video: int, category: int, score: float, x: int, width: int = 10) -> Prediction:
    return Prediction(video, category, score, (_box(x, width),) * FRAMES)


@pytest.fixture
def annotations() -> Annotations:
    tracks = (
        _track(1, 1, 1, 0), _track(2, 2, 1, 5), _track(3, 2, 2, 18), _track(4, 3, 1, 7),
        _track(5, 4, 2, 9), _track(6, 4, 2, 20, crowd=True),
    )  # fmt: skip
    videos = {i: Video(i, WIDTH, HEIGHT, FRAMES, ()) for i in range(1, 6)}
    return Annotations(videos, {1: "swan", 2: "bear"}, tracks)


@pytest.fixture
def predictions() -> list[Prediction]:
    return [
        _predicted(1, 1, 0.9, 0),  # right
        _predicted(2, 1, 0.8, 20), _predicted(2, 1, 0.3, 5),  # found, and not chosen
        _predicted(2, 2, 0.7, 18, width=4),  # coarse: 0.4
        _predicted(4, 2, 0.6, 20),  # only the crowd
    ]  # fmt: skip


class TestQueries:
    def test_first_and_best(
        self, annotations: Annotations, predictions: list[Prediction]
    ) -> None:
        found = row_details(annotations, QUERIES, predictions, GROUPS)["queries"]
        ious = [(round(one["first"], 6), round(one["best"], 6)) for one in found]
        assert ious == [(1, 1), (0, 1), (0.4, 0.4), (0, 0), (0, 0)]
        assert [(one["video"], one["class"]) for one in found] == QUERIES
        assert [one["group"] for one in found] == ["photos"] * 3 + ["real"] * 2

    def test_the_order_of_predictions_says_nothing(
        self, annotations: Annotations, predictions: list[Prediction]
    ) -> None:
        one = row_details(annotations, QUERIES, predictions, GROUPS)
        assert row_details(annotations, QUERIES, predictions[::-1], GROUPS) == one


class TestClasses:
    def test_as_the_evaluator_has_them(
        self, annotations: Annotations, predictions: list[Prediction]
    ) -> None:
        found = row_details(annotations, QUERIES, predictions, {})["classes"]
        of_class = evaluate_tracks(annotations, predictions)["AP50_per_category"]
        assert {name: one["AP50"] for name, one in found.items()} == {
            "swan": 100 * of_class[1], "bear": 100 * of_class[2],
        }  # fmt: skip
        assert found["swan"]["queries"] == 3 and found["bear"]["queries"] == 2
        assert 0 < found["swan"]["AP50"] < 100

    def test_a_class_that_is_no_query_does_not_count(
        self, annotations: Annotations, predictions: list[Prediction]
    ) -> None:
        swans = [query for query in QUERIES if query[1] == "swan"]
        assert list(row_details(annotations, swans, predictions, {})["classes"]) == ["swan"]


class TestGroups:
    def test_alone(self, annotations: Annotations, predictions: list[Prediction]) -> None:
        found = row_details(annotations, QUERIES, predictions, GROUPS)["groups"]
        photos = Annotations(
            {i: annotations.videos[i] for i in (1, 2)},
            annotations.categories,
            tuple(track for track in annotations.tracks if track.video_id < 3),
        )
        alone = evaluate_tracks(photos, [one for one in predictions if one.video_id < 3])
        assert found["photos"]["AP50"] == 100 * alone["AP50"] > 0
        assert found["photos"]["low"] <= found["photos"]["AP50"] <= found["photos"]["high"]
        assert found["photos"]["queries"] == 3
        assert found["photos"]["first_right"] == pytest.approx(100 / 3)
        assert found["photos"]["any_right"] == pytest.approx(200 / 3)
        assert found["real"]["AP50"] == found["real"]["any_right"] == 0

    def test_one_without_queries_is_left_out(
        self, annotations: Annotations, predictions: list[Prediction]
    ) -> None:
        groups = {**GROUPS, "nothing": (5,)}
        assert set(row_details(annotations, QUERIES, predictions, groups)["groups"]) == set(GROUPS)

    def test_nothing_predicted(self, annotations: Annotations) -> None:
        found = row_details(annotations, QUERIES, [], GROUPS)
        assert all(one["AP50"] == 0 for one in found["classes"].values())
        assert all(one["best"] == 0 for one in found["queries"])
