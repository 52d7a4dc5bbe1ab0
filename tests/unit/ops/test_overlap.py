"""What masks share, against masks that are drawn: any shape, any size, both ways of counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from selfshot.ops.masks import encode_rle
from selfshot.ops.overlap import MOST_LAYERS, layers_of, shared_of_layers, shared_of_runs
from selfshot.ops.runs import object_runs

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


def _counts(some: list[np.ndarray]) -> list[str]:
    return [encode_rle(mask)["counts"] for mask in some]


@given(st.lists(masks, min_size=1, max_size=5), st.booleans())
def test_runs_are_those_of_the_masks(some: list[np.ndarray], as_bytes: bool) -> None:
    counts: list[str | bytes] = list(_counts(some))
    if as_bytes:
        counts = [one.encode() for one in counts if isinstance(one, str)]
    runs = object_runs(counts)
    assert len(runs.bounds) == len(some) + 1
    for mask, first, last in zip(some, runs.bounds, runs.bounds[1:], strict=False):
        drawn = np.zeros(mask.size, dtype=int)
        for start, end in zip(runs.starts[first:last], runs.ends[first:last], strict=True):
            assert 0 <= start <= end <= mask.size
            drawn[start:end] += 1
        np.testing.assert_array_equal(drawn, mask.T.ravel())


@given(
    st.lists(st.none() | masks, min_size=1, max_size=4),
    st.lists(st.none() | masks, min_size=1, max_size=3),
)
def test_layers_and_runs_share_what_drawn_masks_share(
    some: list[np.ndarray | None], others: list[np.ndarray | None]
) -> None:
    every = [*some, *others]
    seen = np.array([i for i, mask in enumerate(every) if mask is not None], dtype=np.int64)
    known = [mask for mask in every if mask is not None]
    if not known:
        return
    runs = object_runs(_counts(known))
    layers = layers_of(runs, seen, len(every), *SIZE)
    for i, mask in enumerate(every):
        pieces = 0 if mask is None else (np.diff(mask, axis=0, prepend=False) & mask).sum(0).max()
        assert layers.whole[i] == (pieces <= MOST_LAYERS)
    tops, bottoms = layers.tops[:, :, None], layers.bottoms[:, :, None]
    for j, other in enumerate(others, start=len(some)):
        shared = shared_of_layers(tops, bottoms, np.arange(len(some)), j)
        for i, mask in enumerate(some):
            if mask is None or other is None:
                assert shared[i] == 0
                continue
            expected = (mask & other).sum()
            if layers.whole[i] and layers.whole[j]:
                assert shared[i] == expected
            one, two = (
                slice(*runs.bounds[[place, place + 1]])
                for place in (seen.searchsorted(i), seen.searchsorted(j))
            )
            assert expected == shared_of_runs(
                runs.starts[one], runs.ends[one], runs.starts[two], runs.ends[two]
            )


@pytest.mark.parametrize(("height", "width"), [(40_009, 3), (3, 7919), (32_767, 2), (32_768, 2)])
def test_frames_that_are_very_tall_or_wide(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    bounds = np.sort(rng.choice(height * width, (2, 8), replace=False), axis=1)
    forms = [
        {"size": [height, width], "counts": np.diff(one, prepend=0, append=height * width).tolist()}
        for one in bounds
    ]
    packed = coco_mask.frPyObjects(forms, height, width)
    runs = object_runs([one["counts"] for one in packed])
    layers = layers_of(runs, np.arange(2), 2, height, width)
    assert layers.whole.all()
    shared = shared_of_layers(
        layers.tops[:, :, None], layers.bottoms[:, :, None], np.array([0]), 1
    )
    assert shared.tolist() == [int(coco_mask.area(coco_mask.merge(packed, intersect=True)))]
