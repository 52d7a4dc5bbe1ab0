"""How videos are described for retrieval: by one vector, and by windows."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from selfshot.data.clips import ClipReader
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.retrieval.methods import Describe
from selfshot.retrieval.seen import seen_similarity
from selfshot.retrieval.supports import Described

WAYS = ("global", "windows", "seen_penalty")
"""One vector a video; its windows; its windows, penalised for what is near to seen classes."""

QUERIES_AT_ONCE = 8
DESCRIBED_KEPT = 256  # videos whose vectors are kept, for those that support several queries


@dataclasses.dataclass(frozen=True)
class SeenClasses:
    """Labelled clips of seen classes, and the weight of the penalty.

    Attributes:
        vectors: (clips, dim), Φ of each.
        penalty: λ, see `seen_similarity`.
    """

    vectors: np.ndarray
    penalty: float


def describe_clips(
    encoder: FrozenEncoder,
    frames: UInt8[np.ndarray, "clips time height width 3"],
    window_size: int,
    seen: SeenClasses | None,
) -> list[dict[str, Described]]:
    """Each clip in all of the `WAYS`, without the last if nothing is penalised.

    Args:
        encoder: Φ.
        frames: of the clips.
        window_size: side of a window in tokens.
        seen: what windows are penalised for.
    """
    windows, _ = encoder.windows(frames, window_size)
    whole = encoder.embed(frames)[:, None]
    described = []
    for one, some in zip(whole, windows, strict=True):
        ways = {"global": Described(one), "windows": Described(some)}
        if seen is not None:
            penalty = seen.penalty * seen_similarity(some, seen.vectors)
            ways["seen_penalty"] = Described(some, penalty)
        described.append(ways)
    return described


class DescribedVideos:
    """The vectors of annotated videos, made in batches and kept for a while."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        reader: ClipReader,
        window_size: int,
        seen: SeenClasses | None = None,
    ) -> None:
        """Args: see `describe_clips`; the reader is of the annotated videos."""
        self._encoder, self._reader = encoder, reader
        self._window_size, self._seen = window_size, seen
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
            described = describe_clips(self._encoder, frames, self._window_size, self._seen)
            self._kept.update(zip(part, described, strict=True))
        for video in videos:
            self._kept.move_to_end(video)
        while len(self._kept) > max(DESCRIBED_KEPT, len(set(videos))):
            self._kept.popitem(last=False)
