"""Parquet shards of the corpus embeddings: fixed slices of the manifest, whole or not there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from selfshot.config.errors import UserError

EMBEDDED = "embedded"
QUARANTINED = "quarantined"
SHOWN_REASONS = 5


@dataclass(frozen=True)
class Slice:
    """The rows [start, stop) of the manifest, which one shard holds."""

    path: Path
    start: int
    stop: int


def make_slices(out_dir: Path, total: int, clips_per_shard: int) -> list[Slice]:
    """The slices of a manifest of `total` rows."""
    starts = range(0, total, clips_per_shard)
    return [
        Slice(out_dir / f"shard-{index:05d}.parquet", start, min(total, start + clips_per_shard))
        for index, start in enumerate(starts)
    ]


def is_finished(part: Slice, ids: pa.ChunkedArray) -> bool:
    """Whether the shard is there and holds just these clips."""
    if not part.path.exists():
        return False
    try:
        found = pq.read_table(part.path, columns=["clip_id"])["clip_id"]
    except (OSError, pa.ArrowException):
        return False
    wanted = ids.slice(part.start, part.stop - part.start)
    return bool(found.to_pylist() == wanted.to_pylist())


class Gathering:
    """Rows come in any order; a shard is written once its last row is there."""

    def __init__(
        self,
        slices: list[Slice],
        unfinished: list[Slice],
        ids: pa.ChunkedArray,
        max_share: float,
        on_progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.all_slices, self.slices = slices, unfinished
        self.starts = np.array([part.start for part in unfinished], dtype=np.int64)
        self.ids, self.max_share, self.total = ids, max_share, len(ids)
        self.on_progress = on_progress
        self.parts: dict[int, list[dict[str, np.ndarray]]] = {}
        self.counts: dict[int, int] = {}
        self.quarantined: list[tuple[int, str]] = []
        self.done, self.fresh = 0, 0
        self.began: float | None = None
        self.spoke = time.monotonic()

    def countis_finished(self, part: Slice) -> None:
        """A shard of an earlier call."""
        errors = pq.read_table(part.path, columns=["error"])["error"].to_pylist()
        bad = [(part.start + row, error) for row, error in enumerate(errors) if error is not None]
        self.quarantined += bad
        self.done += part.stop - part.start

    def take(self, batch: dict[str, np.ndarray]) -> None:
        """Rows of a batch; they all belong to one slice."""
        index = int(np.searchsorted(self.starts, batch["row"][0], side="right")) - 1
        self.parts.setdefault(index, []).append(batch)
        self.counts[index] = self.counts.get(index, 0) + len(batch["row"])
        self.done += len(batch["row"])
        now = time.monotonic()
        if self.began is None:  # The first batch came with the start of the actors.
            self.began = now
        else:
            self.fresh += len(batch["row"])
        for row, error in zip(batch["row"].tolist(), batch["error"].tolist(), strict=True):
            if error:
                self.quarantined.append((row, error))
        part = self.slices[index]
        if self.counts[index] == part.stop - part.start:
            self._write(part, self.parts.pop(index))
        self._check_share()
        if self.on_progress is not None and (now - self.spoke > 1 or self.done == self.total):
            self.spoke = now
            rate = self.fresh / max(now - self.began, 1e-6)
            self.on_progress(
                {
                    "done": self.done,
                    "clips": self.total,
                    "quarantined": len(self.quarantined),
                    "clips_per_s": rate,
                    "eta_s": (self.total - self.done) / rate if rate else None,
                }
            )

    def check_whole(self) -> None:
        """Every clip of the manifest is in a shard, embedded or set aside."""
        self._check_share()
        missing = [part.path.name for part in self.all_slices if not part.path.exists()]
        there = [part.path for part in self.all_slices if part.path.exists()]
        rows = sum(pq.read_metadata(path).num_rows for path in there)
        if missing or rows != self.total:
            raise RuntimeError(f"{rows} of {self.total} clips are in shards; missing: {missing}")

    def _write(self, part: Slice, batches: list[dict[str, np.ndarray]]) -> None:
        order = np.argsort(np.concatenate([batch["row"] for batch in batches]))
        vectors: Float[np.ndarray, "rows dim"]
        vectors = np.concatenate([batch["embedding"] for batch in batches])[order]
        errors = np.concatenate([batch["error"] for batch in batches])[order].tolist()
        # Not null: Arrow cannot read back what Parquet makes of null lists of a fixed size.
        vectors[[bool(error) for error in errors]] = np.nan
        table = pa.table(
            {
                "clip_id": self.ids.slice(part.start, part.stop - part.start).combine_chunks(),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors.reshape(-1)), vectors.shape[1]
                ),
                "status": [QUARANTINED if error else EMBEDDED for error in errors],
                "error": pa.array([error or None for error in errors], type=pa.string()),
            }
        )
        temporary = part.path.with_name(f".{part.path.name}.{os.getpid()}")
        pq.write_table(table, temporary)
        temporary.rename(part.path)

    def _check_share(self) -> None:
        """Stop early: the clips that are to come cannot lower the number of broken ones."""
        count = len(self.quarantined)
        if count <= self.max_share * self.total:
            return
        shown = sorted(self.quarantined)[:SHOWN_REASONS]
        lines = [f"  {self.ids[row].as_py()}: {error}" for row, error in shown]
        # The same command must decode them again once the files are mended.
        for row in {row for row, _ in self.quarantined}:
            for part in self.all_slices:
                if part.start <= row < part.stop:
                    part.path.unlink(missing_ok=True)
        raise UserError(
            f"{count} of {self.total} clips cannot be embedded, more than "
            f"embedding.max_quarantine_share: {self.max_share:g} allows; mend the files or raise "
            "the share. The first:\n" + "\n".join(lines)
        )
