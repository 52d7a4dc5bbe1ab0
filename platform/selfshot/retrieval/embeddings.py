"""Reading the corpus embeddings: Parquet shards of clip_id, embedding, status, error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float

EMBEDDED = "embedded"
QUARANTINED = "quarantined"


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a corpus, in the order of its clips."""
    return sorted(folder.glob("shard-*.parquet"))


def read_embeddings(folder: Path) -> tuple[list[str], Float[np.ndarray, "clips dim"]]:
    """Ids and vectors of every clip that was embedded, in the order of the manifest.

    The array is filled shard by shard, so memory holds it once and one shard beside it.

    Raises:
        ValueError: no shards, no embedded clip, or shards of different dimensions.
    """
    shards = shard_paths(folder)
    if not shards:
        raise ValueError(f"{folder} has no shard-*.parquet")
    total, clip_ids, start = sum(pq.read_metadata(path).num_rows for path in shards), [], 0
    vectors: Float[np.ndarray, "clips dim"] | None = None
    for ids, part in iterate_embeddings(folder):
        if not len(ids):
            continue
        if vectors is None:
            vectors = np.empty((total, part.shape[1]), dtype=np.float32)
        if part.shape[1] != vectors.shape[1]:
            raise ValueError(f"{folder}: shards of dims {vectors.shape[1]} and {part.shape[1]}")
        vectors[start : start + len(ids)] = part
        start += len(ids)
        clip_ids += ids
    if vectors is None:
        raise ValueError(f"{folder}: no clip was embedded")
    return clip_ids, vectors[:start]


def iterate_embeddings(
    folder: Path,
) -> Iterator[tuple[list[str], Float[np.ndarray, "clips dim"]]]:
    """Ids and vectors of the embedded clips, one shard at a time."""
    for path in shard_paths(folder):
        table = pq.read_table(path, columns=["clip_id", "embedding", "status"])
        table = table.filter(pc.equal(table["status"], EMBEDDED)).combine_chunks()
        column = table["embedding"].combine_chunks()
        dim = column.type.list_size
        yield table["clip_id"].to_pylist(), column.flatten().to_numpy().reshape(-1, dim)


def read_quarantine(folder: Path) -> list[tuple[str, str]]:
    """Id and reason of every clip that could not be embedded."""
    rows: list[tuple[str, str]] = []
    for path in shard_paths(folder):
        table = pq.read_table(path, columns=["clip_id", "status", "error"])
        table = table.filter(pc.equal(table["status"], QUARANTINED))
        rows += zip(table["clip_id"].to_pylist(), table["error"].to_pylist(), strict=True)
    return rows
