"""Rows that other methods fill: proposals ranked by similarity, and SAM 2 with prompts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from selfshot.data.clips import average_cells
from selfshot.data.supports import Support, SupportReader
from selfshot.evaluation.track_iou import track_iou
from selfshot.models.baselines.proposals_similarity import region_vectors, similarity_scores
from selfshot.models.baselines.sam2 import FoundTrack, Prompt, Sam2, load_sam2
from selfshot.models.trained_encoder import FrozenEncoder, load_encoder
from selfshot.ops.masks import decode_rles

CELL = 4
"""Side in pixels of the cells that a mask is averaged over before Φ's tokens are weighted by it."""
MAX_IOU = 0.5
"""Of two tracks of a video with a larger video IoU the surer one stays.

On the quickstart's validation classes the row `proposals_similarity` had an AP50 of 38.3 with it,
39.3 with 0.3, 37.1 with 0.7 and 34.9 with every track (five labelled supports, 120 queries).
"""


class Baselines:
    """Other methods' networks, for the rows that they fill."""

    def __init__(
        self,
        support_reader: SupportReader,
        *,
        encoder: FrozenEncoder | None = None,
        proposer: Sam2 | None = None,
        prompted: Sam2 | None = None,
    ) -> None:
        """Put them together.

        Args:
            support_reader: of the queries' supports.
            encoder: Φ, for the row `proposals_similarity`.
            proposer: whose tracks that row ranks; none: the network without the fuser.
            prompted: for the row `prompted`.
        """
        self.support_reader = support_reader
        self.encoder, self.proposer, self.prompted = encoder, proposer, prompted
        self._supports: dict[str, np.ndarray] = {}

    def ranked(
        self,
        clip: UInt8[np.ndarray, "time height width 3"],
        proposals: Sequence[FoundTrack],
        supports: Sequence[Support],
    ) -> list[FoundTrack]:
        """Distinct proposals of a query, scored by their similarity to its supports.

        Args:
            clip: the query's, without padding.
            proposals: whatever was found in it.
            supports: of the query.
        """
        assert self.encoder is not None
        distinct = best_distinct(proposals)
        if not distinct:
            return []
        regions = np.stack([_coverage(track, clip.shape[1:3]) for track in distinct])
        vectors = region_vectors(self.encoder, clip, regions)
        known = np.concatenate([self._vector(support) for support in supports])
        scores = similarity_scores(vectors, known).tolist()
        return [
            FoundTrack(score, track.rles) for score, track in zip(scores, distinct, strict=True)
        ]

    def _vector(self, support: Support) -> np.ndarray:
        """Φ of a support's foreground, (1, dim)."""
        assert self.encoder is not None
        key = json.dumps(support)
        if key not in self._supports:
            self._supports[key] = region_vectors(self.encoder, self.support_reader.clip(support))
        return self._supports[key]

    def sought(
        self,
        clip: UInt8[np.ndarray, "time height width 3"],
        supports: Sequence[Support],
        category_id: int,
        size: tuple[int, int],
    ) -> list[FoundTrack]:
        """Distinct tracks that SAM 2 finds in a query when it is shown objects of the supports.

        Args:
            clip: the query's, without padding.
            supports: annotated videos.
            category_id: of the class that query and supports share.
            size: height and width of the query's video.
        """
        assert self.prompted is not None
        prompts = [self._prompt(support, category_id) for support in supports]
        shown = [prompt for prompt in prompts if prompt is not None]
        return best_distinct(self.prompted.tracks(shown, clip, size))

    def _prompt(self, support: Support, category_id: int) -> Prompt | None:
        """A support's frame in which its objects of the class have most pixels, and their masks."""
        assert isinstance(support, int), "supports of this row are annotated videos"
        reader = self.support_reader.reader
        masks = reader.tracks(support, stride=1, category_id=category_id).masks > 0.5
        if not masks.any():
            return None
        frame = int(masks.sum((0, 2, 3)).argmax())
        shown = masks[:, frame]
        return Prompt(reader.frames(support)[frame], shown[shown.any((1, 2))])


def open_baselines(
    config: Mapping[str, Any],
    kinds: Collection[str],
    support_reader: SupportReader,
    device: str,
) -> Baselines:
    """What the rows of these kinds need, and no more.

    Args:
        config: folders of Φ (`encoder`) and of SAM 2 (`proposals`, `prompted`), where there are.
        kinds: of rows.
        support_reader: of the queries' supports.
        device: of the networks.

    Raises:
        UserError: a folder cannot be read.
    """
    ranks, prompts = "proposals_similarity" in kinds, "prompted" in kinds
    proposals = config.get("proposals")
    return Baselines(
        support_reader,
        encoder=load_encoder(config["encoder"]).to(device) if ranks else None,
        proposer=_sam2(proposals, "proposals", device) if ranks and proposals else None,
        prompted=_sam2(config["prompted"], "prompted", device) if prompts else None,
    )


def _sam2(folder: str, setting: str, device: str) -> Sam2:
    return load_sam2(Path(folder), f"evaluation.{setting}", device)


def best_distinct(tracks: Sequence[FoundTrack]) -> list[FoundTrack]:
    """Greedy non-maximum suppression: no two tracks that stay have a video IoU above `MAX_IOU`.

    Returns:
        those that stay, the best first; tracks without a pixel do not.
    """
    ordered = sorted((track for track in tracks if any(track.rles)), key=lambda track: -track.score)
    rles = [track.rles for track in ordered]
    iou = track_iou(rles, rles)
    kept: list[int] = []
    for place in range(len(ordered)):
        if not (iou[place, kept] > MAX_IOU).any():
            kept.append(place)
    return [ordered[place] for place in kept]


def _coverage(track: FoundTrack, size: tuple[int, ...]) -> np.ndarray:
    """How much of each cell of a clip of this size a track covers, float32 (T, rows, columns)."""
    rows, columns = (-(-side // CELL) for side in size)
    covered = np.zeros((len(track.rles), rows, columns), np.float32)
    frames, rles = zip(*((t, rle) for t, rle in enumerate(track.rles) if rle), strict=True)
    covered[list(frames)] = average_cells(decode_rles(rles, *rles[0]["size"]), (rows, columns))
    return covered
