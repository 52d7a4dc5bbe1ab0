"""The true nearest vectors in a corpus that comes block by block."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from selfshot.retrieval.index import compare_all


@dataclasses.dataclass
class ExactSearch:
    """The true nearest vectors of some queries, of all blocks that were added.

    Attributes:
        queries: unit vectors.
        k: neighbours of each.
        excluded: for each query a row of the corpus that does not count, itself; none: all count.
        use_gpu: compare on a GPU, where there is one.
        scores: cosines, best first; -inf where fewer vectors were seen than `k`.
        rows: in the corpus; -1 there.
    """

    queries: Float[np.ndarray, "queries dim"]
    k: int
    excluded: Int[np.ndarray, " queries"] | None = None
    use_gpu: bool = False

    def __post_init__(self) -> None:
        shape = (len(self.queries), self.k)
        self.scores = np.full(shape, -np.inf, np.float32)
        self.rows = np.full(shape, -1, np.int64)

    def add(self, first: int, unit: Float[np.ndarray, "rows dim"]) -> None:
        """Compare the queries with unit vectors, the rows from `first` on."""
        asked = min(self.k + (self.excluded is not None), len(unit))
        scores, found = compare_all(self.queries, unit, asked, use_gpu=self.use_gpu)
        found = found + first
        if self.excluded is not None:
            scores = np.where(found == self.excluded[:, None], -np.inf, scores)
        scores = np.concatenate([self.scores, scores], axis=1)
        found = np.concatenate([self.rows, found], axis=1)
        order = np.lexsort((found, -scores), axis=1)[:, : self.k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.rows = np.take_along_axis(found, order, axis=1)
