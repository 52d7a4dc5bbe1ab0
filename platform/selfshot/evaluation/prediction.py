"""A trained model over a video of any length, window by window."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from selfshot.data.frames import FrameReader
from selfshot.data.ytvis import Prediction, Video
from selfshot.evaluation.episodes import track_scores
from selfshot.evaluation.linking import TrackLinker, windows_of
from selfshot.evaluation.track_iou import track_iou
from selfshot.files import atomic_file
from selfshot.models.features import ClipFeatures, SupportFeatures, stack_supports
from selfshot.models.vis import masks_at
from selfshot.models.vis_model import VisModel
from selfshot.ops.masks import encode_rle

SAME_IOU = 0.5
"""Video IoU from which on two tracks of a video are taken for one."""

CATEGORY = 1
"""Of every prediction: what the video and its supports have in common has no other name."""


class SupportCache:
    """Encoded supports by name: each is encoded once, however many videos it supports."""

    def __init__(self, model: VisModel) -> None:
        self.model = model
        self._found: dict[str, ClipFeatures] = {}

    @torch.inference_mode()
    def features(
        self, names: Sequence[str], read: Callable[[str], np.ndarray]
    ) -> SupportFeatures | None:
        """The supports of one query; None where there are none.

        Args:
            names: of the supports.
            read: frames uint8 (T, H, W, 3) of one that is not there yet.
        """
        if not names:
            return None
        for name in names:
            if name not in self._found:
                frames = torch.from_numpy(read(name))[None]
                self._found[name] = self.model.encode(frames, is_support=True)
        return stack_supports([[self._found[name] for name in names]])


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a video is looked at, and what is a track in it.

    Attributes:
        size: height and width that the model sees.
        frames: of a window; at most the model's T.
        overlap: frames that consecutive windows share at least.
        every: only each so many-th frame is looked at; those between take the nearest one's mask.
        min_iou: of masks in shared frames, for two instances to be one track.
        min_score: of an instance that starts a track.
    """

    size: tuple[int, int]
    frames: int
    overlap: int
    every: int = 1
    min_iou: float = 0.3
    min_score: float = 0.1


def distinct(predictions: Sequence[Prediction], most: float = SAME_IOU) -> list[Prediction]:
    """The tracks of a video, surest first, without those that cover what a surer one covers.

    Training has one right track for each object, and an untrained query often draws it again.

    Args:
        predictions: of one video.
        most: video IoU from which on two tracks are the same.
    """
    kept: list[tuple[Prediction, int, int]] = []
    for one in sorted(predictions, key=lambda one: -one.score):
        shown = [frame for frame, rle in enumerate(one.segmentations) if rle]
        first, last = (shown[0], shown[-1]) if shown else (0, -1)
        # A long video has thousands of tracks, few of them at a time: each meets only those, in
        # the frames that either of the two has.
        if not any(
            start <= last and first <= end
            and _iou(one, other, min(start, first), max(end, last)) >= most
            for other, start, end in kept
        ):  # fmt: skip
            kept.append((one, first, last))
    return [one for one, _, _ in kept]


def _iou(one: Prediction, other: Prediction, first: int, last: int) -> float:
    """Video IoU of two tracks that have no mask outside of some frames."""
    parts = ([track.segmentations[first : last + 1]] for track in (one, other))
    return float(track_iou(*parts)[0, 0])


@torch.inference_mode()
def predict_video(
    model: VisModel,
    video: Video,
    frames: FrameReader,
    supports: SupportFeatures | None,
    results: Path,
    windows: Windows,
    on_window: Callable[[int, int], None] = lambda done, count: None,
) -> int:
    """Write a video's tracks as a YouTube-VIS results file.

    What is in memory is of one window, and of what the last one left in the frames that both
    share; masks are written to disk as they come.

    Args:
        model: in evaluation mode, on any device.
        video: of any length.
        frames: reads it.
        supports: its supports.
        results: the file to write.
        windows: how it is looked at.
        on_window: receives how many windows of how many are done.

    Returns:
        the number of tracks.

    Raises:
        VideoError: a frame cannot be read.
    """
    every = windows.every
    looked_at = np.arange(0, video.length, every)
    overlap = min(windows.overlap, windows.frames - 1)
    parts = windows_of(len(looked_at), windows.frames, overlap)
    with tempfile.TemporaryDirectory(prefix=".tracks-", dir=results.parent) as scratch:
        linker = TrackLinker(
            Path(scratch), min_iou=windows.min_iou, min_score=windows.min_score
        )
        for number, part in enumerate(parts):
            pixels = frames.read(video, looked_at[list(part)], *windows.size)
            query = model.encode(torch.from_numpy(pixels)[None], is_support=False)
            outputs = model.predict(query, supports)
            logits = outputs["mask_logits"]
            every_frame = torch.ones(1, len(part), dtype=torch.bool, device=logits.device)
            scores = track_scores(outputs["foreground_logits"], logits, every_frame)[0].tolist()
            rles = []
            for instance in logits[0]:
                # One after another: at the video's own size they are large.
                masks = masks_at(instance, video.height, video.width).cpu().numpy()
                rles.append([encode_rle(mask) if mask.any() else None for mask in masks])
            features = outputs["instances"][0].mean(1).cpu().numpy()
            linker.add(part, (logits[0] > 0).cpu().numpy(), scores, features, rles)
            on_window(number + 1, len(parts))
        nearest = np.minimum((np.arange(video.length) + every // 2) // every, len(looked_at) - 1)
        with atomic_file(results) as partial, partial.open("w") as file:
            file.write("[")
            count = linker.write_results(
                file, video_id=video.id, category_id=CATEGORY, nearest=nearest.tolist()
            )
            file.write("]\n")
    return count
