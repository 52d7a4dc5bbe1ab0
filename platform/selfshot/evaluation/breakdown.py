"""The score by difficulty: which videos and which instances are hard (the paper's Table 4).

Some properties belong to a video: how many instances and classes it shows, and how long it is. Each
bin is then scored on its videos alone. Others belong to an instance: its area, and how often it is
out of sight. Each bin is then scored on all videos, and what lies outside is ignored, as the
evaluator ignores what lies outside of an area range: a track of another bin need not be found, what
finds it is neither right nor wrong, and a prediction that finds nothing counts as wrong only in the
bin that it belongs to itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from selfshot.evaluation.matches import Bins, Compared, ComparedVideo, Matches, match_tracks
from selfshot.evaluation.video_ap import AREA_BINS, mean_of_known, precision_at_recall

# Lowest and highest, both included. Those of instances and classes are Table 4's columns.
INSTANCE_BINS = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4": (4, 4), "≥ 5": (5, np.inf)}
CLASS_BINS = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "≥ 4": (4, np.inf)}
LENGTH_BINS = {
    "≤ 15 frames": (1, 15),
    "16–30 frames": (16, 30),
    "31–60 frames": (31, 60),
    "> 60 frames": (61, np.inf),
}
AREA_NAMES = ("< 128² pixels", "128²–256² pixels", "> 256² pixels")
# The share of the video's frames in which an instance is out of sight.
ABSENCE_BINS = {
    "never absent": (0.0, 0.0),
    "absent in ≤ 25%": (np.nextafter(0.0, 1.0), 0.25),
    "absent in > 25%": (np.nextafter(0.25, 1.0), 1.0),
}

_WHOLE, _SIZES = slice(0, 1), slice(1, None)


def break_down(
    compared: Compared, *, class_agnostic: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """AP50 and AP by difficulty.

    An annotated crowd is no instance. A video without any instance is in no bin of `instances` and
    `classes`; what is predicted there counts in `length`, and in the bins of instances.

    Args:
        compared: every video that counts.
        class_agnostic: treat all categories as one.

    Returns:
        By `instances`, `classes` and `length` of the video, and by `area` and `absence` of the
        instance; for each bin its `AP50`, `AP`, `tracks` and, for bins of videos, `videos`.
    """
    by_area = match_tracks(compared, AREA_BINS, class_agnostic=class_agnostic)
    whole = _bins_of(by_area, _WHOLE)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    properties: Mapping[str, tuple[Mapping[str, tuple[float, float]], Callable[..., int]]] = {
        "instances": (INSTANCE_BINS, _num_instances),
        "classes": (CLASS_BINS, _num_classes),
        "length": (LENGTH_BINS, lambda video: video.num_frames),
    }
    for name, (bins, count) in properties.items():
        counts = np.array([count(video) for video in compared.videos], dtype=np.int64)
        found[name] = {}
        for label, (low, high) in bins.items():
            chosen = (counts >= low) & (counts <= high)
            (figures,) = _figures(_videos_of(whole, chosen))
            found[name][label] = figures | {"videos": int(chosen.sum())}
    sizes = _figures(_bins_of(by_area, _SIZES))
    found["area"] = dict(zip(AREA_NAMES, sizes, strict=True))
    absence = Bins("absence", np.array(list(ABSENCE_BINS.values()), dtype=np.float64))
    by_absence = match_tracks(compared, absence, class_agnostic=class_agnostic)
    found["absence"] = dict(zip(ABSENCE_BINS, _figures(by_absence), strict=True))
    return found


def _num_instances(video: ComparedVideo) -> int:
    return int((~video.crowd).sum())


def _num_classes(video: ComparedVideo) -> int:
    return len(np.unique(video.tracks.categories[~video.crowd]))


def _bins_of(matches: Matches, bins: slice) -> Matches:
    return dataclasses.replace(
        matches,
        matched=matches.matched[bins],
        ignored=matches.ignored[bins],
        num_tracks=matches.num_tracks[bins],
    )


def _videos_of(matches: Matches, videos: Bool[np.ndarray, " videos"]) -> Matches:
    """The matches in some videos; the others have neither predictions nor tracks."""
    kept = videos[matches.video]
    return dataclasses.replace(
        matches,
        scores=matches.scores[kept],
        category=matches.category[kept],
        video=matches.video[kept],
        rank=matches.rank[kept],
        matched=matches.matched[..., kept],
        ignored=matches.ignored[..., kept],
        num_tracks=matches.num_tracks * videos,
    )


def _figures(matches: Matches) -> list[dict[str, Any]]:
    """Figures of each bin."""
    precision = precision_at_recall(matches)
    return [
        {
            "AP50": mean_of_known(of_bin[:, 0]),
            "AP": mean_of_known(of_bin),
            "tracks": int(num_tracks.sum()),
        }
        for of_bin, num_tracks in zip(precision, matches.num_tracks, strict=True)
    ]
