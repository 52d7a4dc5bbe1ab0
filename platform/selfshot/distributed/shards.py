"""Parquet shards of the corpus embeddings: fixed slices of the manifest, whole or not there.

A shard says in its own metadata which rows of which manifest file it holds, under which settings,
and how many of them were quarantined. So a run that goes on reads only the shards' footers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfshot.data.corpus_manifest import Manifest, ManifestFile
from selfshot.data.storage import Storage
from selfshot.errors import UserError

EMBEDDED = "embedded"
QUARANTINED = "quarantined"
SHOWN_REASONS = 5
# Not one clip of so many could be embedded: storage is away, or the decoder is.
HOPELESS_CLIPS = 200

_KEY = b"selfshot"
_FOOTERS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of the whole list, which one shard holds.

    Attributes:
        name: of the shard's file.
        file: of the manifest, which holds them all.
        first: row of the first of them in that file.
        start, stop: rows counted over all files.
    """

    name: str
    file: ManifestFile
    first: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def identity(self) -> dict[str, Any]:
        """What a shard of it says of itself."""
        return {"manifest": self.file.sha256, "first": self.first, "rows": self.stop - self.start}

    def cut(self, rows: int) -> list[Slice]:
        """Slices of at most so many rows that make it up, in their order."""
        return [
            dataclasses.replace(
                self,
                first=self.first + start - self.start,
                start=start,
                stop=min(start + rows, self.stop),
            )
            for start in range(self.start, self.stop, rows)
        ]


def make_slices(manifest: Manifest, clips_per_shard: int) -> list[Slice]:
    """The slices of a manifest. None lies across two files, so files added later change none."""
    slices: list[Slice] = []
    start = 0
    for file in manifest.files:
        for first in range(0, file.rows, clips_per_shard):
            rows = min(clips_per_shard, file.rows - first)
            name = f"shard-{len(slices):05d}.parquet"
            slices.append(Slice(name, file, first, start + first, start + first + rows))
        start += file.rows
    return slices


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a shard that is there says of itself."""

    identity: dict[str, Any]
    settings: dict[str, Any]
    quarantined: int
    salvaged: int
    salvaged_frames: int


def read_finished(storage: Storage) -> dict[str, Finished]:
    """The shards that are there, by name; one that is damaged is as good as absent.

    pyarrow raises an `OSError` for a footer that it cannot parse; an outage is a `StorageError`.
    """
    names = [name for name in storage.sizes() if name.startswith("shard-")]

    def look(name: str) -> Finished | None:
        try:
            with storage.open(name) as file:
                metadata = pq.read_metadata(file)
            said = json.loads((metadata.metadata or {}).get(_KEY, b"null"))
        except (OSError, pa.ArrowException, ValueError):
            return None
        if said is None or said["slice"]["rows"] != metadata.num_rows:
            return None
        return Finished(said["slice"], said["settings"], **said["counts"])

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        looked = zip(names, pool.map(look, names), strict=True)
        return {name: finished for name, finished in looked if finished is not None}


def made_with(storage: Storage) -> dict[str, Any]:
    """The settings of a folder's shards: the encoder's digest, the frames' number and size."""
    finished = read_finished(storage)
    return next(iter(finished.values())).settings if finished else {}


