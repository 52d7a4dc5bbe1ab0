"""The operators of the embedding job: decode a batch of clips, embed its frames.

Each runs in actors of Ray's with resources of its own; a block is a batch of clips.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from selfshot.config.addresses import is_address
from selfshot.data.corpus_manifest import Manifest, ManifestFile, read_rows, stored_clip
from selfshot.distributed.shards import Slice
from selfshot.distributed.sharing import Sharing


class Decode:
    """Actor: a slice of the manifest to frames.

    A clip that cannot be decoded is marked, never dropped. The rows are read here: a task for each
    slice would start a worker process for each core's share of them, for milliseconds of work.
    """

    def __init__(
        self,
        manifest: Manifest,
        max_bytes: int,
        sharing: Sharing | None = None,
        **settings: Any,
    ) -> None:
        """Args: a manifest whose files need not be named, and the settings of the decoder."""
        from selfshot.data.fetch import FETCH
        from selfshot.data.guard import GuardedDecoder

        self.confine, self.max_bytes = not is_address(manifest.root), max_bytes
        if sharing is not None:
            folder, root = sharing.local([manifest.folder, manifest.root])
            manifest = dataclasses.replace(manifest, folder=folder, root=root)
        self.manifest = manifest
        self.decoder = GuardedDecoder(decode=FETCH, memory_limit_bytes=max_bytes, **settings)

    def __call__(self, parts: pa.Table) -> dict[str, np.ndarray]:
        """Frames (zeros where there is an error), errors ("" where there is none), seconds.

        Of each clip also how many frames it has, `expected`, and how many of them were `decoded`.
        """
        (part,) = (as_slice(row) for row in parts.to_pylist())
        rows = read_rows(self.manifest, part.file, part.first, part.first + part.stop - part.start)
        root = self.manifest.root
        clips = [
            stored_clip(root, row, confine=self.confine, max_bytes=self.max_bytes)
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
            "row": np.arange(part.start, part.stop),
            "clip_id": rows["clip_id"].to_numpy().astype(object),
            "frames": frames,
            "error": np.asarray(errors, dtype=object),
            "decoded": counts[0],
            "expected": counts[1],
            "decode_s": seconds,
        }


def as_slice(row: dict[str, Any]) -> Slice:
    """The slice that became a row of a block by `dataclasses.asdict`."""
    return Slice(**{**row, "file": ManifestFile(**row["file"])})


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
