"""Describe: a query as retrieval compares it, by one vector or by its windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file

from selfshot.errors import UserError
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.retrieval.index import unit_vectors

WAYS = ("global", "windows", "seen_penalty")
"""One vector a video; its windows; its windows, penalised for what is near to seen classes."""

QUERIES_AT_ONCE = 8
NEAREST = 5
"""Labelled clips that a window's nearness to seen classes is the mean over."""

SEEN_FILE = "seen.safetensors"


@dataclasses.dataclass(frozen=True)
class QueryEmbedding:
    """A video as retrieval compares it: one vector, or several windows.

    Attributes:
        vectors: (windows, dim); one row for Eq. 3 as printed.
        penalty: (windows,), what is taken off the score of all that a window finds; none: 0.
    """

    vectors: np.ndarray
    penalty: np.ndarray | None = None

    def scores(self, cosines: np.ndarray) -> np.ndarray:
        """Cosine − penalty, for cosines (windows, clips)."""
        return cosines if self.penalty is None else cosines - self.penalty[:, None]


@dataclasses.dataclass(frozen=True)
class SeenClasses:
    """Labelled clips of seen classes, and the weight of the penalty.

    Attributes:
        vectors: (clips, dim), Φ of each.
        penalty: λ, see `seen_similarity`.
    """

    vectors: np.ndarray
    penalty: float


@dataclasses.dataclass(frozen=True)
class QueryEncoder:
    """Describes clips in all of the `WAYS`, without the last if nothing is penalised.

    Attributes:
        encoder: Φ.
        window_size: side of a window in tokens.
        seen: what windows are penalised for.
    """

    encoder: FrozenEncoder
    window_size: int
    seen: SeenClasses | None = None

    def __call__(
        self, frames: UInt8[np.ndarray, "clips time height width 3"]
    ) -> list[dict[str, QueryEmbedding]]:
        """Each clip by each way."""
        windows, _ = self.encoder.windows(frames, self.window_size)
        whole = self.encoder.embed(frames)[:, None]
        described = []
        for one, some in zip(whole, windows, strict=True):
            ways = {"global": QueryEmbedding(one), "windows": QueryEmbedding(some)}
            if self.seen is not None:
                penalty = self.seen.penalty * seen_similarity(some, self.seen.vectors)
                ways["seen_penalty"] = QueryEmbedding(some, penalty)
            described.append(ways)
        return described

    @property
    def ways(self) -> tuple[str, ...]:
        """That clips are described by."""
        return WAYS if self.seen is not None else WAYS[:-1]

    def videos(
        self, videos: Sequence[int], read: Callable[[int], np.ndarray]
    ) -> dict[int, dict[str, QueryEmbedding]]:
        """The same of videos whose frames are read some at a time; a few kilobytes of each stay."""
        described: dict[int, dict[str, QueryEmbedding]] = {}
        for part, frames in batches_of(videos, read):
            described |= zip(part, self(frames), strict=True)
        return described


def batches_of(
    videos: Sequence[int], read: Callable[[int], np.ndarray]
) -> Iterator[tuple[Sequence[int], UInt8[np.ndarray, "clips time height width 3"]]]:
    """Different videos and their frames, so many at once as the encoder takes."""
    different = list(dict.fromkeys(videos))
    for start in range(0, len(different), QUERIES_AT_ONCE):
        part = different[start : start + QUERIES_AT_ONCE]
        yield part, np.stack([read(video) for video in part])


def seen_similarity(
    vectors: Float[np.ndarray, "windows dim"],
    seen: Float[np.ndarray, "clips dim"],
    nearest: int = NEAREST,
) -> Float[np.ndarray, " windows"]:
    """How near each window of a query is to seen classes: f(w) = mean of its best cosines.

    A query of an unseen class also shows objects of seen ones. Their windows are near to labelled
    clips, and a clip that such a window finds is of a class that merely looks like a seen one. With
    the weight λ a clip's score is max over windows of cos(w, clip) − λ·f(w).

    Args:
        vectors: of the query's windows, of any length.
        seen: of labelled clips of seen classes, of any length.
        nearest: how many labelled clips the mean is over, at most all.

    Returns:
        f in [-1, 1].

    Raises:
        ValueError: there is no labelled clip, or `nearest` is below 1.
    """
    if not len(seen) or nearest < 1:
        raise ValueError(f"{len(seen)} labelled clips and the nearest {nearest} of them: none")
    unit = unit_vectors(vectors, ["the query"] * len(vectors))
    labelled = unit_vectors(seen, ["a labelled clip"] * len(seen))
    cosines = unit @ labelled.T
    count = min(nearest, len(seen))
    return np.partition(cosines, -count, axis=1)[:, -count:].mean(1)


def read_seen(folder: Path) -> Float[np.ndarray, "clips dim"]:
    """The vectors that the stage `seen` wrote.

    Raises:
        UserError: they cannot be read.
    """
    path = folder / SEEN_FILE
    try:
        return load_file(path)["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: it cannot be read: {error}; make the stage again") from None
