"""A linear map that makes what should not matter count less, in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def whitening(
    differences: Float[Tensor, "pairs dim"], shrinkage: float
) -> Float[Tensor, "dim dim"]:
    """The symmetric map after which differences are alike in all directions, but for a share.

    With differences between two shots of one clip it is what a linear contrast would learn:
    directions that change while the clip shows the same thing count less. Few pairs know little
    of most directions, so `shrinkage` times the mean variance is added to each.

    Args:
        differences: of vectors that should be near to each other.
        shrinkage: at least 0; the larger, the nearer the map is to a multiple of the identity.

    Returns:
        the inverse square root of their second moment, scaled so that it lengthens no vector.

    Raises:
        ValueError: there is no difference, the shrinkage is below 0, or it is 0 and some direction
            never changes.
    """
    if not shrinkage >= 0:
        raise ValueError(f"shrinkage: {shrinkage} must be at least 0")
    if not len(differences):
        raise ValueError("differences: 0 received, at least 1 is needed")
    x = differences.double()
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    values = values.clamp_min(0)
    raised = values + shrinkage * values.mean()
    if not bool((raised > 1e-12 * raised.max()).all()):
        raise ValueError(f"shrinkage: {shrinkage} is too little, some direction never changes")
    gains = (raised.min() / raised).sqrt()
    return ((axes * gains) @ axes.T).to(differences.dtype)
