"""Reading the corpus embeddings: Parquet shards of clip_id, embedding, status, error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

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
        yield _read_shard(path)


def _read_shard(path: Path) -> tuple[list[str], Float[np.ndarray, "clips dim"]]:
    table = pq.read_table(path, columns=["clip_id", "embedding", "status"])
    table = table.filter(pc.equal(table["status"], EMBEDDED)).combine_chunks()
    column = table["embedding"].combine_chunks()
    dim = column.type.list_size
    return table["clip_id"].to_pylist(), column.flatten().to_numpy().reshape(-1, dim)


def count_embedded(folder: Path) -> tuple[int, int]:
    """How many clips were embedded, and the length of a vector; no vector is read.

    Raises:
        ValueError: no shards, no embedded clip, or shards of different dimensions.
    """
    clips, dims = 0, set()
    for path in shard_paths(folder):
        status = pq.read_table(path, columns=["status"])["status"]
        embedded = pc.sum(pc.equal(status, EMBEDDED)).as_py() or 0
        if embedded:
            clips += embedded
            dims.add(pq.read_schema(path).field("embedding").type.list_size)
    if not shard_paths(folder):
        raise ValueError(f"{folder} has no shard-*.parquet")
    if not clips:
        raise ValueError(f"{folder}: no clip was embedded")
    if len(dims) > 1:
        raise ValueError(f"{folder}: shards of dims {' and '.join(map(str, sorted(dims)))}")
    return clips, dims.pop()


def iterate_ids(folder: Path) -> Iterator[list[str]]:
    """Ids of the embedded clips, one shard at a time, without their vectors."""
    for path in shard_paths(folder):
        table = pq.read_table(path, columns=["clip_id", "status"])
        yield table.filter(pc.equal(table["status"], EMBEDDED))["clip_id"].to_pylist()


def iterate_blocks(
    folder: Path, rows: int, start: int = 0
) -> Iterator[tuple[int, list[str], Float[np.ndarray, "clips dim"]]]:
    """The embedded clips in blocks of `rows` (the last may be smaller), whatever the shards' size.

    A block's borders depend on `rows` and `start` alone, so a killed reader finds them again.
    Memory holds one block and one shard.

    Args:
        folder: of the shards.
        rows: clips of a block.
        start: number of the first row that is wanted; the vectors of shards before it are not
            read.

    Yields:
        number of the first row, ids and float32 vectors.
    """
    row, first = 0, start
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for path in shard_paths(folder):
        status = pq.read_table(path, columns=["status"])["status"]
        embedded = pc.sum(pc.equal(status, EMBEDDED)).as_py() or 0
        if row + embedded <= start:
            row += embedded
            continue
        some, vectors = _read_shard(path)
        skipped = max(start - row, 0)
        row += embedded
        ids += some[skipped:]
        parts.append(vectors[skipped:].astype(np.float32))
        while len(ids) >= rows:
            joined = np.concatenate(parts)
            yield first, ids[:rows], joined[:rows]
            ids, parts, first = ids[rows:], [joined[rows:]], first + rows
    if ids:
        yield first, ids, np.concatenate(parts)


def sample_embeddings(
    folder: Path, count: int, seed: int
) -> tuple[Int[np.ndarray, " sampled"], Float[np.ndarray, "sampled dim"]]:
    """`count` embedded clips drawn evenly over the corpus (all, where there are fewer).

    Returns:
        their row numbers in increasing order, and their vectors in float32.
    """
    clips, dim = count_embedded(folder)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(clips, min(count, clips), replace=False))
    vectors, start = np.empty((len(rows), dim), np.float32), 0
    for _, part in iterate_embeddings(folder):
        low, high = np.searchsorted(rows, (start, start + len(part)))
        vectors[low:high] = part[rows[low:high] - start]
        start += len(part)
    return rows, vectors


def read_quarantine(folder: Path) -> list[tuple[str, str]]:
    """Id and reason of every clip that could not be embedded."""
    rows: list[tuple[str, str]] = []
    for path in shard_paths(folder):
        table = pq.read_table(path, columns=["clip_id", "status", "error"])
        table = table.filter(pc.equal(table["status"], QUARANTINED))
        rows += zip(table["clip_id"].to_pylist(), table["error"].to_pylist(), strict=True)
    return rows
