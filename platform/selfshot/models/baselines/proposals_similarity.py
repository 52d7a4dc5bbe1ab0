"""Proposals ranked by similarity: what retrieval gives without a network that reads supports."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional

from selfshot.models.trained_encoder import FrozenEncoder


@torch.inference_mode()
def region_vectors(
    encoder: FrozenEncoder,
    frames: UInt8[np.ndarray, "time height width 3"],
    regions: Float[np.ndarray, "regions time rows columns"] | None = None,
) -> Float[np.ndarray, "regions dim"]:
    """Φ of parts of a clip: the mean of its tokens there, as Φ(v) is that of its foreground.

    Args:
        encoder: Φ; vectors of its auxiliary encoder are joined to its own.
        frames: of the clip, without padding.
        regions: the share of each cell that a region covers, on any grid; none: one region, what
            Φ takes for foreground.

    Returns:
        float32; zeros for a region that covers nothing.
    """
    clips = torch.from_numpy(frames)[None].to(encoder.device)
    given = None if regions is None else torch.from_numpy(regions)[None].to(encoder.device)
    vectors, weights = encoder.encoder.regions(clips, given)
    if encoder.auxiliary is not None:
        own = functional.normalize(vectors, dim=-1)
        joined = [
            encoder.auxiliary.join(own[:, region], clips, weights[:, region])
            for region in range(own.shape[1])
        ]
        vectors = torch.stack(joined, 1)
    # Of nothing an adapter's bias still makes a vector.
    vectors = vectors * (weights.sum((2, 3, 4)) > 0)[..., None]
    return vectors[0].float().cpu().numpy()


def similarity_scores(
    tracks: Float[np.ndarray, "tracks dim"], supports: Float[np.ndarray, "supports dim"]
) -> Float[np.ndarray, " tracks"]:
    """How alike each track is to its query's supports: s = (1 + mean over supports of cos) / 2.

    The mean, and not the best: of clips that were retrieved without a label some are wrong, and
    one of them must not decide. Times the track's own score the order was worse on the quickstart's
    validation classes (AP50 29.6 and not 38.3): that score says that there is an object, not which.

    Args:
        tracks: of any length; zeros for a track without a pixel.
        supports: of any length, one at least.

    Returns:
        in [0, 1]; 0 for a track without a pixel.
    """
    lengths = np.linalg.norm(tracks, axis=1)
    directions = supports / np.linalg.norm(supports, axis=1, keepdims=True).clip(1e-12)
    cosines = (tracks @ directions.T).mean(1) / lengths.clip(1e-12)
    return np.where(lengths > 0, (1 + cosines.clip(-1, 1)) / 2, 0.0)
