"""The seen-class penalty: a query's windows that labelled clips of seen classes explain."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from selfshot.retrieval.index import unit_vectors

NEAREST = 5
"""Labelled clips that a window's nearness to seen classes is the mean over."""


def seen_similarity(
    vectors: Float[np.ndarray, "windows dim"],
    seen: Float[np.ndarray, "clips dim"],
    nearest: int = NEAREST,
) -> Float[np.ndarray, " windows"]:
    """How near each window of a query is to seen classes: f(w) = mean of its best cosines.

    A query of an unseen class also shows objects of seen ones. Their windows are near to labelled
    clips, and a clip that such a window finds is of a class that merely looks like a seen one. With
    the weight λ a clip's score is max over windows of cos(w, clip) − λ·f(w).

    Args:
        vectors: of the query's windows, of any length.
        seen: of labelled clips of seen classes, of any length.
        nearest: how many labelled clips the mean is over, at most all.

    Returns:
        f in [-1, 1].

    Raises:
        ValueError: there is no labelled clip, or `nearest` is below 1.
    """
    if not len(seen) or nearest < 1:
        raise ValueError(f"{len(seen)} labelled clips and the nearest {nearest} of them: none")
    unit = unit_vectors(vectors, ["the query"] * len(vectors))
    labelled = unit_vectors(seen, ["a labelled clip"] * len(seen))
    cosines = unit @ labelled.T
    count = min(nearest, len(seen))
    return np.partition(cosines, -count, axis=1)[:, -count:].mean(1)
