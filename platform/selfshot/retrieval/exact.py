"""The true nearest vectors in a corpus that comes block by block."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int

from selfshot.retrieval.index import compare_all


@dataclasses.dataclass
class ExactSearch:
    """The true nearest vectors of some queries, of all blocks that were added.

    Attributes:
        queries: unit vectors.
        k: neighbours of each.
        device: where they are compared: `cpu` by FAISS, `cuda` by PyTorch.
        scores: cosines, best first; -inf where fewer vectors were seen than `k`.
        rows: in the corpus; -1 there.
    """

    queries: Float[np.ndarray, "queries dim"]
    k: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        shape = (len(self.queries), self.k)
        self.scores = np.full(shape, -np.inf, np.float32)
        self.rows = np.full(shape, -1, np.int64)

    def add(self, first: int, unit: Float[np.ndarray, "rows dim"]) -> None:
        """Compare the queries with unit vectors, the rows from `first` on."""
        scores, found = self._compare(unit, min(self.k, len(unit)))
        scores = np.concatenate([self.scores, scores], axis=1)
        found = np.concatenate([self.rows, found + first], axis=1)
        order = np.lexsort((found, -scores), axis=1)[:, : self.k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.rows = np.take_along_axis(found, order, axis=1)

    def _compare(
        self, unit: Float[np.ndarray, "rows dim"], k: int
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        if self.device == "cpu":
            return compare_all(self.queries, unit, k)
        queries, vectors = (torch.from_numpy(x).to(self.device) for x in (self.queries, unit))
        scores, rows = (queries @ vectors.T).topk(k)
        return scores.cpu().numpy(), rows.cpu().numpy()
