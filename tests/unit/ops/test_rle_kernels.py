"""The compiled loops over run lengths, against masks that are drawn: any shape, any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from selfshot.ops import rle_kernels
from selfshot.ops.masks import encode_rle, extents_of
from selfshot.ops.runs import joined, runs_of

SIZE = (11, 7)
# Empty, full, of one pixel, of whole columns, of many pieces a column, and anything.
masks = (
    arrays(np.bool_, SIZE)
    | st.builds(np.full, st.just(SIZE), st.booleans())
    | st.tuples(st.integers(0, 10), st.integers(0, 6)).map(lambda yx: _one_pixel(*yx))
    | arrays(np.bool_, (1, SIZE[1])).map(lambda row: np.repeat(row, SIZE[0], axis=0))
    | arrays(np.bool_, (SIZE[0], 1)).map(lambda column: np.repeat(column, SIZE[1], axis=1))
)


def _one_pixel(y: int, x: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y, x] = True
    return mask


def shared(
    some: list[np.ndarray | None], others: list[np.ndarray | None], at_least: float = 0.0
) -> list[list[int]]:
    """Of tracks of one frame."""
    every = [*some, *others]
    codes, bounds = joined(["" if one is None else encode_rle(one)["counts"] for one in every])
    areas = np.array([0 if one is None else one.sum() for one in every])
    most = np.minimum(areas[: len(some), None], areas[len(some) :])[..., None]
    total = areas[: len(some), None] + areas[len(some) :]
    begins, ends = bounds[:-1, None], bounds[1:, None]
    found = rle_kernels.shared_pixels(
        codes, begins, ends, np.zeros(1, dtype=np.int64), most, total, at_least
    )
    return found.tolist()


@given(st.lists(masks, min_size=1, max_size=5), st.booleans())
def test_runs_are_those_of_the_masks(some: list[np.ndarray], as_bytes: bool) -> None:
    counts: list[str | bytes] = [encode_rle(mask)["counts"] for mask in some]
    if as_bytes:
        counts = [one.encode() for one in counts if isinstance(one, str)]
    runs, bounds = runs_of(counts)
    assert len(bounds) == len(some) + 1 and bounds[-1] == len(runs)
    for mask, first, last in zip(some, bounds, bounds[1:], strict=False):
        drawn = np.repeat(np.arange(last - first) % 2 == 1, runs[first:last])
        np.testing.assert_array_equal(drawn, mask.T.ravel())


@given(
    st.lists(st.none() | masks, min_size=1, max_size=4),
    st.lists(st.none() | masks, min_size=1, max_size=3),
)
def test_masks_share_what_drawn_masks_share(
    some: list[np.ndarray | None], others: list[np.ndarray | None]
) -> None:
    expected = [
        [0 if one is None or other is None else int((one & other).sum()) for other in others]
        for one in some
    ]
    assert shared(some, others) == expected


@pytest.mark.parametrize("at_least", [0.0, 0.5, 2 / 3, 1.0])
def test_a_pair_that_just_reaches_the_threshold_is_kept(at_least: float) -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:6, 1:5] = True
    for rows in range(1, 7):
        other = mask & (np.arange(SIZE[0]) < rows)[:, None]
        kept = rows / 6 >= at_least
        assert shared([mask], [other], at_least) == [[other.sum() if kept else 0]]


@pytest.mark.parametrize(("height", "width"), [(40_009, 3), (3, 7919), (32_768, 65_535)])
def test_frames_that_are_very_tall_or_wide(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    borders = np.sort(rng.choice(min(height * width, 2**31 - 1), (2, 8)), axis=1)
    forms = [
        {"size": [height, width], "counts": np.diff(one, prepend=0, append=height * width).tolist()}
        for one in borders
    ]
    packed = [coco_mask.frPyObjects(form, height, width) for form in forms]
    codes, bounds = joined([one["counts"] for one in packed])
    areas = np.array([int(coco_mask.area(one)) for one in packed])
    np.testing.assert_array_equal(
        extents_of([one["counts"] for one in packed], height, width)[0], areas
    )
    found = rle_kernels.shared_pixels(
        codes, bounds[:-1, None], bounds[1:, None], np.zeros(1, dtype=np.int64),
        areas.min()[None, None, None], areas.sum()[None, None], 0.0,
    )  # fmt: skip
    assert found.tolist() == [[int(coco_mask.area(coco_mask.merge(packed, intersect=True)))]]
