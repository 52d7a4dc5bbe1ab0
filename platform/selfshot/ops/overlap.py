"""How many pixels masks share, from their runs and for many masks at once: no mask is drawn.

A mask's runs go down its columns, so it is a set of pieces of columns. Nearly all masks have one
piece in a column, or few: the first pieces of all columns are a layer, the second ones another.
Two layers share, in each column, what lies below both tops and above both bottoms.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from selfshot.ops.runs import Runs

MOST_LAYERS = 4
"""A mask with more pieces in a column is compared by `shared_of_runs`, which is then as fast."""

WIDEST = 2**13
"""In pixels; a wider frame is compared by `shared_of_runs`, as a layer holds every column."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """Masks as pieces of columns, which begin at `tops` and end before `bottoms`.

    Where a layer has no piece both are 0. After the last column comes one for what is empty and
    stands at the end of the frame.
    """

    tops: Int[np.ndarray, "layers masks columns"]
    bottoms: Int[np.ndarray, "layers masks columns"]
    whole: Bool[np.ndarray, " masks"]
    """False for a mask with more pieces in a column than there may be: it is only in part here."""


def layers_of(
    runs: Runs, places: Int[np.ndarray, " masks"], num_masks: int, height: int, width: int
) -> Layers:
    """Lay out the runs of masks.

    Args:
        runs: of masks with at least one run each.
        places: where each of them goes, ascending.
        num_masks: how many there are with those in between, which stay empty.
        height: of the frames, in pixels.
        width: likewise.
    """
    column = runs.starts // np.int32(height)
    top = runs.starts - column * np.int32(height)
    bottom = top + (runs.ends - runs.starts)
    place = (places * (width + 1)).repeat(np.diff(runs.bounds)) + column
    if bottom.max(initial=0) > height:
        # A run that goes on in the next column is cut there.
        times = np.maximum((bottom - 1) // height, 0) + 1
        begins = np.cumsum(times) - times
        step = np.arange(times.sum()) - begins.repeat(times)
        place = place.repeat(times) + step
        top = np.maximum(top.repeat(times) - step * height, 0)
        bottom = np.minimum(bottom.repeat(times) - step * height, height)

    short = np.int16 if height < 2**15 else np.int32
    again = place[1:] == place[:-1]
    whole = np.ones(num_masks, dtype=bool)
    layer = np.zeros(0, dtype=np.int64)
    num_layers = 1
    if again.any():
        new = np.flatnonzero(np.append(True, ~again))
        layer = np.arange(len(place)) - new.repeat(np.diff(new, append=len(place)))
        num_layers = min(int(layer.max()) + 1, MOST_LAYERS)
        whole[place[layer >= MOST_LAYERS] // (width + 1)] = False
    tops = np.zeros((num_layers, num_masks, width + 1), dtype=short)
    bottoms = np.zeros_like(tops)
    for index in range(num_layers):
        mine = slice(None) if num_layers == 1 else layer == index
        where = place[mine]
        tops[index].reshape(-1)[where] = top[mine].astype(short)
        bottoms[index].reshape(-1)[where] = bottom[mine].astype(short)
    return Layers(tops, bottoms, whole)


def shared_of_layers(
    tops: Int[np.ndarray, "layers tracks frames columns"],
    bottoms: Int[np.ndarray, "layers tracks frames columns"],
    tracks: Int[np.ndarray, " some"],
    other: int,
) -> Int[np.ndarray, " some"]:
    """The pixels that some tracks share with another one of them."""
    shared = np.zeros(len(tracks), dtype=np.int64)
    for other_top, other_bottom in zip(tops[:, other], bottoms[:, other], strict=True):
        columns = np.flatnonzero(other_bottom.any(0))
        if not len(columns):
            continue
        seen = slice(columns[0], columns[-1] + 1)
        for top, bottom in zip(tops[..., seen], bottoms[..., seen], strict=True):
            common = np.minimum(bottom[tracks], other_bottom[:, seen])
            common -= np.maximum(top[tracks], other_top[:, seen])
            shared += np.maximum(common, 0, out=common).sum((1, 2), dtype=np.int64)
    return shared


def shared_of_runs(
    starts: Int[np.ndarray, " runs"],
    ends: Int[np.ndarray, " runs"],
    other_starts: Int[np.ndarray, " others"],
    other_ends: Int[np.ndarray, " others"],
) -> int:
    """The pixels that two masks share, whatever their runs are.

    No pixel is in more than two runs. So of all starts and all ends, each in their order, a run is
    followed by one that begins before it ends exactly where both masks are.
    """
    begin = np.sort(np.concatenate([starts, other_starts]), kind="stable")
    end = np.sort(np.concatenate([ends, other_ends]), kind="stable")
    return int(np.maximum(end[:-1] - begin[1:], 0).sum(dtype=np.int64))
