"""Run lengths: every form read, and nothing that pycocotools would read past its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from selfshot.ops.masks import (
    decode_rle,
    encode_rle,
    extents_of,
    measured_rles,
    rle_area,
    rle_to_box,
    to_rle,
)
from selfshot.ops.runs import counts_of

masks = st.tuples(st.integers(1, 13), st.integers(1, 11)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
masks_of_one_size = arrays(np.bool_, (11, 13))
json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.text(alphabet=[chr(48 + i) for i in range(64)], max_size=12),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def _runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, by a loop over pixels."""
    runs, value = [0], False
    for pixel in mask.T.flatten():
        if bool(pixel) != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


@given(masks)
def test_there_and_back(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    height, width = mask.shape
    assert rle["size"] == [height, width] and isinstance(rle["counts"], str)
    np.testing.assert_array_equal(decode_rle(rle, height, width), mask)
    np.testing.assert_array_equal(
        decode_rle({**rle, "counts": rle["counts"].encode()}, height, width), mask
    )
    assert rle_area(rle) == mask.sum()


@given(masks)
def test_uncompressed_is_the_same_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    runs = _runs(mask)
    segmentation = {"size": [height, width], "counts": runs}
    np.testing.assert_array_equal(decode_rle(segmentation, height, width), mask)
    assert counts_of(encode_rle(mask)["counts"]).tolist() == runs


def test_counts_of_a_large_mask() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((720, 1280)) > 0.5
    mask[:, 300:1000] = True
    assert counts_of(encode_rle(mask)["counts"]).tolist() == _runs(mask)


@given(masks)
def test_the_box_is_the_extent(mask: np.ndarray) -> None:
    ys, xs = np.nonzero(mask)
    expected = (0.0, 0.0, 0.0, 0.0)
    if len(ys):
        expected = (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
    assert rle_to_box(encode_rle(mask)) == expected


@pytest.mark.parametrize("nested", [True, False])
def test_polygons(nested: bool) -> None:
    square = [2.0, 3.0, 7.0, 3.0, 7.0, 5.0, 2.0, 5.0]
    mask = decode_rle([square] if nested else square, 11, 13)
    expected = np.zeros((11, 13), dtype=bool)
    expected[3:5, 2:7] = True
    np.testing.assert_array_equal(mask, expected)


def test_several_polygons_are_one_mask() -> None:
    first, other = [0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 8, 5, 8, 8, 5, 8]
    both = decode_rle([first, other], 11, 13)
    np.testing.assert_array_equal(both, decode_rle([first], 11, 13) | decode_rle([other], 11, 13))


GOOD = encode_rle(np.eye(5, 7, dtype=bool))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (GOOD | {"size": [7, 5]}, r"size: \[7, 5\] differs from the video's \[5, 7\]"),
        (GOOD | {"size": [5]}, "size"),
        (GOOD | {"size": None}, "size"),
        (GOOD | {"size": [5.0, 7.0]}, "size"),
        (GOOD | {"counts": GOOD["counts"][:-1]}, "do not fill"),
        (GOOD | {"counts": GOOD["counts"] + "1"}, "do not fill"),
        (GOOD | {"counts": ""}, "do not fill"),
        (GOOD | {"counts": "P"}, "cut short"),
        (GOOD | {"counts": "o" * 9 + "1"}, "beyond 32 bits"),
        (GOOD | {"counts": " "}, "outside the RLE code"),
        (GOOD | {"counts": "é"}, "outside the RLE code"),
        (GOOD | {"counts": None}, "counts"),
        (GOOD | {"counts": [35, 1]}, "do not fill"),
        (GOOD | {"counts": [36, -1]}, "counts"),
        (GOOD | {"counts": [True, 34]}, "counts"),
        (GOOD | {"counts": [10**30]}, "counts"),
        ({}, "size"),
        ([], "segmentation"),
        ([[]], "polygon"),
        ([[1.0, 2.0, 3.0, 4.0]], "polygon"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "polygon"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]], "polygon"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, float("inf")]], "polygon"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 1e9]], "polygon"),
        ([["a"] * 6], "polygon"),
        (None, "segmentation"),
        ("text", "segmentation"),
        (5, "segmentation"),
    ],
)
def test_what_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, 5, 7)


