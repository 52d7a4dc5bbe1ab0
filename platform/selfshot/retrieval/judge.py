"""Judge: how good a search is where classes are known: precision, recall, mean AP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from selfshot.retrieval.describe import WAYS
from selfshot.retrieval.search import SearchResult
from selfshot.retrieval.select import Query

JUDGED_RANKS = 50
"""Ranks that recall and mAP look at."""

SUSPECT_COSINE = 0.9
"""A clip that is kept and nearer than this, by one vector, may be of the query's own scene."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What one query found.

    Attributes:
        classes: of the clips it found, best first; empty for an unknown one.
        wanted: the query's class.
        relevant: clips of that class that there are to be found.
    """

    classes: Sequence[str]
    wanted: str
    relevant: int

    @property
    def hits(self) -> Bool[np.ndarray, " ranks"]:
        """Which of the clips are of the query's class."""
        return np.array([name == self.wanted for name in self.classes], dtype=bool)


def precision_at(rankings: Sequence[Ranking], k: int) -> float:
    """Share of the first k clips (of all, where fewer were found) that are of the query's class."""
    return _mean([float(r.hits[:k].mean()) if len(r.classes) else 0.0 for r in rankings])


def recall_at(rankings: Sequence[Ranking], k: int) -> float:
    """Share of the clips of the query's class that are among the first k."""
    return _mean([float(r.hits[:k].sum()) / r.relevant for r in rankings])


def average_precision(ranking: Ranking, depth: int) -> float:
    """Mean of the precisions at each hit among the first `depth`.

    It is divided by the hits that were possible there, so that a ranking that begins with as many
    clips of the class as there are (or as fit) has 1.
    """
    hits = ranking.hits[:depth]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].sum()) / min(ranking.relevant, depth)


def ranking_scores(rankings: Sequence[Ranking], depth: int) -> dict[str, Any]:
    """All of them, averaged over queries; shares in [0, 1].

    Args:
        rankings: of queries whose class some clip has.
        depth: ranks that mAP looks at, and the largest k of the recall.
    """
    return {
        "precision_at": {str(k): precision_at(rankings, k) for k in (1, 5)},
        "recall_at": {str(k): recall_at(rankings, k) for k in sorted({1, 5, depth})},
        "mAP": _mean([average_precision(one, depth) for one in rankings]),
    }


def judge(
    queries: Sequence[Query],
    found: Mapping[str, Mapping[str, SearchResult]],
    used: str,
    labels: Mapping[str, str],
    clips_searched: int,
    depth: int,
) -> dict[str, Any]:
    """Precision, recall and mAP where labels are known; counts of what was left out always.

    Args:
        queries: of a split.
        found: for each way to search, and `random`, what was found for each query's key.
        used: the way that supports are chosen by.
        labels: known classes of the clips that were searched.
        clips_searched: how many there are.
        depth: ranks that were searched for.
    """
    results = [found[used][query.key] for query in queries]
    facts: dict[str, Any] = {
        "num_queries": len(queries),
        "clips_searched": clips_searched,
        "excluded_near_duplicates": sum(one.near_duplicates for one in results),
        "excluded_same_source": sum(one.own_source for one in results),
        "suspected_same_scene": sum(
            score > SUSPECT_COSINE for q in queries for score in found["global"][q.key].scores
        ),
    }
    # A query whose class no corpus clip is known to show cannot be judged.
    classes = list(labels.values())
    sizes = {name: classes.count(name) for name in {q.class_name for q in queries} & set(classes)}
    judged = [query for query in queries if query.class_name in sizes]
    if not judged:
        return facts
    rankings = {
        way: [
            Ranking(
                [labels.get(clip, "") for clip in of_way[query.key].clip_ids],
                query.class_name,
                sizes[query.class_name],
            )
            for query in judged
        ]
        for way, of_way in found.items()
    }
    scores = {way: ranking_scores(of_way, depth) for way, of_way in rankings.items()}
    by_class = {
        name: [ranking for ranking in rankings[used] if ranking.wanted == name]
        for name in sorted(sizes)
    }
    return {
        **facts,
        "chance": float(np.mean([sizes[query.class_name] / clips_searched for query in judged])),
        **scores[used],
        "per_class": {name: precision_at(some, 5) for name, some in by_class.items()},
        "mAP_per_class": {
            name: ranking_scores(some, depth)["mAP"] for name, some in by_class.items()
        },
        "judged_ranks": depth,
        "random": scores["random"],
        "alternatives": {way: scores[way] for way in WAYS if way in scores},
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
