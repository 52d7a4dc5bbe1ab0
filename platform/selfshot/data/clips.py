"""Annotated clips as arrays: frames, and masks at the resolution a loss needs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfshot.data.frames import FrameReader
from selfshot.data.ytvis import Annotations
from selfshot.ops.masks import decode_rles

DENSE_PIXELS = 2**23
"""Masks are made dense so many pixels at a time."""


@dataclasses.dataclass(frozen=True)
class TrackMasks:
    """Tracks of a clip.

    Attributes:
        masks: float32 (m, T, h, w), the share of each cell that the object covers.
        classes: category id of each track, (m,) int64.
        present: (m, T) bool.
        boxes_cxcywh: (m, T, 4) float32 in shares of the frame; zeros where absent.
    """

    masks: np.ndarray
    classes: np.ndarray
    present: np.ndarray
    boxes_cxcywh: np.ndarray


def sampled_frames(length: int, most: int) -> list[int]:
    """Which frames of a video of `length` make a clip of at most so many; evenly spaced."""
    if length <= most:
        return list(range(length))
    return ((np.arange(most) + 0.5) * length / most).astype(np.int64).tolist()


class ClipReader:
    """Reads clips of `num_frames` frames of one size from annotated videos.

    A longer video is sampled evenly, a shorter one is padded with its last frame; the
    `valid_frames` marks the padding.
    """

    def __init__(
        self,
        annotations: Annotations,
        frames_root: Path,
        *,
        num_frames: int,
        height: int,
        width: int,
    ) -> None:
        self.annotations = annotations
        self.frames_root = frames_root
        self.frame_reader = FrameReader(frames_root)
        self.num_frames, self.height, self.width = num_frames, height, width

    def of_length(self, num_frames: int | None) -> ClipReader:
        """A reader of the same videos in clips of another length; of 1: their middle frames.

        None leaves the length as it is.
        """
        other = copy.copy(self)
        other.num_frames = num_frames or self.num_frames
        return other

    def frame_indices(self, video_id: int) -> np.ndarray:
        """The video's frames that make the clip, (T,) int64; the last one repeats as padding."""
        length = self.annotations.videos[video_id].length
        frames = np.array(sampled_frames(length, self.num_frames))
        return np.pad(frames, (0, self.num_frames - len(frames)), "edge")

    def valid_frames(self, video_id: int) -> np.ndarray:
        """False where a frame of the clip is padding, (T,) bool."""
        return np.arange(self.num_frames) < self.annotations.videos[video_id].length

    def frames(self, video_id: int) -> np.ndarray:
        """Pixels, uint8 (T, H, W, 3)."""
        return self._read(video_id, self.frame_indices(video_id))

    def part(self, video_id: int, start: float, end: float) -> np.ndarray:
        """Pixels of a part of the video, uint8 (T, H, W, 3), sampled as a whole video is.

        A part of fewer frames than a clip has gives those; there is no padding.

        Args:
            video_id: which video.
            start: of the part, as a share of the video's length.
            end: of the part; it has one frame at least.
        """
        length = self.annotations.videos[video_id].length
        first = min(int(start * length), length - 1)
        frames = max(min(round(end * length), length) - first, 1)
        return self._read(video_id, first + np.array(sampled_frames(frames, self.num_frames)))

    def cut_out(self, video_id: int, box: Sequence[float]) -> np.ndarray:
        """Pixels of a part of each frame, uint8 (T, H, W, 3), enlarged to the clip's size.

        Args:
            video_id: which video.
            box: left, top, right and bottom as shares of the frame.
        """
        left, top, right, bottom = box
        # Read so large that the part has the size of a clip: nothing of a large frame is lost.
        height = round(self.height / (bottom - top))
        width = round(self.width / (right - left))
        video = self.annotations.videos[video_id]
        frames = self.frame_reader.read(video, self.frame_indices(video_id), height, width)
        row = min(round(top * height), height - self.height)
        column = min(round(left * width), width - self.width)
        return frames[:, row : row + self.height, column : column + self.width].copy()

    def tracks(self, video_id: int, *, stride: int, category_id: int | None = None) -> TrackMasks:
        """Masks of the video's tracks, averaged over cells of `stride` × `stride` pixels.

        Args:
            video_id: which video.
            stride: cell side in pixels of the resized frame; the last cell may be cut.
            category_id: only the tracks of this class; none: all.
        """
        return self._tracks_at(video_id, self.frame_indices(video_id), stride, category_id)

    def frame(self, video_id: int, index: int, stride: int) -> tuple[np.ndarray, TrackMasks]:
        """One frame, uint8 (H, W, 3), and all its tracks with T = 1."""
        pixels = self._read(video_id, np.array([index]))[0]
        return pixels, self._tracks_at(video_id, np.array([index]), stride, None)

    def drawn_query(
        self, video_id: int, category_id: int, stride: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, TrackMasks, np.ndarray]:
        """A training clip with the tracks of one class, mirrored and reversed at random.

        Args:
            video_id: which video.
            category_id: of the tracks; other instances are background.
            stride: as in `tracks`.
            rng: of the draw; none: the clip as it is.

        Returns:
            pixels uint8 (T, H, W, 3), the tracks, and which frames are no padding, (T,) bool.
        """
        clip = self.frames(video_id)
        tracks = self.tracks(video_id, stride=stride, category_id=category_id)
        masks, boxes, present = tracks.masks, tracks.boxes_cxcywh, tracks.present
        valid = self.valid_frames(video_id)
        if rng is not None and rng.random() < 0.5:
            clip, masks, boxes = clip[:, :, ::-1], masks[..., ::-1], boxes.copy()
            boxes[..., 0] = np.where(present, 1 - boxes[..., 0], 0)
        if rng is not None and rng.random() < 0.5:
            # Padding stays at the end, and repeats what is last now.
            order = np.r_[np.flatnonzero(valid)[::-1], np.zeros((~valid).sum(), int)]
            clip, masks, boxes = clip[order], masks[:, order], boxes[:, order]
            present = present[:, order]
        return clip, TrackMasks(masks, tracks.classes, present, boxes), valid

    def drawn_support(
        self, video_id: int, category_id: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, int]:
        """Pixels of a training support of a class, mirrored at random; frames that are no padding.

        Args:
            video_id: which video.
            category_id: the class that it shows.
            rng: of the draw; none: the clip as it is.
        """
        shot = self.frames(video_id)
        mirrored = rng is not None and rng.random() < 0.5
        return shot[:, :, ::-1] if mirrored else shot, int(self.valid_frames(video_id).sum())

    def drawn_frame(
        self, video_id: int, index: int, stride: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, TrackMasks]:
        """A frame as `frame` gives it, mirrored at random."""
        picture, tracks = self.frame(video_id, index, stride)
        if rng.random() < 0.5:
            picture, tracks.masks[:] = picture[:, ::-1], tracks.masks[..., ::-1].copy()
        return picture, tracks

    def _read(self, video_id: int, indices: np.ndarray) -> np.ndarray:
        video = self.annotations.videos[video_id]
        return self.frame_reader.read(video, indices, self.height, self.width)

    def _tracks_at(
        self, video_id: int, indices: np.ndarray, stride: int, category_id: int | None
    ) -> TrackMasks:
        video = self.annotations.videos[video_id]
        size = (-(-self.height // stride), -(-self.width // stride))
        tracks = [
            track
            for track in self.annotations.tracks_of(video_id)
            if (category_id is None or track.category_id == category_id) and not track.iscrowd
        ]
        masks = np.zeros((len(tracks), len(indices), *size), np.float32)
        present = np.zeros((len(tracks), len(indices)), bool)
        boxes = np.zeros((len(tracks), len(indices), 4), np.float32)
        shown = [
            (t, f, track.segmentations[index])
            for t, track in enumerate(tracks)
            for f, index in enumerate(indices)
            if track.segmentations[index] is not None
        ]
        at_once = max(1, DENSE_PIXELS // (video.height * video.width))
        for start in range(0, len(shown), at_once):
            t, f, segmentations = zip(*shown[start : start + at_once], strict=True)
            dense = decode_rles(segmentations, video.height, video.width)
            top, bottom = _extent(np.any(dense, axis=2))
            left, right = _extent(np.any(dense, axis=1))
            # An RLE may be there and have no pixel; it has no box.
            present[t, f] = seen = bottom > 0
            x, y = (left + right) / (2 * video.width), (top + bottom) / (2 * video.height)
            w, h = (right - left) / video.width, (bottom - top) / video.height
            boxes[t, f] = np.stack([x, y, w, h], -1) * seen[:, None]
            masks[t, f] = average_cells(dense, size)
        classes = np.array([track.category_id for track in tracks], np.int64)
        return TrackMasks(masks, classes, present, boxes)


def _extent(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First true line of each row of (n, lines), and the one after its last; zeros if none is."""
    found = lines.any(1)
    last = lines.shape[1] - lines[:, ::-1].argmax(1)
    return lines.argmax(1), np.where(found, last, 0)


def average_cells(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mean of masks (…, H, W) over a grid of `size` cells, float32.

    Cell borders are rounded to pixels; a cell smaller than a pixel takes the nearest one.
    """
    *leading, height, width = masks.shape
    if height % size[0] == 0 and width % size[1] == 0:
        cells = masks.reshape(*leading, size[0], height // size[0], size[1], width // size[1])
        return cells.mean((-3, -1), dtype=np.float32)
    top, bottom = _borders(height, size[0])
    left, right = _borders(width, size[1])
    # Sums over the rectangles of the grid by a summed-area table; float64 for large frames.
    table = np.zeros((*leading, height + 1, width + 1))
    table[..., 1:, 1:] = masks.cumsum(-2, dtype=np.float64).cumsum(-1)
    below = table[..., bottom, :][..., right] - table[..., bottom, :][..., left]
    sums = below - table[..., top, :][..., right] + table[..., top, :][..., left]
    return (sums / np.outer(bottom - top, right - left)).astype(np.float32)


def _borders(length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel of each cell of an axis and the one after its last; no cell is empty."""
    if cells >= length:
        nearest = ((np.arange(cells) + 0.5) * length / cells).astype(int)
        return nearest, nearest + 1
    edges = np.linspace(0, length, cells + 1).round().astype(int)
    return edges[:-1], edges[1:]