@settings(max_examples=300)
@given(json_like)
def test_anything_else_is_a_value_error_or_a_mask(segmentation: Any) -> None:
    try:
        rle = to_rle(segmentation, 5, 7)
    except ValueError:
        return
    assert coco_mask.decode(rle).shape == (5, 7)


@settings(max_examples=300)
@given(st.text(alphabet=[chr(48 + i) for i in range(64)], max_size=12))
def test_any_compressed_counts_are_refused_or_fill_the_frame(counts: str) -> None:
    try:
        rle = to_rle({"size": [5, 7], "counts": counts}, 5, 7)
    except ValueError:
        return
    mask = coco_mask.decode(rle)
    assert mask.shape == (5, 7) and mask.max() <= 1
    assert rle_area(rle) == mask.sum()


@given(st.lists(st.none() | arrays(np.bool_, (5, 7)), max_size=5))
def test_a_track_is_its_frames(track: list[np.ndarray | None]) -> None:
    rles = [None if mask is None else encode_rle(mask) for mask in track]
    assert list(measured_rles(rles, 5, 7)[0]) == rles


@given(st.lists(st.none() | masks_of_one_size, max_size=5))
def test_the_extents_of_a_track(track: list[np.ndarray | None]) -> None:
    rles = [None if mask is None else encode_rle(mask) for mask in track]
    _, extents = measured_rles(rles, 11, 13)
    known = [rle["counts"] for rle in rles if rle]
    np.testing.assert_array_equal(
        extents_of(known, 11, 13), extents[:, [mask is not None for mask in track]]
    )
    for mask, extent in zip(track, extents.T.tolist(), strict=True):
        columns = np.flatnonzero(mask.any(0)) if mask is not None else []
        if mask is None or not len(columns):
            assert extent == [0, 0, 0]
        else:
            assert extent == [mask.sum(), columns[0], columns[-1] + 1]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=3))
def test_masks_with_empty_runs_are_written_anew(tracks: list[list[int]]) -> None:
    """Of identical masks with an empty run pycocotools says that they share nothing."""
    forms = [{"size": [5, 7], "counts": [*runs, 35 - sum(runs)]} for runs in tracks]
    packed = [coco_mask.frPyObjects(form, 5, 7)["counts"].decode() for form in forms]
    some = [{"size": [5, 7], "counts": counts} for counts in packed]
    rles, extents = measured_rles(some, 5, 7)
    for form, rle, area in zip(forms, rles, extents[0], strict=True):
        mask = decode_rle(form, 5, 7)
        assert rle == encode_rle(mask)
        assert area == mask.sum()
        assert measured_rles([form], 5, 7)[0] == (rle,)


def test_a_track_of_mixed_forms() -> None:
    mask = np.zeros((11, 13), dtype=bool)
    mask[3:5, 2:7] = True
    rle = encode_rle(mask)
    square = [2.0, 3.0, 7.0, 3.0, 7.0, 5.0, 2.0, 5.0]
    forms = [rle, None, [square], [], {"size": [11, 13], "counts": _runs(mask)}]
    assert measured_rles(forms, 11, 13)[0] == (rle, None, rle, None, rle)


@settings(max_examples=300)
@given(st.lists(st.text(alphabet=[chr(48 + i) for i in range(64)], max_size=6), max_size=4))
def test_a_track_is_refused_as_its_frames_are(counts: list[str]) -> None:
    segmentations = [{"size": [2, 3], "counts": text} for text in [*counts, "6"]]
    try:
        expected = [to_rle(one, 2, 3) for one in segmentations]
    except ValueError:
        with pytest.raises(ValueError, match="frame"):
            measured_rles(segmentations, 2, 3)
    else:
        assert list(measured_rles(segmentations, 2, 3)[0]) == expected


def test_a_track_names_the_frame() -> None:
    with pytest.raises(ValueError, match="frame 2: counts: runs of 37 pixels"):
        measured_rles([GOOD, None, GOOD | {"counts": GOOD["counts"] + "1"}], 5, 7)
