"""The choice of supports: query in, ordered clips and scores out (Eq. 3 and what it is held to)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from selfshot.retrieval.index import FlatIndex


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """Supports of one query, best first.

    Attributes:
        clip_ids: of the corpus.
        scores: the cosine that each was chosen by.
        near_duplicates: clips left out because they were nearly the query itself.
        own_source: clips of the corpus left out because they come from the query's own source
            video, near or far.
    """

    clip_ids: tuple[str, ...]
    scores: tuple[float, ...]
    near_duplicates: int
    own_source: int


def retrieve(
    index: FlatIndex,
    vectors: Float[np.ndarray, "windows dim"],
    foreground: Float[np.ndarray, " windows"],
    count: int,
    *,
    duplicate_cosine: float,
    own_source: Collection[str] = (),
    foreground_power: float = 0.0,
) -> Retrieved:
    """self-shot(q) = kNN(Φ(q), Φ(S)), for a query of one vector or of several windows.

    With several windows a clip's score is its best: the maximum over windows of
    cosine × foreground ** foreground_power. Every window asks the index for enough neighbours
    that the result is that of scoring the whole corpus.

    Args:
        index: of the corpus.
        vectors: of the query's windows; one row for Eq. 3 as printed.
        foreground: mean foreground probability of each window.
        count: supports wanted.
        duplicate_cosine: a clip of a higher cosine is a near duplicate and left out.
        own_source: clips of the query's own source video, left out.
        foreground_power: how much a window's foreground counts.
    """
    # Duplicates are rare, so a few spare neighbours mostly do; ask again when they do not.
    spare = 8
    own = {clip_id for clip_id in own_source if clip_id in index}
    weights = foreground**foreground_power
    while True:
        k = min(len(index), count + spare + len(own))
        cosines, clip_ids = index.search(vectors, k)
        best: dict[str, tuple[float, float]] = {}
        duplicates: set[str] = set()
        for row, weight in enumerate(weights):
            for cosine, clip_id in zip(cosines[row], clip_ids[row], strict=True):
                if cosine > duplicate_cosine:
                    duplicates.add(clip_id)
                score = float(cosine * weight)
                if score > best.get(clip_id, (-np.inf, 0.0))[0]:
                    best[clip_id] = (score, float(cosine))
        allowed = [c for c in best if c not in duplicates and c not in own]
        enough = len(allowed) >= count and len(duplicates) <= spare
        if enough or k == len(index):
            break
        spare *= 4
    ranked = sorted(allowed, key=lambda clip_id: (-best[clip_id][0], clip_id))[:count]
    return Retrieved(
        clip_ids=tuple(ranked),
        scores=tuple(round(best[clip_id][1], 6) for clip_id in ranked),
        near_duplicates=len(duplicates - own),
        own_source=len(own),
    )


def draw(pool: Sequence, count: int, seed: Sequence[int]) -> list:
    """`count` of a pool at random without repetition (with, where the pool is smaller)."""
    rng = np.random.default_rng(list(seed))
    return [pool[i] for i in rng.choice(len(pool), count, replace=len(pool) < count)]


def precision_at(found: Sequence[Sequence[str]], wanted: Sequence[str], k: int) -> float:
    """Share of the first k clips' classes that are the query's, averaged over queries.

    Args:
        found: for each query the classes of its retrieved clips, best first.
        wanted: the queries' classes.
        k: how many count.
    """
    hits = [
        float(np.mean([name == want for name in names[:k]])) if len(names) else 0.0
        for names, want in zip(found, wanted, strict=True)
    ]
    return float(np.mean(hits)) if hits else 0.0
