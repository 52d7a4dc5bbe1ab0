"""Select: the supports of a query, of each kind; a new kind is a function here.

It is registered by its name in `SELECTORS`; what the table and the report say of it is its line in
`config/supports.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from selfshot.data.supports import Support
from selfshot.errors import UserError
from selfshot.retrieval.describe import QueryEmbedding
from selfshot.retrieval.search import CorpusSearch, SearchResult

CROP_SHARE = 0.5
"""Of the query's length, or of each side of its frames: what a crop of Table 13 shows."""


@dataclasses.dataclass(frozen=True)
class Query:
    """A video that supports are wanted for.

    Attributes:
        key: what it is called in files.
        video: id of its video.
        class_name: that its supports share with it.
        fold: that it is in; draws depend on it.
        own_source: clips of the corpus from the same source.
    """

    key: str
    video: int
    class_name: str
    fold: int = 0
    own_source: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Supports:
    """Supports of a query, best first, and the score of each (none where nothing was compared)."""

    supports: tuple[Support, ...]
    scores: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sources:
    """What supports are selected from.

    Attributes:
        search: of the corpus.
        found: for each way to describe a query and each query's key, what was found.
        embedding: of a video as `supports.vectors` says.
        way: of `found` that `supports.vectors` says.
        pairs: labelled supports of each query's key, in their order.
        own_source: clips of the corpus from an annotated video's source.
    """

    search: CorpusSearch
    found: Mapping[str, Mapping[str, SearchResult]]
    embedding: Callable[[int], QueryEmbedding]
    way: str
    pairs: Mapping[str, Sequence[int]]
    own_source: Callable[[int], frozenset[str]]


Selector = Callable[[Sources, Query, int, int], Supports]
"""At most `shots + extra` supports of a query, given both."""


def _query_itself(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    return Supports((query.video,))


def _random(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    """Clips drawn blindly, but for those of the query's own source; their scores do not choose."""
    clips = sources.search.draw(shots + extra, [query.fold, 29, query.video], query.own_source)
    return Supports(clips, sources.search.scores(sources.embedding(query.video), clips))


def _self_shot(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    return _first(sources.found[sources.way][query.key], shots + extra)


def _seen_penalty(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    return _first(sources.found["seen_penalty"][query.key], shots + extra)


def _semi_shot(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    """`shots` labelled videos, and clips near to them and to the query (Table 5)."""
    videos = tuple(sources.pairs[query.key][:shots])
    own = query.own_source.union(*map(sources.own_source, videos))
    members = [sources.embedding(video) for video in (query.video, *videos)]
    return Supports((*videos, *sources.search.together(members, extra, own).clip_ids))


def _oracle(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    """Annotated videos of the query's class, as the benchmark pairs them."""
    return Supports(tuple(sources.pairs[query.key][: shots + extra]))


def _temporal_crops(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    """Stretches of the query at random places (Table 13)."""
    starts = _starts(query, shots + extra, 1)
    ends = np.minimum(starts + CROP_SHARE, 1.0)
    parts = zip(starts[:, 0].tolist(), ends[:, 0].tolist(), strict=True)
    return Supports(tuple({"video": query.video, "start": a, "end": b} for a, b in parts))


def _spatial_crops(sources: Sources, query: Query, shots: int, extra: int) -> Supports:
    """Parts of the query's frames at random places (Table 13)."""
    starts = _starts(query, shots + extra, 2)
    boxes = np.concatenate([starts, np.minimum(starts + CROP_SHARE, 1.0)], axis=1).tolist()
    return Supports(tuple({"video": query.video, "box": box} for box in boxes))


SELECTORS: dict[str, Selector] = {
    "query_itself": _query_itself,
    "temporal_crops": _temporal_crops,
    "spatial_crops": _spatial_crops,
    "random": _random,
    "self_shot": _self_shot,
    "seen_penalty": _seen_penalty,
    "semi_shot": _semi_shot,
    "oracle": _oracle,
}


def select(
    sources: Sources, query: Query, wanted: Mapping[str, tuple[str, int, int]]
) -> dict[str, list[Any]]:
    """A query's part of supports.json: supports by name, best first, and `<name>_scores`.

    Where a kind finds too few, its own are repeated from the best.

    Args:
        sources: what there is to select from.
        query: the query.
        wanted: name → kind, shots and extra ones.

    Raises:
        UserError: nothing was found.
    """
    entry: dict[str, list[Any]] = {}
    for name, (kind, shots, extra) in wanted.items():
        one = SELECTORS[kind](sources, query, shots, extra)
        if not one.supports:
            raise UserError(
                "supports.duplicate_cosine: every clip of the corpus is the query's own source or "
                "a near duplicate of it; add other clips to the corpus or raise the value",
                setting="supports.duplicate_cosine",
            )
        entry[name] = [one.supports[i % len(one.supports)] for i in range(shots + extra)]
        if one.scores:
            entry[f"{name}_scores"] = list(one.scores)
    return entry


def _first(found: SearchResult, count: int) -> Supports:
    return Supports(found.clip_ids[:count], found.scores[:count])


def _starts(query: Query, count: int, axes: int) -> np.ndarray:
    rng = np.random.default_rng([query.fold, 31, axes, query.video])
    return rng.uniform(0, 1 - CROP_SHARE, size=(count, axes)).round(6)
