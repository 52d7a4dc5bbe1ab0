"""Video AP against the YouTube-VIS evaluator's own figures, and against plain loops."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

import selfshot.evaluation.track_iou
from selfshot.data.ytvis import (
    Annotations,
    Prediction,
    Track,
    Video,
    load_annotations,
    load_results,
)
from selfshot.evaluation.track_iou import Masks, masks_iou, track_iou
from selfshot.evaluation.video_ap import episode_scores, evaluate_tracks
from selfshot.ops.masks import Rle, decode_rle, encode_rle
from selfshot.ops.runs import joined

CASES = ["plain", "absent", "crowd", "large", "one_frame", "many_ties"]
HEIGHT, WIDTH = 11, 13


@pytest.fixture
def reference(shared: Path) -> Path:
    folder = shared / "reference" / "ytvis_eval"
    if not folder.is_dir():
        pytest.skip(f"no reference figures at {folder}")
    return folder


def _load(folder: Path, name: str) -> tuple[Annotations, list[Prediction]]:
    ground_truth = load_annotations(folder / f"{name}.ground_truth.json")
    return ground_truth, load_results(folder / f"{name}.results.json", ground_truth)


@pytest.mark.parametrize("mode", ["class_aware", "class_agnostic"])
@pytest.mark.parametrize("name", CASES)
def test_is_the_youtube_vis_evaluator(reference: Path, name: str, mode: str) -> None:
    expected = json.loads((reference / "expected.json").read_text())[name][mode]
    ground_truth, predictions = _load(reference, name)
    ours = evaluate_tracks(ground_truth, predictions, class_agnostic=mode == "class_agnostic")
    assert set(ours) == set(expected) | {"per_class_AP50", "pooled_AP50"}
    for key, value in expected.items():
        if key == "AP50_per_category":
            value = {int(category): figure for category, figure in value.items()}
        assert ours[key] == pytest.approx(value, abs=1e-9), key


@pytest.mark.parametrize("mode", ["class_aware", "class_agnostic"])
@pytest.mark.parametrize("name", CASES)
def test_both_of_the_papers_figures_in_either_mode(reference: Path, name: str, mode: str) -> None:
    expected = json.loads((reference / "expected.json").read_text())[name]
    ours = evaluate_tracks(*_load(reference, name), class_agnostic=mode == "class_agnostic")
    per_class, pooled = expected["class_aware"]["AP50"], expected["class_agnostic"]["AP50"]
    assert ours["per_class_AP50"] == pytest.approx(per_class, abs=1e-9)
    assert ours["pooled_AP50"] == pytest.approx(pooled, abs=1e-9)


def test_no_reference_case_is_left_out(reference: Path) -> None:
    assert set(json.loads((reference / "expected.json").read_text())) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_episode_scores_are_both_means(reference: Path, name: str) -> None:
    ground_truth, predictions = _load(reference, name)
    scores = episode_scores(ground_truth, predictions)
    aware = evaluate_tracks(ground_truth, predictions)
    agnostic = evaluate_tracks(ground_truth, predictions, class_agnostic=True)
    names = {"AP50", "AP", "AP75", "AR1", "AR10"}
    assert set(scores) == names | {"pooled"}
    assert {key: scores[key] for key in names} == {key: aware[key] for key in names}
    assert scores["pooled"] == {key: agnostic[key] for key in names}


def _rectangle(x: int, y: int, width: int, height: int) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return encode_rle(mask)


def _scene(
    tracks: list[tuple[int, list[Rle | None], bool]], *, frames: int, videos: int = 1
) -> Annotations:
    """One class `1`, and a class `2` that no track has unless it is said."""
    return Annotations(
        videos={v: Video(v, WIDTH, HEIGHT, frames, ()) for v in range(1, videos + 1)},
        categories={1: "swan", 2: "bear"},
        tracks=tuple(
            Track(
                id=index,
                video_id=video,
                category_id=1,
                segmentations=tuple(rles),
                boxes=(None,) * frames,
                areas=tuple(None if rle is None else float(coco_mask.area(rle)) for rle in rles),
                iscrowd=crowd,
            )
            for index, (video, rles, crowd) in enumerate(tracks)
        ),
    )


def _tracks_at_random(rng: np.random.Generator, count: int, frames: int) -> list[list[Rle | None]]:
    return [
        [
            None if rng.random() < 0.3 else encode_rle(rng.random((HEIGHT, WIDTH)) > rng.random())
            for _ in range(frames)
        ]
        for _ in range(count)
    ]


def test_track_iou_as_a_loop_over_merge_and_area() -> None:
    rng = np.random.default_rng(0)
    predicted, annotated = _tracks_at_random(rng, 5, 7), _tracks_at_random(rng, 3, 7)
    np.testing.assert_array_equal(
        track_iou(predicted, annotated), _in_loops(predicted, annotated)
    )


def _in_loops(
    predicted: list[list[Rle | None]], annotated: list[list[Rle | None]]
) -> np.ndarray:
    iou = np.zeros((len(predicted), len(annotated)))
    for i, j in np.ndindex(iou.shape):
        inter = union = 0.0
        for mask, other in zip(predicted[i], annotated[j], strict=True):
            both = [one for one in (mask, other) if one]
            if len(both) == 2:
                inter += float(coco_mask.area(coco_mask.merge(both, intersect=True)))
            if both:
                union += float(coco_mask.area(coco_mask.merge(both)))
        iou[i, j] = inter / union if union else 0.0
    return iou


frames_of_masks = st.lists(
    st.none()
    | arrays(np.bool_, (HEIGHT, WIDTH))
    | st.builds(np.full, st.just((HEIGHT, WIDTH)), st.booleans())
    | st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1)).map(
        lambda yx: np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) == yx[0] * WIDTH + yx[1]
    ),
    min_size=3,
    max_size=3,
)


@settings(max_examples=120)
@given(
    st.lists(frames_of_masks, min_size=1, max_size=3),
    st.lists(frames_of_masks, min_size=1, max_size=3),
)
def test_any_tracks_as_pycocotools_has_them(
    predicted: list[list[np.ndarray | None]], annotated: list[list[np.ndarray | None]]
) -> None:
    """Empty, full, of one pixel or any others."""
    first, second = (
        [[None if mask is None else encode_rle(mask) for mask in track] for track in tracks]
        for tracks in (predicted, annotated)
    )
    np.testing.assert_array_equal(track_iou(first, second), _in_loops(first, second))


@pytest.mark.parametrize("at_least", [0.1, 0.3, 0.5])
def test_track_iou_that_cannot_matter_is_not_computed(at_least: float) -> None:
    rng = np.random.default_rng(1)
    predicted, annotated = _tracks_at_random(rng, 11, 3), _tracks_at_random(rng, 7, 3)
    exact = track_iou(predicted, annotated)
    quick = track_iou(predicted, annotated, at_least=at_least)
    assert ((exact >= at_least) == (quick >= at_least)).all()
    np.testing.assert_array_equal(quick[quick > 0], exact[quick > 0])
    assert (quick[exact > 0] == 0).any()


@pytest.mark.parametrize(("rows", "columns", "frames"), [(2, 3, 61), (1, 2, 307), (67, 53, 2)])
def test_track_iou_of_many_frames_or_tracks(rows: int, columns: int, frames: int) -> None:
    rng = np.random.default_rng(frames)
    some = _tracks_at_random(rng, 3, frames)
    predicted = [some[int(rng.integers(3))][::-1] for _ in range(rows)]
    annotated = [some[int(rng.integers(3))] for _ in range(columns)]
    dense = [
        np.stack([_dense(rles) for rles in tracks]).reshape(len(tracks), -1).astype(float)
        for tracks in (predicted, annotated)
    ]
    inter = dense[0] @ dense[1].T
    union = dense[0].sum(1)[:, None] + dense[1].sum(1) - inter
    expected = inter / np.maximum(union, 1)  # No pixel in either of them is 0.
    np.testing.assert_array_equal(track_iou(predicted, annotated), expected)


def _dense(rles: list[Rle | None]) -> np.ndarray:
    empty = np.zeros((HEIGHT, WIDTH), dtype=bool)
    return np.stack([empty if rle is None else decode_rle(rle, HEIGHT, WIDTH) for rle in rles])


def test_a_track_that_is_given_twice_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    first, second, other = _tracks_at_random(rng, 3, 5)
    # Of the areas of the first one, but another mask.
    turned = [None if rle is None else encode_rle(_dense([rle])[0][::-1]) for rle in first]
    assert turned != first
    compared: list[int] = []

    def counting(counts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        compared.append(len(counts))
        return joined(counts)

    monkeypatch.setattr(selfshot.evaluation.track_iou, "joined", counting)
    alone = track_iou([first, second, turned], [other])
    assert compared == [4 * 5]
    again = track_iou([first, copy.deepcopy(first), second, turned, first], [other])
    np.testing.assert_array_equal(again, alone[[0, 0, 1, 2, 0]])
    assert compared == [4 * 5, 4 * 5]


def test_extents_that_are_known_are_not_measured_again() -> None:
    rng = np.random.default_rng(3)
    tracks = _tracks_at_random(rng, 5, 7)
    counted = Masks.of(tracks)
    np.testing.assert_array_equal(counted.areas, [_dense(one).sum((1, 2)) for one in tracks])
    half: list[Any] = [counted.extents[0], None, None, counted.extents[3], None]
    np.testing.assert_array_equal(Masks.of(tracks, half).extents, counted.extents)
    np.testing.assert_array_equal(
        masks_iou(Masks.of(tracks, half), counted), masks_iou(counted, counted)
    )


def test_track_iou_without_a_pixel_or_a_track() -> None:
    nothing = encode_rle(np.zeros((HEIGHT, WIDTH), dtype=bool))
    assert track_iou([[None, nothing]], [[None, None], [nothing, None]]).tolist() == [[0.0, 0.0]]
    assert track_iou([], [[None]]).shape == (0, 1)
    assert track_iou([[None]], []).shape == (1, 0)


def test_perfect_tracks_score_1() -> None:
    rles = [_rectangle(1, 2, 5, 3), None, _rectangle(3, 2, 5, 3)]
    ground_truth = _scene([(1, rles, False), (2, rles[::-1], False)], frames=3, videos=2)
    predictions = [Prediction(t.video_id, 1, 0.5, t.segmentations) for t in ground_truth.tracks]
    figures = evaluate_tracks(ground_truth, predictions)
    assert figures["AP"] == figures["AP50"] == figures["AR1"] == pytest.approx(1.0)
    assert figures["AP50_per_category"] == {1: pytest.approx(1.0), 2: -1.0}
    assert figures["APl"] == figures["APm"] == -1.0


def test_no_prediction_is_0_and_no_ground_truth_is_minus_1() -> None:
    rles: list[Rle | None] = [_rectangle(1, 2, 5, 3)]
    figures = evaluate_tracks(_scene([(1, rles, False)], frames=1), [])
    assert figures["AP"] == figures["AR100"] == 0.0
    empty = evaluate_tracks(_scene([], frames=1), [Prediction(1, 1, 0.5, tuple(rles))])
    assert set(empty["AP50_per_category"].values()) == {-1.0}
    assert {value for key, value in empty.items() if key != "AP50_per_category"} == {-1.0}


def test_a_crowd_is_neither_right_nor_wrong() -> None:
    target, crowd = _rectangle(0, 0, 5, 5), _rectangle(6, 6, 5, 5)
    ground_truth = _scene([(1, [crowd], True), (1, [target], False)], frames=1)
    predictions = [
        Prediction(1, 1, 0.9, (crowd,)),
        Prediction(1, 1, 0.8, (crowd,)),
        Prediction(1, 1, 0.7, (target,)),
    ]
    assert evaluate_tracks(ground_truth, predictions)["AP"] == pytest.approx(1.0)


def test_a_second_prediction_of_a_track_is_wrong() -> None:
    target, other = _rectangle(0, 0, 5, 5), _rectangle(6, 6, 5, 5)
    ground_truth = _scene([(1, [target], False), (1, [other], False)], frames=1)
    twice = [Prediction(1, 1, 0.9, (target,)), Prediction(1, 1, 0.8, (target,))]
    figures = evaluate_tracks(ground_truth, twice)
    assert figures["AP50"] == pytest.approx(51 / 101)
    assert figures["AR100"] == 0.5


# The published procedure, in plain loops, for random scenes.


def _ap_in_loops(ground_truth: Annotations, predictions: list[Prediction], iou: float) -> float:
    """AP of category 1 over all areas: greedy by score, then 101 recall points."""
    ranked: list[tuple[float, bool, bool]] = []
    total = sum(not track.iscrowd for track in ground_truth.tracks)
    for video in sorted(ground_truth.videos):
        tracks = sorted(ground_truth.tracks_of(video), key=lambda track: track.iscrowd)
        mine = sorted((p for p in predictions if p.video_id == video), key=lambda p: -p.score)
        taken: set[int] = set()
        overlaps = track_iou(
            [p.segmentations for p in mine], [track.segmentations for track in tracks]
        )
        for i, prediction in enumerate(mine):
            best, chosen = min(iou, 1 - 1e-10), None
            for j, track in enumerate(tracks):
                if j in taken and not track.iscrowd:
                    continue
                if chosen is not None and not tracks[chosen].iscrowd and track.iscrowd:
                    break
                if overlaps[i, j] >= best:
                    best, chosen = overlaps[i, j], j
            if chosen is not None:
                taken.add(chosen)
            ignored = chosen is not None and tracks[chosen].iscrowd
            ranked.append((prediction.score, chosen is not None, ignored))
    ranked.sort(key=lambda one: -one[0])
    right = wrong = 0
    curve: list[tuple[float, float]] = []
    for _, hit, ignored in ranked:
        right += hit and not ignored
        wrong += not hit and not ignored
        curve.append((right / total, right / max(right + wrong, 1)))
    points = [
        max((p for r, p in curve if r >= point), default=0.0)
        for point in np.linspace(0, 1, 101).tolist()
    ]
    return float(np.mean(points))


@pytest.mark.parametrize("seed", range(7))
def test_as_plain_loops_on_random_scenes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames, videos = 3, 5

    def moving() -> list[Rle | None]:
        x, y = int(rng.integers(0, 7)), int(rng.integers(0, 5))
        return [
            None if rng.random() < 0.2 else _rectangle(x + int(rng.integers(0, 2)), y, 5, 5)
            for _ in range(frames)
        ]

    tracks = [
        (int(rng.integers(1, videos + 1)), moving(), bool(rng.random() < 0.2)) for _ in range(11)
    ]
    tracks[0] = (1, moving(), False)
    ground_truth = _scene(tracks, frames=frames, videos=videos)
    predictions = [
        Prediction(video, 1, float(rng.integers(0, 5)) / 5, tuple(rles if keep else moving()))
        for video, rles, _ in tracks
        for keep in (True, False, rng.random() < 0.5)
    ]
    figures = evaluate_tracks(ground_truth, predictions)
    assert figures["AP50"] == pytest.approx(_ap_in_loops(ground_truth, predictions, 0.5))
    assert figures["AP75"] == pytest.approx(_ap_in_loops(ground_truth, predictions, 0.75))


def test_the_order_of_videos_and_untied_predictions_means_nothing() -> None:
    rng = np.random.default_rng(5)
    tracks = [(video, rles, False) for video in (1, 2, 3) for rles in _tracks_at_random(rng, 2, 5)]
    ground_truth = _scene(tracks, frames=5, videos=3)
    scores = rng.permutation(len(tracks)) / 7
    predictions = [
        Prediction(video, 1, float(score), tuple(rles))
        for (video, rles, _), score in zip(tracks, scores, strict=True)
    ]
    before = evaluate_tracks(ground_truth, predictions)
    turned = Annotations(
        dict(reversed(ground_truth.videos.items())),
        dict(reversed(ground_truth.categories.items())),
        ground_truth.tracks[::-1],
    )
    after: dict[str, Any] = evaluate_tracks(turned, predictions[::-1])
    assert after == before


@pytest.mark.parametrize("evaluate", [evaluate_tracks, episode_scores])
def test_no_video_at_all(evaluate: Callable[..., dict[str, Any]]) -> None:
    assert evaluate(Annotations({}, {1: "swan"}, ()), [])["AP50"] == -1.0
