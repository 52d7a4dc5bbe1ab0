"""The choice of supports: query in, ordered clips and scores out (Eq. 3 and what it is held to)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int

from selfshot.retrieval.index import ClipIndex, unit_vectors


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """Supports of one query, best first.

    Attributes:
        clip_ids: of the corpus.
        scores: the cosine that each was chosen by, less its window's penalty.
        near_duplicates: clips left out because they were nearly the query itself.
        own_source: clips of the corpus left out because they come from the query's own source
            video, near or far.
    """

    clip_ids: tuple[str, ...]
    scores: tuple[float, ...]
    near_duplicates: int
    own_source: int


@dataclasses.dataclass(frozen=True)
class Described:
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


def retrieve(
    index: ClipIndex,
    query: Described,
    count: int,
    *,
    duplicate_cosine: float,
    own_source: Collection[str] = (),
    searched: Int[np.ndarray, " rows"] | None = None,
) -> Retrieved:
    """self-shot(q) = kNN(Φ(q), Φ(S)), for a query of one vector or of several windows.

    With several windows a clip's score is its best: the maximum over windows of
    cosine − penalty. Every window asks the index for enough
    neighbours that the result is that of scoring the whole corpus.

    Args:
        index: of the corpus.
        query: its windows; one row for Eq. 3 as printed.
        count: supports wanted.
        duplicate_cosine: a clip of a higher cosine is a near duplicate and left out.
        own_source: clips of the query's own source video, left out.
        searched: rows of the index, without repetition, that are searched; none: all.
    """
    total = len(index) if searched is None else len(searched)
    own = index.clip_ids.rows([clip_id for clip_id in own_source if clip_id in index])
    own = np.unique(own if searched is None else np.intersect1d(own, searched))
    # Duplicates are rare, so a few spare neighbours mostly do; ask again when they do not.
    spare = 8
    while total:
        k = min(total, count + spare + len(own))
        cosines, rows = index.search_rows(query.vectors, k, searched)
        best = _best_of_each(rows, cosines, query.scores(cosines))
        allowed = ~(np.isin(best.rows, own) | best.above(duplicate_cosine))
        duplicates = best.above(duplicate_cosine)
        enough = allowed.sum() >= count and duplicates.sum() <= spare
        if enough or k == total:
            break
        spare *= 4
    else:
        return Retrieved((), (), 0, 0)
    names = index.clip_ids.at(best.rows[allowed])
    scores = best.scores[allowed]
    # Ties are settled by name, whatever the order of the index.
    order = np.lexsort((names.astype(str), -scores))[:count]
    return Retrieved(
        clip_ids=tuple(names[order].tolist()),
        scores=tuple(round(float(one), 6) for one in scores[order]),
        near_duplicates=int((duplicates & ~np.isin(best.rows, own)).sum()),
        own_source=len(own),
    )


@dataclasses.dataclass(frozen=True)
class _Best:
    """For each row that any window found: its best score, and its best cosine."""

    rows: np.ndarray
    scores: np.ndarray
    highest: np.ndarray

    def above(self, cosine: float) -> np.ndarray:
        return self.highest > cosine


def _best_of_each(
    rows: Int[np.ndarray, "windows k"],
    cosines: Float[np.ndarray, "windows k"],
    scores: Float[np.ndarray, "windows k"],
) -> _Best:
    flat, cosine, score = rows.reshape(-1), cosines.reshape(-1), scores.reshape(-1)
    window = np.repeat(np.arange(len(rows)), rows.shape[1])
    # The first window wins a tie, as in a loop over them.
    order = np.lexsort((window, -score, flat))
    firsts = np.flatnonzero(np.diff(flat[order], prepend=-1))
    return _Best(
        rows=flat[order][firsts],
        scores=score[order][firsts],
        highest=np.maximum.reduceat(cosine[order], firsts),
    )


def retrieve_expanded(
    index: ClipIndex,
    query: Described,
    count: int,
    *,
    by: int,
    candidates: int,
    duplicate_cosine: float,
    own_source: Collection[str] = (),
    searched: Int[np.ndarray, " rows"] | None = None,
) -> Retrieved:
    """Retrieve, then ask again with what the first clips have in common.

    The second query is one vector: half the mean of the windows that found the first `by` clips,
    half the mean of those clips. A clip's score is the mean of its first score and its cosine
    with that vector, so one clip that is near by chance does not decide alone.

    Args:
        index: of the corpus.
        query: see `retrieve`.
        count: supports wanted.
        by: clips that the query is expanded by.
        candidates: clips that each of the two searches proposes.
        duplicate_cosine: see `retrieve`; of the query's own windows.
        own_source: see `retrieve`.
        searched: see `retrieve`.
    """
    most = max(count, candidates)
    first = retrieve(
        index,
        query,
        most,
        duplicate_cosine=duplicate_cosine,
        own_source=own_source,
        searched=searched,
    )
    if not first.clip_ids:
        return first
    unit = unit_vectors(query.vectors, ["the query"] * len(query.vectors))
    head = index.vectors(first.clip_ids[:by])
    finders = unit[query.scores(unit @ head.T).argmax(0)]
    asked = unit_vectors((finders.mean(0) + head.mean(0))[None] / 2, ["the expanded query"])
    # Nothing is a duplicate of a mean; those of the query are left out below.
    second = retrieve(
        index,
        Described(asked),
        most,
        duplicate_cosine=np.inf,
        own_source=own_source,
        searched=searched,
    )
    names = np.array(sorted({*first.clip_ids, *second.clip_ids}), dtype=object)
    corpus = index.vectors(names.tolist())
    cosines = unit @ corpus.T
    scores = (query.scores(cosines).max(0) + (asked @ corpus.T)[0]) / 2
    kept = cosines.max(0) <= duplicate_cosine
    order = [row for row in np.lexsort((names.astype(str), -scores)) if kept[row]][:count]
    return dataclasses.replace(
        first,
        clip_ids=tuple(names[order].tolist()),
        scores=tuple(round(float(scores[row]), 6) for row in order),
    )


def retrieve_together(
    index: ClipIndex,
    members: Sequence[Described],
    count: int,
    *,
    candidates: int,
    duplicate_cosine: float,
    own_source: Collection[str] = (),
    searched: Int[np.ndarray, " rows"] | None = None,
) -> Retrieved:
    """Clips that are near to several videos at once: a query and its labelled supports (Table 5).

    A clip's score is the mean over the videos of its best window's score, so that what they have
    in common decides, and what only one of them shows does not.

    Args:
        index: of the corpus.
        members: the query first, then the others.
        count: clips wanted.
        candidates: clips that each video proposes; all of them are compared with all videos.
        duplicate_cosine: see `retrieve`, for the query.
        own_source: clips of any member's own source video, left out.
        searched: see `retrieve`.
    """
    found = [
        retrieve(
            index,
            member,
            max(candidates, count),
            duplicate_cosine=duplicate_cosine,
            own_source=own_source,
            searched=searched,
        )
        for member in members
    ]
    names = np.array(sorted({clip_id for one in found for clip_id in one.clip_ids}), dtype=object)
    if not len(names):
        return Retrieved((), (), found[0].near_duplicates, found[0].own_source)
    corpus = index.vectors(names.tolist())
    scores, near = np.zeros(len(names)), np.zeros(len(names), bool)
    for member in members:
        cosines = unit_vectors(member.vectors, [""] * len(member.vectors)) @ corpus.T
        near |= cosines.max(0) > duplicate_cosine
        scores += member.scores(cosines).max(0) / len(members)
    # A clip that is nearly one of the labelled supports brings nothing new either.
    order = [row for row in np.lexsort((names.astype(str), -scores)) if not near[row]][:count]
    return Retrieved(
        clip_ids=tuple(names[order].tolist()),
        scores=tuple(round(float(scores[row]), 6) for row in order),
        near_duplicates=found[0].near_duplicates,
        own_source=found[0].own_source,
    )


def draw(pool: Sequence | np.ndarray, count: int, seed: Sequence[int]) -> list:
    """`count` of a pool at random without repetition (with, where the pool is smaller)."""
    rng = np.random.default_rng(list(seed))
    return [pool[i] for i in rng.choice(len(pool), count, replace=len(pool) < count)]
