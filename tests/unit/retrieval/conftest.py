"""Folders of embeddings, as the embedding job leaves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WriteShards = Callable[..., list[str]]


def clustered(clips: int, dim: int, seed: int) -> np.ndarray:
    """Vectors in groups of about seven, in float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(clips // 7, 1), dim))
    vectors = centres[rng.integers(len(centres), size=clips)] + 0.4 * rng.normal(size=(clips, dim))
    return vectors.astype(np.float32)


@pytest.fixture
def write_shards() -> WriteShards:
    def write(
        folder: Path,
        vectors: np.ndarray,
        sizes: Sequence[int],
        *,
        bad: Sequence[int] = (),
        ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Shards of these sizes in turn; `bad` rows are quarantined. Returns the ids embedded."""
        folder.mkdir(parents=True, exist_ok=True)
        ids = ids or [f"clip-{row:05d}" for row in range(len(vectors))]
        start = number = 0
        while start < len(vectors):
            rows = range(start, min(start + sizes[number % len(sizes)], len(vectors)))
            flat = pa.array(vectors[rows.start : rows.stop].reshape(-1))
            broken = [row in bad for row in rows]
            columns = {
                "clip_id": [ids[row] for row in rows],
                "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
                "status": ["quarantined" if flag else "embedded" for flag in broken],
                "error": ["broken" if flag else None for flag in broken],
            }
            pq.write_table(pa.table(columns), folder / f"shard-{number:05d}.parquet")
            start, number = rows.stop, number + 1
        return [name for row, name in enumerate(ids) if row not in bad]

    return write