class ShardWriter:
    """Rows come in any order; a shard is written once its last row is there.

    Memory holds the shards that are begun and not finished: blocks are sent out in the order of
    the list, so these are those of the blocks in flight. Of the others it keeps a number each.
    """

    def __init__(
        self,
        storage: Storage,
        slices: Sequence[Slice],
        settings: dict[str, Any],
        *,
        dtype: str,
        max_share: float,
        on_progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.storage, self.slices, self.settings = storage, slices, settings
        self.starts = np.array([part.start for part in slices], dtype=np.int64)
        self.total = slices[-1].stop
        self.dtype, self.max_share, self.on_progress = np.dtype(dtype), max_share, on_progress
        self.parts: dict[int, list[dict[str, np.ndarray]]] = {}
        self.finished: dict[int, int] = {}
        self.reasons: list[str] = []
        self.done = self.fresh = self.quarantined = self.fresh_quarantined = 0
        self.seconds: dict[str, float] = {"decode": 0.0, "model": 0.0, "write": 0.0}
        self.first_at: float | None = None
        self.last_at = self.spoke = time.monotonic()
        self.timed = 0

    def keep(self, index: int, quarantined: int) -> None:
        """A shard of an earlier run."""
        self.finished[index] = quarantined
        self.quarantined += quarantined
        self.done += self.slices[index].stop - self.slices[index].start

    def unfinished(self) -> list[int]:
        """Numbers of the slices without a shard."""
        return [index for index in range(len(self.slices)) if index not in self.finished]

    def forget_unfinished(self) -> None:
        """Drop the rows of shards that are not whole: their clips are embedded again."""
        for batches in self.parts.values():
            for batch in batches:
                bad = sum(1 for error in batch["error"] if error)
                self.quarantined -= bad
                self.fresh_quarantined -= bad
                self.done -= len(batch["row"])
                self.fresh -= len(batch["row"])
        self.parts.clear()

    def take(self, batch: dict[str, np.ndarray]) -> None:
        """Rows of a batch, of any slices."""
        now = time.monotonic()
        count = len(batch["row"])
        if self.first_at is None:  # The first batch came with the start of the actors.
            self.first_at = now
        else:
            self.timed += count
        self.last_at = now
        self.done += count
        self.fresh += count
        for name in ("decode", "model"):
            self.seconds[name] += float(batch[f"{name}_s"].sum())
        for clip_id, error in zip(batch["clip_id"], batch["error"], strict=True):
            if error:
                self.quarantined += 1
                self.fresh_quarantined += 1
                if len(self.reasons) < SHOWN_REASONS:
                    self.reasons.append(f"{clip_id}: {error}")
        indices = np.searchsorted(self.starts, batch["row"], side="right") - 1
        for index in np.unique(indices).tolist():
            self._add(index, {name: values[indices == index] for name, values in batch.items()})
        self._check_share()
        if self.on_progress is not None and (now - self.spoke > 1 or self.done == self.total):
            self.spoke = now
            self.on_progress(self._state())

    def _state(self) -> dict[str, Any]:
        rate = self.rate()
        return {
            "done": self.done,
            "clips": self.total,
            "quarantined": self.quarantined,
            "clips_per_s": rate,
            "eta_s": (self.total - self.done) / rate if rate else None,
        }

    def rate(self) -> float:
        """Clips a second since the first batch of this run was there."""
        if self.first_at is None or not self.timed:
            return 0.0
        return self.timed / max(self.last_at - self.first_at, 1e-6)

    def _add(self, index: int, batch: dict[str, np.ndarray]) -> None:
        part = self.slices[index]
        batches = self.parts.setdefault(index, [])
        batches.append(batch)
        if sum(len(one["row"]) for one in batches) == part.stop - part.start:
            began = time.monotonic()
            self.finished[index] = self._write(part, self.parts.pop(index))
            self.seconds["write"] += time.monotonic() - began

    def _write(self, part: Slice, batches: list[dict[str, np.ndarray]]) -> int:
        """Write a shard; returns how many of its clips were quarantined."""
        columns = {
            name: np.concatenate([one[name] for one in batches])
            for name in ("row", "clip_id", "embedding", "error", "decoded", "expected")
        }
        order = np.argsort(columns["row"], kind="stable")
        if not np.array_equal(columns["row"][order], np.arange(part.start, part.stop)):
            raise RuntimeError(f"{part.name}: a clip came twice, and another did not come")
        vectors = columns["embedding"][order].astype(self.dtype)
        errors = [error or None for error in columns["error"][order]]
        good = np.array([error is None for error in errors])
        # Not zeros, which look like vectors, and not null, which costs the column its fixed size.
        vectors[~good] = np.nan
        decoded, expected = (columns[name][order] for name in ("decoded", "expected"))
        salvaged = good & (decoded < expected)
        counts = {
            "quarantined": int((~good).sum()),
            "salvaged": int(salvaged.sum()),
            "salvaged_frames": int(decoded[salvaged].sum()),
        }
        table = pa.table(
            {
                "clip_id": pa.array(columns["clip_id"][order].tolist(), type=pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors.reshape(-1)), vectors.shape[1]
                ),
                "status": [QUARANTINED if error else EMBEDDED for error in errors],
                "error": pa.array(errors, type=pa.string()),
                "decoded_frames": decoded,
                "expected_frames": expected,
            }
        )
        said = {"slice": part.identity, "settings": self.settings, "counts": counts}
        table = table.replace_schema_metadata({_KEY: json.dumps(said)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.storage.write(part.name, memoryview(sink.getvalue()))
        return counts["quarantined"]

    def check_whole(self) -> dict[str, int]:
        """Every clip of the manifest is in a shard, embedded or quarantined.

        Returns:
            how many clips were salvaged, and how many frames of them.

        Raises:
            UserError: too many were quarantined.
            RuntimeError: the shards' own account does not add up.
        """
        self._check_share()
        there = read_finished(self.storage)
        missing = [part.name for part in self.slices if part.name not in there]
        rows = sum(one.identity["rows"] for one in there.values())
        bad = sum(one.quarantined for one in there.values())
        if missing or rows != self.total or bad != self.quarantined:
            raise RuntimeError(
                f"{rows} of {self.total} clips are in shards, {bad} of {self.quarantined} "
                f"quarantined among them; missing: {missing[:5]}"
            )
        return {
            name: sum(getattr(one, name) for one in there.values())
            for name in ("salvaged", "salvaged_frames")
        }

    def _check_share(self) -> None:
        """Stop early: the clips that are to come cannot lower the number of broken ones."""
        hopeless = self.fresh_quarantined == self.fresh >= HOPELESS_CLIPS
        if self.quarantined <= self.max_share * self.total and not hopeless:
            return
        # The same command must decode them again once the files are mended.
        self.remove(index for index, count in self.finished.items() if count)
        reasons = "The first:\n" + "\n".join(f"  {line}" for line in self.reasons)
        if hopeless:
            raise UserError(f"none of the first {self.fresh} clips can be embedded. {reasons}")
        # Of those that were tried, so a guess, and above what there is.
        wanted = (math.floor(10 * self.quarantined / self.done) + 1) / 10
        raise UserError(
            f"{self.quarantined} of {self.total} clips cannot be embedded, more than "
            f"embedding.max_quarantine_share: {self.max_share:g} allows; mend the files, or allow "
            f"more with --set embedding.max_quarantine_share={min(wanted, 1.0):g}. {reasons}",
            setting="embedding.max_quarantine_share",
        )

    def remove(self, indices: Iterable[int]) -> None:
        """Remove shards, so that their clips are embedded again."""
        for index in indices:
            self.storage.remove(self.slices[index].name)
