"""Instances of consecutive windows of a video, linked to tracks and written as they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from selfshot.ops.masks import Rle


def windows_of(length: int, size: int, overlap: int) -> list[range]:
    """Consecutive windows of `size` frames that share at least `overlap` with the one before.

    The last window ends with the video, so that every one of a longer video has the same size; a
    shorter video is one window.
    """
    assert size > 0 and 0 <= overlap < size
    if length <= size:
        return [range(length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [range(start, start + size) for start in starts]


def track_similarity(
    before: Bool[np.ndarray, "tracks time height width"],
    after: Bool[np.ndarray, "instances time height width"],
    features_before: Float[np.ndarray, "tracks dim"],
    features_after: Float[np.ndarray, "instances dim"],
) -> tuple[Float[np.ndarray, "tracks instances"], Float[np.ndarray, "tracks instances"]]:
    """IoU of the masks in the shared frames, and the cosine of the instance features."""
    one = before.reshape(len(before), -1).astype(np.float32)
    other = after.reshape(len(after), -1).astype(np.float32)
    both = one @ other.T
    either = one.sum(1)[:, None] + other.sum(1)[None] - both
    iou = both / np.maximum(either, 1)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    return iou, unit(features_before) @ unit(features_after).T


@dataclasses.dataclass
class LinkedTrack:
    """A track through the windows so far.

    Attributes:
        number: of the track, in the order of appearance.
        weighted: sum over windows of score × frames.
        frames: of the windows that it was found in.
        masks_file: where its masks are, one line a frame that has one.
    """

    number: int
    masks_file: Path
    weighted: float = 0.0
    frames: int = 0

    @property
    def score(self) -> float:
        """Mean score over the frames of its windows."""
        return self.weighted / max(self.frames, 1)


class TrackLinker:
    """Links each window's instances to the tracks of the window before.

    Pairs are the Hungarian matching of IoU in the shared frames, with the cosine of the instance
    features as a tie-break; a pair of less than `min_iou` is none. In the memory is what the last
    window left in the frames that the next one shares; all masks are in `folder`.
    """

    def __init__(self, folder: Path, *, min_iou: float, min_score: float) -> None:
        """Nothing is linked yet.

        Args:
            folder: an existing folder, for files of its own.
            min_iou: least IoU of a pair.
            min_score: least score of an instance that starts a track.
        """
        self.folder, self.min_iou, self.min_score = folder, min_iou, min_score
        self.tracks: list[LinkedTrack] = []
        self._end = 0
        self._active: list[LinkedTrack] = []
        self._masks: np.ndarray | None = None
        self._features = np.zeros((0, 1), np.float32)
        self._start = 0

    def add(
        self,
        window: range,
        small_masks: Bool[np.ndarray, "instances time height width"],
        scores: Sequence[float],
        features: Float[np.ndarray, "instances dim"],
        rles: Sequence[Sequence[Rle | None]],
    ) -> None:
        """Take the instances of the next window.

        Args:
            window: its frames.
            small_masks: at any one size, to be compared.
            scores: of the instances.
            features: of the instances.
            rles: for each instance the masks of its frames, to be written.
        """
        owner = self._link(window, small_masks, features)
        active = []
        for instance, score in enumerate(scores):
            track = owner.get(instance)
            if track is None and score < self.min_score:
                continue
            if track is None:
                number = len(self.tracks)
                track = LinkedTrack(number, self.folder / f"track_{number}.jsonl")
                self.tracks.append(track)
            track.weighted += score * len(window)
            track.frames += len(window)
            with track.masks_file.open("a") as masks:
                for frame, rle in zip(window, rles[instance], strict=True):
                    # Shared frames are written by the window that came first.
                    if frame >= self._end and rle is not None:
                        masks.write(f"{frame}\t{json.dumps(rle)}\n")
            active.append((track, instance))
        kept = [instance for _, instance in active]
        self._active = [track for track, _ in active]
        self._masks, self._features = small_masks[kept], features[kept]
        self._start, self._end = window.start, window.stop

    def _link(
        self, window: range, masks: np.ndarray, features: np.ndarray
    ) -> dict[int, LinkedTrack]:
        """The track that each instance goes on with, if any."""
        shared = self._end - window.start
        if self._masks is None or not self._active or shared <= 0 or not len(masks):
            return {}
        offset = window.start - self._start
        iou, cosine = track_similarity(
            self._masks[:, offset : offset + shared], masks[:, :shared], self._features, features
        )
        rows, columns = linear_sum_assignment(-(iou + 0.01 * cosine))
        return {
            int(column): self._active[row]
            for row, column in zip(rows, columns, strict=True)
            if iou[row, column] >= self.min_iou
        }

    def write_results(
        self, file: IO[str], *, video_id: int, category_id: int, nearest: Sequence[int]
    ) -> int:
        """Write the tracks as entries of a YouTube-VIS results list, best first, one at a time.

        Args:
            file: written to; its brackets are the caller's.
            video_id: of the entries.
            category_id: of the entries.
            nearest: for each frame of the video the frame that was predicted, in ascending order.

        Returns:
            how many were written.
        """
        ordered = sorted(self.tracks, key=lambda track: (-track.score, track.number))
        for place, track in enumerate(ordered):
            file.write(",\n" if place else "")
            head = {"video_id": video_id, "category_id": category_id, "score": track.score}
            file.write(json.dumps(head)[:-1] + ', "segmentations": [')
            masks = _read_masks(track.masks_file)
            at, text = next(masks, (-1, "null"))
            for frame, wanted in enumerate(nearest):
                while 0 <= at < wanted:
                    at, text = next(masks, (-1, "null"))
                file.write((", " if frame else "") + (text if at == wanted else "null"))
            file.write("]}")
        return len(ordered)


def _read_masks(path: Path) -> Iterator[tuple[int, str]]:
    with path.open() as file:
        for line in file:
            frame, _, text = line.rstrip("\n").partition("\t")
            yield int(frame), text
