"""Search: the clips of a corpus that are nearest to a query (Eq. 3 and what it is held to)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int

from selfshot.retrieval.describe import QueryEmbedding
from selfshot.retrieval.index import ClipIndex, unit_vectors

CANDIDATES = 50
"""Clips that each search of an expanded query, and each video of `together`, proposes at least."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Clips that were found for a query, best first.

    Attributes:
        clip_ids: of the corpus.
        scores: the cosine that each was chosen by, less its window's penalty.
        near_duplicates: clips left out because they were nearly the query itself.
        own_source: clips of the corpus left out because they come from the query's own source
            video, near or far.
    """

    clip_ids: tuple[str, ...]
    scores: tuple[float, ...]
    near_duplicates: int = 0
    own_source: int = 0


@dataclasses.dataclass(frozen=True)
class CorpusSearch:
    """Searches a corpus, or a part of it.

    Attributes:
        index: of the corpus.
        duplicate_cosine: a clip of a higher cosine is a near duplicate and left out.
        expand_by: clips found first, with which the query is searched again; 0: once.
        rows: of the index, without repetition, that are searched; none: all.
    """

    index: ClipIndex
    duplicate_cosine: float
    expand_by: int = 0
    rows: Int[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(self.index) if self.rows is None else len(self.rows)

    def __call__(
        self, query: QueryEmbedding, count: int, own_source: Collection[str] = ()
    ) -> SearchResult:
        """The nearest clips, by an expanded query if the search is set to one.

        Args:
            query: its windows; one row for Eq. 3 as printed.
            count: clips wanted.
            own_source: clips of the query's own source video, left out.
        """
        find = self.expanded if self.expand_by else self.nearest
        return find(query, count, own_source)

    def nearest(
        self, query: QueryEmbedding, count: int, own_source: Collection[str] = ()
    ) -> SearchResult:
        """self-shot(q) = kNN(Φ(q), Φ(S)), for a query of one vector or of several windows.

        With several windows a clip's score is its best: the maximum over windows of
        cosine − penalty. Every window queries the index for enough neighbours that the result is
        that of scoring the whole corpus.
        """
        own = self.rows_of(own_source)
        # Duplicates are rare, so a few spare neighbours mostly do; search again when they do not.
        spare = 8
        while len(self):
            k = min(len(self), count + spare + len(own))
            cosines, rows = self.index.search_rows(query.vectors, k, self.rows)
            found, scores, highest = _best_of_each(rows, cosines, query.scores(cosines))
            duplicates = highest > self.duplicate_cosine
            allowed = ~(np.isin(found, own) | duplicates)
            enough = allowed.sum() >= count and duplicates.sum() <= spare
            if enough or k == len(self):
                break
            spare *= 4
        else:
            return SearchResult((), ())
        names = self.index.clip_ids.at(found[allowed])
        return dataclasses.replace(
            _ranked(names, scores[allowed], count),
            near_duplicates=int((duplicates & ~np.isin(found, own)).sum()),
            own_source=len(own),
        )

    def expanded(
        self, query: QueryEmbedding, count: int, own_source: Collection[str] = ()
    ) -> SearchResult:
        """Search, then once more with what the first clips have in common.

        The second query is one vector: half the mean of the windows that found the first
        `expand_by` clips, half the mean of those clips. A clip's score is the mean of its first
        score and its cosine with that vector, so one clip that is near by chance does not decide
        alone.
        """
        most = max(count, CANDIDATES)
        first = self.nearest(query, most, own_source)
        if not first.clip_ids:
            return first
        unit = _unit(query)
        head = self.index.vectors(first.clip_ids[: self.expand_by])
        finders = unit[query.scores(unit @ head.T).argmax(0)]
        mean = unit_vectors((finders.mean(0) + head.mean(0))[None] / 2, ["the expanded query"])
        # Nothing is a duplicate of a mean; those of the query are left out below.
        every = dataclasses.replace(self, duplicate_cosine=np.inf)
        second = every.nearest(QueryEmbedding(mean), most, own_source)
        names, corpus = self._candidates(first, second)
        cosines = unit @ corpus.T
        scores = (query.scores(cosines).max(0) + (mean @ corpus.T)[0]) / 2
        kept = cosines.max(0) <= self.duplicate_cosine
        found = _ranked(names[kept], scores[kept], count)
        return dataclasses.replace(first, clip_ids=found.clip_ids, scores=found.scores)

    def together(
        self, members: Sequence[QueryEmbedding], count: int, own_source: Collection[str] = ()
    ) -> SearchResult:
        """Clips near to several videos at once: a query and its labelled supports (Table 5).

        A clip's score is the mean over the videos of its best window's score, so that what they
        have in common decides, and what only one of them shows does not.

        Args:
            members: the query first, then the others.
            count: clips wanted.
            own_source: clips of any member's own source video, left out.
        """
        found = [self.nearest(one, max(CANDIDATES, count), own_source) for one in members]
        if not any(one.clip_ids for one in found):
            return found[0]
        names, corpus = self._candidates(*found)
        scores, near = np.zeros(len(names)), np.zeros(len(names), bool)
        for member in members:
            cosines = _unit(member) @ corpus.T
            near |= cosines.max(0) > self.duplicate_cosine
            scores += member.scores(cosines).max(0) / len(members)
        # A clip that is nearly one of the labelled supports brings nothing new either.
        best = _ranked(names[~near], scores[~near], count)
        return dataclasses.replace(found[0], clip_ids=best.clip_ids, scores=best.scores)

    def scores(self, query: QueryEmbedding, clip_ids: Sequence[str]) -> tuple[float, ...]:
        """Of some clips, by the query's best window for each."""
        if not clip_ids:
            return ()
        cosines = _unit(query) @ self.index.vectors(clip_ids).T
        return tuple(round(float(score), 6) for score in query.scores(cosines).max(0))

    def draw(
        self, count: int, seed: Sequence[int], own_source: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Clips drawn blindly, without repetition where there are enough."""
        rows = np.arange(len(self.index)) if self.rows is None else self.rows
        pool = np.setdiff1d(rows, self.rows_of(own_source), assume_unique=True)
        drawn = draw(pool, count, seed) if len(pool) else []
        return tuple(self.index.clip_ids.at(np.array(drawn, np.int64)).tolist())

    def rows_of(self, clip_ids: Collection[str]) -> Int[np.ndarray, " rows"]:
        """Rows, in increasing order, of those clips that are searched."""
        rows = self.index.clip_ids.rows([one for one in clip_ids if one in self.index])
        return np.unique(rows if self.rows is None else np.intersect1d(rows, self.rows))

    def _candidates(
        self, *found: SearchResult
    ) -> tuple[np.ndarray, Float[np.ndarray, "clips dim"]]:
        """Names of all that was found, in order, and their vectors."""
        names = sorted({clip_id for one in found for clip_id in one.clip_ids})
        return np.array(names, dtype=object), self.index.vectors(names)


def _unit(query: QueryEmbedding) -> Float[np.ndarray, "windows dim"]:
    return unit_vectors(query.vectors, ["the query"] * len(query.vectors))


def _ranked(names: np.ndarray, scores: np.ndarray, count: int) -> SearchResult:
    """The best; ties are settled by name, whatever the order of the index."""
    order = np.lexsort((names.astype(str), -scores))[:count]
    return SearchResult(
        clip_ids=tuple(names[order].tolist()),
        scores=tuple(round(float(one), 6) for one in scores[order]),
    )


def _best_of_each(
    rows: Int[np.ndarray, "windows k"],
    cosines: Float[np.ndarray, "windows k"],
    scores: Float[np.ndarray, "windows k"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row that any window found, its best score, and its best cosine."""
    flat, cosine, score = rows.reshape(-1), cosines.reshape(-1), scores.reshape(-1)
    window = np.repeat(np.arange(len(rows)), rows.shape[1])
    # The first window wins a tie, as in a loop over them.
    order = np.lexsort((window, -score, flat))
    firsts = np.flatnonzero(np.diff(flat[order], prepend=-1))
    return flat[order][firsts], score[order][firsts], np.maximum.reduceat(cosine[order], firsts)


def draw(pool: Sequence | np.ndarray, count: int, seed: Sequence[int]) -> list:
    """`count` of a pool at random without repetition (with, where the pool is smaller)."""
    rng = np.random.default_rng(list(seed))
    return [pool[i] for i in rng.choice(len(pool), count, replace=len(pool) < count)]
