"""How good a ranking of clips is where their classes are known: precision, recall, mean AP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool


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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
