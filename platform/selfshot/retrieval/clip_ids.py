"""The ids of an index's rows: names, look-up, and subsets that are nested in each other.

On disk they are an Arrow file that is mapped into memory and two sorted arrays beside it, so that
a hundred million ids are opened at once and take no Python object each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped

IDS_FILE = "clip_ids.arrow"
HASHES_FILE = "clip_hashes.npy"
ROWS_FILE = "clip_rows.npy"
_SCHEMA = pa.schema([("clip_id", pa.string())])
_NAMED = 3  # ids that a message names


class ClipIds:
    """Ids by row and rows by id.

    Args:
        ids: the Arrow column.
        hashes: 64 bits of each id, sorted.
        rows: the row of each hash.
    """

    def __init__(
        self,
        ids: pa.ChunkedArray,
        hashes: Shaped[np.ndarray, " clips"],
        rows: Int[np.ndarray, " clips"],
    ) -> None:
        self._ids, self._hashes, self._rows = ids, hashes, rows
        self._starts = np.cumsum([0, *(len(chunk) for chunk in ids.chunks)])

    @classmethod
    def of(cls, ids: Sequence[str]) -> ClipIds:
        """Ids in memory.

        Raises:
            ValueError: one comes more than once.
        """
        made = cls(pa.chunked_array([pa.array(ids, pa.string())]), *_sorted_hashes([ids]))
        made._check_unique()
        return made

    @classmethod
    def load(cls, folder: Path) -> ClipIds:
        """What `write_ids` wrote; mapped, not read."""
        table = pa.ipc.open_file(pa.memory_map(str(folder / IDS_FILE))).read_all()
        hashes = np.load(folder / HASHES_FILE, mmap_mode="r", allow_pickle=False)
        rows = np.load(folder / ROWS_FILE, mmap_mode="r", allow_pickle=False)
        return cls(table["clip_id"], hashes, rows)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._find(clip_id) is not None

    def __iter__(self) -> Iterator[str]:
        for chunk in self._ids.chunks:
            yield from chunk.to_pylist()

    def at(self, rows: Int[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Ids of some rows, in an array of the same shape."""
        flat = np.asarray(rows).reshape(-1)
        chunks = np.searchsorted(self._starts, flat, side="right") - 1
        named = np.empty(len(flat), dtype=object)
        for place, (chunk, row) in enumerate(zip(chunks.tolist(), flat.tolist(), strict=True)):
            named[place] = self._ids.chunk(chunk)[row - int(self._starts[chunk])].as_py()
        return named.reshape(np.shape(rows))

    def rows(self, clip_ids: Sequence[str]) -> Int[np.ndarray, " clips"]:
        """Rows of some ids, in their order.

        Raises:
            ValueError: an id is not there.
        """
        found = [self._find(clip_id) for clip_id in clip_ids]
        unknown = [name for name, row in zip(clip_ids, found, strict=True) if row is None]
        if unknown:
            raise ValueError(f"{len(unknown)} clips are not in the index, as {unknown[:_NAMED]}")
        return np.array(found, dtype=np.int64)

    def share(self, share: float, seed: int) -> Int[np.ndarray, " chosen"]:
        """Rows of a random subset that holds about `share` of the clips, in increasing order.

        Whether a clip is in it depends on its id, the seed and the share alone: a subset holds
        every smaller one of the same seed, and other clips in the corpus do not matter.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share: {share} is not between 0 and 1")
        chosen = _place(self._hashes, seed) < share if share < 1 else np.ones(len(self), bool)
        return np.sort(np.asarray(self._rows)[chosen])

    def _find(self, clip_id: str) -> int | None:
        wanted = _hash(clip_id)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._rows[place])
            if self.at(np.array([row]))[0] == clip_id:
                return row
            place += 1
        return None

    def _check_unique(self) -> None:
        """Raises: ValueError if an id comes more than once."""
        alike = np.flatnonzero(np.asarray(self._hashes[1:]) == np.asarray(self._hashes[:-1]))
        groups = {int(self._hashes[place]) for place in alike.tolist()}
        twice: list[str] = []
        for group in groups:
            low, high = np.searchsorted(self._hashes, np.uint64(group), "left"), None
            high = np.searchsorted(self._hashes, np.uint64(group), "right")
            names, counts = np.unique(self.at(self._rows[low:high]), return_counts=True)
            twice += names[counts > 1].tolist()
        if twice:
            raise ValueError(
                f"{len(twice)} clip ids come more than once, as {sorted(twice)[:_NAMED]}"
            )


def write_ids(folder: Path, parts: Iterable[Sequence[str]]) -> ClipIds:
    """Write ids that come in parts, and open them.

    Memory holds 16 bytes an id for the sorting, whatever the ids' length.

    Raises:
        ValueError: one comes more than once.
    """

    def written() -> Iterator[Sequence[str]]:
        with pa.OSFile(str(folder / IDS_FILE), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as out:
            for part in parts:
                if len(part):
                    out.write_batch(pa.record_batch([pa.array(part, pa.string())], _SCHEMA))
                    yield part

    hashes, rows = _sorted_hashes(written())
    np.save(folder / HASHES_FILE, hashes)
    np.save(folder / ROWS_FILE, rows)
    ids = ClipIds.load(folder)
    ids._check_unique()
    return ids


def _sorted_hashes(parts: Iterable[Sequence[str]]) -> tuple[Any, Any]:
    arrays = [np.fromiter(map(_hash, part), np.uint64, len(part)) for part in parts]
    hashes = np.concatenate(arrays) if arrays else np.empty(0, np.uint64)
    rows = np.argsort(hashes, kind="stable").astype(np.int64)
    return hashes[rows], rows


def _hash(clip_id: str) -> np.uint64:
    digest = hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))


def _place(hashes: Shaped[np.ndarray, " clips"], seed: int) -> Shaped[np.ndarray, " clips"]:
    """A number in [0, 1) for each hash, another one for each seed.

    The bits of seed and hash are mixed by the finishing steps of SplitMix64, which map every
    64-bit number to another one.
    """
    key = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big")
    mixed = np.asarray(hashes) ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
