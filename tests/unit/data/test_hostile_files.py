"""Files made to break a reader or to fill the memory: one clear error, or what they say."""

from __future__ import annotations

import copy
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusals import refused
from selfshot.data.ytvis import load_annotations, load_results
from selfshot.errors import UserError
from selfshot.evaluation.breakdown import break_down
from selfshot.evaluation.matches import compare_tracks
from selfshot.evaluation.video_ap import evaluate_tracks

MEGABYTE = 2**20
SIDE = 46_000
"""Of a frame that is 2 GB as a mask."""


def _file(folder: Path, content: Any, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _annotations(side: int, segmentation: Any) -> dict[str, Any]:
    return {
        "videos": [{"id": 1, "width": side, "height": side, "length": 1, "file_names": ["0.jpg"]}],
        "categories": [{"id": 1, "name": "swan"}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [segmentation]}
        ],
    }


def _result(segmentation: Any) -> list[dict[str, Any]]:
    return [{"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [segmentation]}]


def _runs(side: int, *runs: int) -> dict[str, Any]:
    return {"size": [side, side], "counts": [*runs, side * side - sum(runs)]}


@pytest.mark.parametrize(
    "segmentation",
    [
        _runs(100_000, 5),
        {"size": [100_000, 100_000], "counts": "PPYo01"},
        {"size": [7, 7], "counts": "PPYo01"},
        {"size": [7, 7], "counts": "oooooo0" * 3},
        {"size": [7, 7], "counts": [10**12, -(10**12), 49]},
        {"size": [7, 7], "counts": [10**30]},
        {"size": [10**30, 7], "counts": [49]},
        [[0, 0, 1e300, 0, 0, 1e300]],
        [[0, 0, float("nan"), 0, 0, 1]],
        [[0, 0, float("inf"), 0, 0, 1]],
        [[]],
        [[1, 2, 3, 4, 5, "6"]],
    ],
)
def test_absurd_masks_are_refused_without_being_made(tmp_path: Path, segmentation: Any) -> None:
    truth = load_annotations(_file(tmp_path, _annotations(7, _runs(7, 3, 9))))
    for content in (_annotations(7, segmentation), _result(segmentation)):
        path = _file(tmp_path, content, "bad.json")
        tracemalloc.start()
        with refused():
            if isinstance(content, list):
                load_results(path, truth)
            else:
                load_annotations(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * MEGABYTE


@pytest.mark.parametrize(
    "segmentation",
    [
        _runs(SIDE, 5, 70),
        _runs(SIDE, 0, 70, 0, 30, 90),  # With a run that is empty.
        _runs(SIDE, 0, SIDE * SIDE),
        [[1, 1, 9, 1, 9, 9, 1, 9]],
    ],
)
def test_a_huge_frame_is_never_drawn(tmp_path: Path, segmentation: Any) -> None:
    tracemalloc.start()
    truth = load_annotations(_file(tmp_path, _annotations(SIDE, segmentation)))
    results = load_results(_file(tmp_path, _result(segmentation), "results.json"), truth)
    figures = evaluate_tracks(truth, results)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert figures["AP"] == pytest.approx(1.0)
    assert peak < 10 * MEGABYTE


def test_an_outline_that_is_too_long_to_walk(tmp_path: Path) -> None:
    wide = _annotations(7, [[0, 0, 2e9, 0, 2e9, 1]])
    wide["videos"][0].update(width=2**31 - 1, height=1)
    with refused():
        load_annotations(_file(tmp_path, wide))


def test_counts_whose_sum_would_wrap_around(tmp_path: Path) -> None:
    # Each number is the difference to the one before last: 2³⁰ more in every second run.
    counts = "0" + "PPPPPP1" * 300
    with refused():
        load_annotations(_file(tmp_path, _annotations(7, {"size": [7, 7], "counts": counts})))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"videos":' * 50_000, "[" * 900 + "]" * 900])
def test_deep_nesting(tmp_path: Path, content: str) -> None:
    path = _file(tmp_path, content)
    with refused():
        load_annotations(path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("videos", "id", 2**63),
        ("categories", "id", -(10**40)),
        ("annotations", "id", 10**400),
        ("videos", "width", 10**30),
        ("videos", "length", 10**18),
        ("videos", "source_id", [[["x"]]]),
        ("videos", "source_id", True),
        ("videos", "file_names", ["half \ud800.jpg"]),
        ("annotations", "areas", [math.inf]),
        ("annotations", "bboxes", [[0, 0, math.nan, 1]]),
        ("annotations", "iscrowd", math.nan),
    ],
)
def test_values_of_no_use_are_named(tmp_path: Path, section: str, key: str, value: Any) -> None:
    content = _annotations(7, _runs(7, 3, 9))
    content[section][0][key] = value
    with refused():
        load_annotations(_file(tmp_path, content))


def test_of_two_equal_keys_the_last_counts(tmp_path: Path) -> None:
    text = json.dumps(_annotations(7, _runs(7, 3, 9)))
    path = _file(tmp_path, text.replace('"name": "swan"', '"name": "swan", "name": "bear"'))
    assert load_annotations(path).categories == {1: "bear"}


odd = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 60)
    | st.floats()
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
    | st.lists(st.floats(-9, 20), min_size=6, max_size=8).map(lambda polygon: [polygon])
    | st.lists(st.integers(0, 30), max_size=4).map(lambda runs: {"size": [7, 7], "counts": runs})
)


def _places(content: Any, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    steps = content if isinstance(content, dict) else range(len(content)) \
        if isinstance(content, list) else ()  # fmt: skip
    for step in steps:
        found += _places(content[step], (*path, step))
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_read_can_be_scored(tmp_path: Path, data: st.DataObject) -> None:
    """Wrong types and values at any key: what is left after quarantine has its figures."""
    contents: list[Any] = [_annotations(7, _runs(7, 3, 9)), _result(_runs(7, 4, 9)) * 2]
    contents[0]["annotations"] += copy.deepcopy(contents[0]["annotations"])
    contents[0]["annotations"][1]["id"] = 2
    for _ in range(data.draw(st.integers(1, 4))):
        which = data.draw(st.integers(0, 1))
        contents[which] = copy.deepcopy(contents[which])
        *way, last = data.draw(st.sampled_from(_places(contents[which])))
        place = contents[which]
        for step in way:
            place = place[step]
        place[last] = data.draw(odd)
    paths = [_file(tmp_path, content, f"{i}.json") for i, content in enumerate(contents)]
    try:
        truth = load_annotations(paths[0], quarantined=[])
        results = load_results(paths[1], truth, quarantined=[])
    except UserError:
        return
    figures = evaluate_tracks(truth, results)
    figures |= figures.pop("AP50_per_category")
    assert all(value == -1 or 0 <= value <= 1 + 1e-9 for value in figures.values())
    break_down(compare_tracks(truth, results), class_agnostic=True)
