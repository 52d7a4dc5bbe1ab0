"""The operators of the embedding job: read rows, decode them, embed the frames.

Each runs in Ray's workers with resources of its own; a block is a batch of clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from selfshot.data.corpus_manifest import Manifest, place_of, read_rows
from selfshot.distributed.shards import Slice
from selfshot.distributed.sharing import Sharing


class SliceSource(Datasource):
    """Rows of the manifest with their numbers: a task reads those of one slice."""

    def __init__(
        self, manifest: Manifest, slices: Sequence[Slice], sharing: Sharing | None = None
    ) -> None:
        super().__init__()
        self.manifest, self.slices, self.sharing = manifest, slices, sharing

    def estimate_inmemory_data_size(self) -> int:
        """About 150 bytes a row."""
        return 150 * sum(part.stop - part.start for part in self.slices)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """One task for each slice, in their order."""
        return [
            ReadTask(
                _reading(self.manifest, part, self.sharing),
                BlockMetadata(
                    num_rows=part.stop - part.start,
                    size_bytes=150 * (part.stop - part.start),
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for part in self.slices
        ]


def _reading(
    manifest: Manifest, part: Slice, sharing: Sharing | None
) -> Callable[[], Iterator[pa.Table]]:
    folder, root = manifest.folder, manifest.root

    def read() -> Iterator[pa.Table]:
        here = folder if sharing is None else sharing.local(folder)
        # Of the other files it need not know, and there may be many.
        alone = Manifest(here, (part.file,), root)
        count = part.stop - part.start
        table = read_rows(alone, part.file, part.first, part.first + count)
        yield table.append_column("row", pa.array(range(part.start, part.stop), type=pa.int64()))

    return read


class Decode:
    """Actor: rows to frames. A clip that cannot be decoded is marked, never dropped."""

    def __init__(
        self,
        root: str,
        confine: bool,
        max_bytes: int,
        sharing: Sharing | None = None,
        **settings: Any,
    ) -> None:
        from selfshot.data.fetch import FETCH
        from selfshot.data.guard import GuardedDecoder

        root = root if sharing is None else sharing.local(root)
        self.root, self.confine, self.max_bytes = root, confine, max_bytes
        self.decoder = GuardedDecoder(decode=FETCH, memory_limit_bytes=max_bytes, **settings)

    def __call__(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Frames (zeros where there is an error), errors ("" where there is none), seconds.

        Of each clip also how many frames it has, `expected`, and how many of them were `decoded`.
        """
        from selfshot.data.guard import StoredClip

        clips = [
            StoredClip(
                place_of(self.root, row["uri"]),
                row["start_s"],
                row["end_s"],
                offset=row["offset"],
                length=None if row["offset"] is None else row["bytes"],
                within=self.root if self.confine else None,
                max_bytes=self.max_bytes,
            )
            for row in rows.to_pylist()
        ]
        frames = np.zeros((len(clips), *self.decoder.shape), dtype=np.uint8)
        errors = [""] * len(clips)
        seconds = np.zeros(len(clips))
        counts = np.zeros((2, len(clips)), dtype=np.int32)
        before = time.perf_counter()
        for index, answer in enumerate(self.decoder.decode_many(clips)):
            if isinstance(answer, Exception):
                errors[index] = getattr(answer, "reason", None) or repr(answer)
            else:
                frames[index] = answer.frames
                counts[:, index] = answer.decoded, answer.expected
            now = time.perf_counter()
            seconds[index], before = now - before, now
        return {
            "row": rows["row"].to_numpy(),
            "clip_id": rows["clip_id"].to_numpy().astype(object),
            "frames": frames,
            "error": np.asarray(errors, dtype=object),
            "decoded": counts[0],
            "expected": counts[1],
            "decode_s": seconds,
        }


class Embed:
    """Actor: frames to vectors, with a model that came through the object store once."""

    def __init__(self, encoder: Any, frames: tuple[int, ...], threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.encoder = ray.get(encoder)
        prepare = getattr(self.encoder, "prepare", None)
        if prepare is not None:
            prepare(device)
        # A batch whose every clip is broken must have vectors of the right length too.
        probe = np.asarray(self.encoder.embed(np.zeros((1, *frames), dtype=np.uint8)))
        self.dim = probe.shape[1]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Vectors (zeros where there is an error)."""
        began = time.perf_counter()
        errors = batch["error"].copy()
        good = np.flatnonzero(errors == "")
        vectors = np.zeros((len(errors), self.dim), dtype=np.float32)
        if len(good):
            frames = batch["frames"]
            whole = len(good) == len(frames)
            vectors[good] = self.encoder.embed(frames if whole else frames[good])
        wrong = ~np.isfinite(vectors).all(axis=1)
        errors[wrong] = "the encoder gave a vector that is not finite"
        vectors[wrong] = 0
        share = (time.perf_counter() - began) / max(len(errors), 1)
        return {
            "row": batch["row"],
            "clip_id": batch["clip_id"],
            "embedding": vectors,
            "error": errors,
            "decoded": batch["decoded"],
            "expected": batch["expected"],
            "decode_s": batch["decode_s"],
            "model_s": np.full(len(errors), share),
        }
