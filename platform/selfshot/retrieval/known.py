"""What labelled clips of seen classes explain of a query, and what is left to ask for."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from selfshot.retrieval.index import unit_vectors


def familiarity(
    vectors: Float[np.ndarray, "windows dim"],
    known: Float[np.ndarray, "clips dim"],
    nearest: int,
) -> Float[np.ndarray, " windows"]:
    """How near each window of a query is to what was labelled: f(w) = mean of its best cosines.

    A query of an unseen class also shows objects of seen ones. Their windows are near to labelled
    clips, and a clip that such a window finds is of a class that merely looks like a seen one.

    Args:
        vectors: of the query's windows, of any length.
        known: of labelled clips of seen classes, of any length.
        nearest: how many labelled clips the mean is over, at most all.

    Returns:
        f in [-1, 1].

    Raises:
        ValueError: there is no labelled clip, or `nearest` is below 1.
    """
    if not len(known) or nearest < 1:
        raise ValueError(f"{len(known)} labelled clips and the nearest {nearest} of them: none")
    unit = unit_vectors(vectors, ["the query"] * len(vectors))
    labelled = unit_vectors(known, ["a labelled clip"] * len(known))
    cosines = unit @ labelled.T
    count = min(nearest, len(known))
    return np.partition(cosines, -count, axis=1)[:, -count:].mean(1)


@dataclasses.dataclass(frozen=True)
class KnownClips:
    """Labelled clips of seen classes, and how much they count.

    Attributes:
        vectors: (clips, dim), Φ of each.
        nearest: see `familiarity`.
        weight: λ; a clip's score is max over windows of cos(w, clip) − λ·f(w).
    """

    vectors: np.ndarray
    nearest: int
    weight: float

    def handicap(self, vectors: Float[np.ndarray, "windows dim"]) -> Float[np.ndarray, " windows"]:
        """λ·f(w) of each window of a query."""
        return self.weight * familiarity(vectors, self.vectors, self.nearest)
