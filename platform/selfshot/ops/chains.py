"""Detections of single frames, chained to tracks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from selfshot.ops.boxes import giou

ABSENT = -1


def similarity(
    boxes_xyxy: Float[Tensor, "tracks 4"],
    features: Float[Tensor, "tracks channels"],
    other_boxes_xyxy: Float[Tensor, "detections 4"],
    other_features: Float[Tensor, "detections channels"],
) -> Float[Tensor, "tracks detections"]:
    """How likely each of the first is the same thing as each of the second, in [-0.5, 1].

    The mean of (1 + GIoU) / 2 of the boxes, which still orders those that do not overlap, and of
    the features' cosine.
    """
    near = (1 + giou(boxes_xyxy[:, None], other_boxes_xyxy[None])) / 2
    alike = functional.normalize(features, dim=-1) @ functional.normalize(other_features, dim=-1).T
    return (near + alike) / 2


def chain_detections(
    boxes_xyxy: Sequence[Float[Tensor, "_ 4"]],
    scores: Sequence[Float[Tensor, " _"]],
    features: Sequence[Float[Tensor, "_ channels"]],
    *,
    most: int,
    min_similarity: float,
) -> Int[np.ndarray, "most time"]:
    """Tracks of a clip's detections.

    Frame by frame, the detections are given to the tracks so that the similarity to each track's
    last detection is the greatest in sum; one below `min_similarity` to its track starts another.

    Args:
        boxes_xyxy: of each frame.
        scores: of each frame.
        features: of each frame.
        most: tracks that are kept: those whose scores sum to the most, in this order.
        min_similarity: see `similarity`.

    Returns:
        place of each track's detection in each frame, and `ABSENT` where it has none; as many
        rows of `ABSENT` as there are fewer tracks than `most`.
    """
    time = len(boxes_xyxy)
    tracks: list[dict[int, int]] = []
    last_boxes: list[Tensor] = []
    last_features: list[Tensor] = []
    for t in range(time):
        free = set(range(len(boxes_xyxy[t])))
        if tracks and free:
            alike = similarity(
                torch.stack(last_boxes), torch.stack(last_features), boxes_xyxy[t], features[t]
            ).cpu()
            for track, place in zip(*linear_sum_assignment(-alike.numpy()), strict=True):
                if alike[track, place] >= min_similarity:
                    tracks[track][t] = int(place)
                    last_boxes[track] = boxes_xyxy[t][place]
                    last_features[track] = features[t][place]
                    free.discard(int(place))
        for place in sorted(free):
            tracks.append({t: place})
            last_boxes.append(boxes_xyxy[t][place])
            last_features.append(features[t][place])
    totals = [sum(float(scores[t][place]) for t, place in track.items()) for track in tracks]
    chained = np.full((most, time), ABSENT, np.int64)
    for row, track in enumerate(sorted(range(len(tracks)), key=lambda i: -totals[i])[:most]):
        for t, place in tracks[track].items():
            chained[row, t] = place
    return chained
