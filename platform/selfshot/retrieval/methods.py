"""Every way to come by supports, behind one interface: queries in, ordered supports out.

A support is named by what it is: the id of a corpus clip (str), the id of an annotated video (int),
or a part of an annotated video (a dict): `{"video", "start", "end"}` of its length, or `{"video",
"box": [left, top, right, bottom]}` of its frames, all as shares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from selfshot.retrieval.index import ClipIndex, unit_vectors
from selfshot.retrieval.supports import (
    Described,
    Retrieved,
    draw,
    retrieve,
    retrieve_expanded,
    retrieve_together,
)

Support = str | int | dict[str, Any]

Describe = Callable[[int], Described]
"""How retrieval sees an annotated video."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A query.

    Attributes:
        key: what it is called in files.
        video: id of its video.
        seed: of its fold.
        own_source: clips of the corpus from the same source.
    """

    key: str
    video: int
    seed: int
    own_source: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Supports of a query, best first, with what each was chosen by (empty where by nothing)."""

    supports: tuple[Support, ...]
    scores: tuple[float, ...] = ()
    near_duplicates: int = 0
    own_source: int = 0


class Method(Protocol):
    """A way to come by supports."""

    def __call__(self, queries: Sequence[Asked], count: int) -> list[Chosen]:
        """At most `count` supports of each query."""


@dataclasses.dataclass(frozen=True)
class RandomClips:
    """Clips drawn blindly, but for those of the query's own source.

    Their scores, of the query's best window for each, are given if the query is described; they do
    not choose.
    """

    index: ClipIndex
    searched: Int[np.ndarray, " rows"]
    describe: Describe | None = None

    def __call__(self, queries: Sequence[Asked], count: int) -> list[Chosen]:
        """See `Method`."""
        chosen = []
        for query in queries:
            own = self.index.clip_ids.rows([c for c in query.own_source if c in self.index])
            pool = np.setdiff1d(self.searched, own, assume_unique=True)
            rows = draw(pool, count, [query.seed, 29, query.video]) if len(pool) else []
            clips = tuple(self.index.clip_ids.at(np.array(rows, np.int64)).tolist())
            chosen.append(Chosen(clips, self._scores(query, clips)))
        return chosen

    def _scores(self, query: Asked, clips: tuple[str, ...]) -> tuple[float, ...]:
        if self.describe is None or not clips:
            return ()
        described = self.describe(query.video)
        windows = unit_vectors(described.vectors, [query.key] * len(described.vectors))
        scores = described.scores(windows @ self.index.vectors(clips).T)
        return tuple(round(float(score), 6) for score in scores.max(0))


@dataclasses.dataclass(frozen=True)
class OracleVideos:
    """Annotated videos of the query's class, as the benchmark pairs them."""

    pairs: Mapping[str, Sequence[int]]

    def __call__(self, queries: Sequence[Asked], count: int) -> list[Chosen]:
        """See `Method`."""
        return [Chosen(tuple(self.pairs[query.key][:count])) for query in queries]


@dataclasses.dataclass(frozen=True)
class RetrievedClips:
    """Eq. 3, by one vector a query or by its windows, as `describe` gives them.

    With `expand_by` the query is asked again together with so many of the clips found first.
    """

    index: ClipIndex
    describe: Describe
    duplicate_cosine: float
    searched: Int[np.ndarray, " rows"] | None = None
    expand_by: int = 0
    candidates: int = 50

    def __call__(self, queries: Sequence[Asked], count: int) -> list[Chosen]:
        """See `Method`."""
        return [_of(self._find(query, count)) for query in queries]

    def _find(self, query: Asked, count: int) -> Retrieved:
        described = self.describe(query.video)
        given: dict[str, Any] = {
            "duplicate_cosine": self.duplicate_cosine,
            "own_source": query.own_source,
            "searched": self.searched,
        }
        if self.expand_by:
            given |= {"by": self.expand_by, "candidates": self.candidates}
        find = retrieve_expanded if self.expand_by else retrieve
        return find(self.index, described, count, **given)


@dataclasses.dataclass(frozen=True)
class SemiShot:
    """The first `labelled` annotated videos, and clips near to them and to the query (Table 5)."""

    index: ClipIndex
    describe: Describe
    pairs: Mapping[str, Sequence[int]]
    own_source_of: Callable[[int], frozenset[str]]
    labelled: int
    candidates: int
    duplicate_cosine: float
    searched: Int[np.ndarray, " rows"] | None = None

    def __call__(self, queries: Sequence[Asked], count: int) -> list[Chosen]:
        """See `Method`; the annotated videos count."""
        chosen = []
        for query in queries:
            videos = tuple(self.pairs[query.key][: min(self.labelled, count)])
            own = query.own_source.union(*(self.own_source_of(video) for video in videos))
            found = retrieve_together(
                self.index,
                [self.describe(query.video), *(self.describe(video) for video in videos)],
                max(count - len(videos), 1),
                candidates=self.candidates,
                duplicate_cosine=self.duplicate_cosine,
                own_source=own,
                searched=self.searched,
            )
            clips = found.clip_ids[: count - len(videos)]
            chosen.append(
                dataclasses.replace(_of(found), supports=(*videos, *clips), scores=found.scores)
            )
        return chosen


@dataclasses.dataclass(frozen=True)
class QueryCrops:
    """Parts of the query itself at random places (Table 13).

    Attributes:
        of: `time` takes a part of its frames, `space` a part of each frame.
        share: of the query's length, or of each side of its frames.
    """

    of: str
    share: float

    def __call__(self, queries: Sequence[Asked], count: int) -> list[Chosen]:
        """See `Method`."""
        axes = {"time": 1, "space": 2}[self.of]
        chosen = []
        for query in queries:
            rng = np.random.default_rng([query.seed, 31, axes, query.video])
            starts = rng.uniform(0, 1 - self.share, size=(count, axes)).round(6).tolist()
            chosen.append(Chosen(tuple(self._part(query.video, *start) for start in starts)))
        return chosen

    def _part(self, video: int, *start: float) -> dict[str, Any]:
        if self.of == "time":
            return {"video": video, "start": start[0], "end": min(start[0] + self.share, 1.0)}
        left, top = start
        right, bottom = (min(edge + self.share, 1.0) for edge in start)
        return {"video": video, "box": [left, top, right, bottom]}


def _of(found: Retrieved) -> Chosen:
    return Chosen(found.clip_ids, found.scores, found.near_duplicates, found.own_source)
