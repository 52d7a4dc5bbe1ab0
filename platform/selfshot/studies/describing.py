"""How videos are described for retrieval: by one vector, and by windows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from selfshot.data.clips import ClipReader
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.retrieval.known import KnownClips
from selfshot.retrieval.methods import Describe
from selfshot.retrieval.supports import Described

WAYS = ("global", "windows")

QUERIES_AT_ONCE = 8
DESCRIBED_KEPT = 256  # videos whose vectors are kept, for those that help several queries


def describe_clips(
    encoder: FrozenEncoder,
    frames: UInt8[np.ndarray, "clips time height width 3"],
    window_size: int,
    known: KnownClips | None,
) -> list[dict[str, Described]]:
    """Each clip in both of the `WAYS`.

    Args:
        encoder: Φ.
        frames: of the clips.
        window_size: side of a window in tokens.
        known: what handicaps windows that it explains; a single vector is not handicapped, as
            that would change no order.
    """
    windows, mass = encoder.windows(frames, window_size)
    whole = encoder.embed(frames)[:, None]
    return [
        {
            "global": Described(one, np.ones(1, np.float32)),
            "windows": Described(some, masses, None if known is None else known.handicap(some)),
        }
        for one, some, masses in zip(whole, windows, mass, strict=True)
    ]


class DescribedVideos:
    """The vectors of annotated videos, made in batches and kept for a while."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        reader: ClipReader,
        window_size: int,
        known: KnownClips | None = None,
    ) -> None:
        """Args: see `describe_clips`; the reader is of the annotated videos."""
        self._encoder, self._reader = encoder, reader
        self._window_size, self._known = window_size, known
        self._kept: OrderedDict[int, dict[str, Described]] = OrderedDict()

    def by(self, way: str) -> Describe:
        """How videos are described that way."""

        def describe(video: int) -> Described:
            self.prepare([video])
            return self._kept[video][way]

        return describe

    def prepare(self, videos: Sequence[int]) -> None:
        """Describe videos together, where they are not yet."""
        missing = [video for video in dict.fromkeys(videos) if video not in self._kept]
        for start in range(0, len(missing), QUERIES_AT_ONCE):
            part = missing[start : start + QUERIES_AT_ONCE]
            frames = np.stack([self._reader.frames(video) for video in part])
            described = describe_clips(self._encoder, frames, self._window_size, self._known)
            self._kept.update(zip(part, described, strict=True))
        for video in videos:
            self._kept.move_to_end(video)
        while len(self._kept) > max(DESCRIBED_KEPT, len(set(videos))):
            self._kept.popitem(last=False)
