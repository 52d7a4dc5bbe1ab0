"""Episodes: a query clip, support clips that share a class with it, and the query's targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfshot.data.clips import ClipReader, average_cells


def episode_batch(
    reader: ClipReader,
    queries: Sequence[int],
    supports: Sequence[Sequence[int]],
    categories: Sequence[int],
    rngs: Sequence[np.random.Generator] | None = None,
    *,
    token_stride: int = 8,
    mask_stride: int = 2,
    support_frames: int | None = None,
) -> dict[str, Any]:
    """Read a batch of training episodes.

    Args:
        reader: of the annotated videos.
        queries: B query video ids.
        supports: for each query its k support video ids; k is the same for all.
        categories: the class that query and supports share; other instances are background.
        rngs: of each query, draw its clips, which are mirrored and reversed at random; none:
            they are as they are.
        token_stride: pixels to a token.
        mask_stride: pixels to a cell of the targets' masks.
        support_frames: frames of a support, S; none: T, as of the query.

    Returns:
        `query` uint8 (B, T, H, W, 3); `supports` uint8 (B, k, S, H, W, 3);
        `support_lengths` (B, k), frames of them that are no padding; `targets`, for each
        query `masks` (m, T, H / 2, W / 2), `boxes_cxcywh`, `present`, `valid_frames`; `common`
        (B, T, H / 8, W / 8), the share of each token that belongs to the class.
    """
    support_reader = reader.of_length(support_frames)
    frames, support_clips, support_lengths, targets, common = [], [], [], [], []
    changes = [None] * len(queries) if rngs is None else rngs
    for query, helpers, category, rng in zip(queries, supports, categories, changes, strict=True):
        clip, tracks, valid = reader.drawn_query(query, category, mask_stride, rng)
        frames.append(clip)
        shots, lengths = [], []
        for video in helpers:
            shot, length = support_reader.drawn_support(video, category, rng)
            shots.append(shot)
            lengths.append(length)
        support_clips.append(np.stack(shots) if shots else np.empty((0, *clip.shape), np.uint8))
        support_lengths.append(lengths)
        targets.append(
            {
                "masks": _tensor(tracks.masks),
                "boxes_cxcywh": _tensor(tracks.boxes_cxcywh),
                "present": _tensor(tracks.present),
                "valid_frames": _tensor(valid),
            }
        )
        cover = tracks.masks.sum(0).clip(max=1)
        rows, columns = -(-reader.height // token_stride), -(-reader.width // token_stride)
        common.append(average_cells(cover, (rows, columns)))
    return {
        "query": torch.from_numpy(np.stack(frames)),
        "supports": torch.from_numpy(np.stack(support_clips)),
        "support_lengths": torch.tensor(support_lengths, dtype=torch.int64),
        "targets": targets,
        "common": torch.from_numpy(np.stack(common)),
    }


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
