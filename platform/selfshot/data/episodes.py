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
        rngs: of each query, mirrors and reverses its clips at random; none: leaves them as they
            are.
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
        clip = reader.frames(query)
        tracks = reader.tracks(query, stride=mask_stride, category_id=category)
        masks, boxes, present = tracks.masks, tracks.boxes_cxcywh, tracks.present
        valid = reader.valid_frames(query)
        if rng is not None and rng.random() < 0.5:
            clip, masks, boxes = clip[:, :, ::-1], masks[..., ::-1], boxes.copy()
            boxes[..., 0] = np.where(present, 1 - boxes[..., 0], 0)
        if rng is not None and rng.random() < 0.5:
            # Padding stays at the end, and repeats what is last now.
            order = np.r_[np.flatnonzero(valid)[::-1], np.zeros((~valid).sum(), int)]
            clip, masks, boxes = clip[order], masks[:, order], boxes[:, order]
            present = present[:, order]
        frames.append(clip)
        shots = []
        for video in helpers:
            shot = support_reader.frames(video)
            shots.append(shot[:, :, ::-1] if rng is not None and rng.random() < 0.5 else shot)
        support_clips.append(np.stack(shots) if shots else np.empty((0, *clip.shape), np.uint8))
        support_lengths.append([int(support_reader.valid_frames(v).sum()) for v in helpers])
        targets.append(
            {
                "masks": _tensor(masks),
                "boxes_cxcywh": _tensor(boxes),
                "present": _tensor(present),
                "valid_frames": _tensor(valid),
            }
        )
        cover = masks.sum(0).clip(max=1)
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
