"""Which pictures look the same, whatever their files are called and however they are encoded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

SAME_BITS = 3
"""Pictures whose hashes differ by no more bits, of 64, look the same."""


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits: whether each cell of an 8 × 8 grid is brighter than its right neighbour."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: Mapping[int, int], bits: int = SAME_BITS) -> list[tuple[int, int]]:
    """Pairs of keys whose 64-bit hashes differ by at most `bits` (3 at most) bits.

    One of four parts of 16 bits is then equal, so only such are compared.
    """
    assert bits <= 3
    found: set[tuple[int, int]] = set()
    for part in range(4):
        bucket: dict[int, list[int]] = {}
        for key, value in hashes.items():
            bucket.setdefault(value >> (16 * part) & 0xFFFF, []).append(key)
        for keys in bucket.values():
            values = np.array([hashes[key] for key in keys], np.uint64)
            for i, key in enumerate(keys[:-1]):
                apart = np.bitwise_count(values[i + 1 :] ^ values[i])
                found |= {(key, keys[i + 1 + j]) for j in np.flatnonzero(apart <= bits)}
    return sorted(found)
