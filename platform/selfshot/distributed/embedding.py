"""The corpus becomes vectors: Ray Data over decord and the encoder, in shards that resume.

    manifest → blocks of rows → decode (a guarded decord in each actor) → embed (one model in
    each actor) → here, where rows gather by shard → Parquet

A shard is a fixed slice of the manifest. It appears under its name when it is whole, so a killed
run goes on with the shards that are not there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfshot.config.errors import UserError
from selfshot.distributed.session import current_session, quieten, user_error_in
from selfshot.distributed.shards import Gathering, Slice, is_finished, make_slices
from selfshot.distributed.worker import write_atomically

COLUMNS = ("clip_id", "uri", "start_s", "end_s")
SUMMARY = "summary.json"
# Decoding takes most of the cores; the embedders of a CPU machine share what the scheduler gives.
DECODE_SHARE = 0.8


class Decode:
    """Actor: rows to frames. A clip that cannot be decoded is marked, never dropped."""

    def __init__(self, root: str, **settings: Any) -> None:
        from selfshot.data.guard import GuardedDecoder

        self.root = Path(root)
        self.decoder = GuardedDecoder(**settings)

    def __call__(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Frames (zeros where there is an error) and errors ("" where there is none)."""
        from selfshot.data.guard import Clip

        clips = [
            Clip(str(self.root / row["uri"]), row["start_s"], row["end_s"])
            for row in rows.to_pylist()
        ]
        frames = np.zeros((len(clips), *self.decoder.shape), dtype=np.uint8)
        errors = [""] * len(clips)
        for index, answer in enumerate(self.decoder.decode_many(clips)):
            if isinstance(answer, Exception):
                errors[index] = getattr(answer, "reason", None) or repr(answer)
            else:
                frames[index] = answer
        return {
            "row": rows["row"].to_numpy(),
            "frames": frames,
            "error": np.asarray(errors, dtype=object),
        }


class Embed:
    """Actor: frames to vectors, with a model that is loaded once."""

    def __init__(self, encoder: str, encoder_dir: str, frames: tuple[int, ...], threads: int):
        import torch

        from selfshot.training.loop import resolve

        torch.set_num_threads(threads)
        self.encoder = resolve(encoder)(Path(encoder_dir))
        # A batch whose every clip is broken must have vectors of the right length too.
        probe = np.asarray(self.encoder.embed(np.zeros((1, *frames), dtype=np.uint8)))
        self.dim = probe.shape[1]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Vectors (zeros where there is an error)."""
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
        return {"row": batch["row"], "embedding": vectors, "error": errors}


def embed_corpus(
    clips: Path,
    *,
    root: Path,
    encoder: str,
    encoder_dir: Path,
    out_dir: Path,
    num_frames: int,
    height: int,
    width: int,
    clips_per_batch: int,
    clips_per_shard: int,
    decode_timeout_s: float,
    max_quarantine_share: float,
    num_actors: int = 1,
    use_gpu: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Embed every clip of a manifest; called again after a kill, it embeds the rest.

    Args:
        clips: Parquet with clip_id, uri (relative to root), start_s and end_s (may be null).
        root: folder of the videos, which every node sees.
        encoder: dotted path of a function of `encoder_dir` that gives an object whose
            `embed(frames uint8 (B, T, H, W, 3))` gives float32 (B, d).
        encoder_dir: what the encoder loads.
        out_dir: receives summary.json and shard-00000.parquet … with clip_id, embedding (NaN
            for a clip that was set aside), status ("embedded", "quarantined") and error.
        num_frames: frames of a clip, sampled uniformly.
        height: of a frame.
        width: of a frame.
        clips_per_batch: clips that are decoded and embedded together.
        clips_per_shard: clips of a Parquet file.
        decode_timeout_s: a clip that takes longer is set aside.
        max_quarantine_share: more clips set aside than this share are an error.
        num_actors: copies of the encoder.
        use_gpu: one GPU for each of them.
        on_progress: called about once a second with done, clips, quarantined, clips_per_s, eta_s.

    Returns:
        what summary.json holds: clips, embedded, quarantined, clips_per_s, seconds (of this call).

    Raises:
        UserError: a manifest that is no manifest, or too many clips that cannot be decoded.
    """
    began = time.monotonic()
    out_dir.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(clips)
    slices = make_slices(out_dir, len(manifest), clips_per_shard)
    ids = manifest["clip_id"]
    unfinished = [part for part in slices if not is_finished(part, ids)]
    gathering = Gathering(slices, unfinished, ids, max_quarantine_share, on_progress)
    for part in slices:
        if part not in unfinished:
            gathering.countis_finished(part)
    if unfinished:
        rows = _rows(manifest, unfinished)
        frames = (num_frames, height, width, 3)
        decoding = {
            "root": str(root.resolve()),
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "time_limit_s": decode_timeout_s,
        }
        embedding = {
            "encoder": encoder,
            "encoder_dir": str(encoder_dir.resolve()),
            "frames": frames,
        }
        try:
            dataset = _pipeline(rows, clips_per_batch, decoding, embedding, num_actors, use_gpu)
            for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                gathering.take(batch)
        except Exception as error:
            mistake = user_error_in(error)
            if mistake is None:
                raise
            raise mistake from error
    gathering.check_whole()
    seconds = time.monotonic() - began
    fresh = sum(part.stop - part.start for part in unfinished)
    summary = {
        "clips": len(manifest),
        "embedded": len(manifest) - len(gathering.quarantined),
        "quarantined": len(gathering.quarantined),
        "clips_per_s": round(fresh / seconds, 2),
        "seconds": round(seconds, 3),
    }
    write_atomically(out_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _pipeline(
    rows: list[pa.Table],
    clips_per_batch: int,
    decoding: Mapping[str, Any],
    embedding: Mapping[str, Any],
    num_actors: int,
    use_gpu: bool,
) -> Any:
    """The Ray Data pipeline; a block is a batch, so nothing is cut or joined on the way."""
    import ray.data

    session = current_session()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    quieten()  # Importing ray.data made its loggers talk again.
    blocks = [
        table.slice(start, clips_per_batch)
        for table in rows
        for start in range(0, len(table), clips_per_batch)
    ]
    decoders = max(1, min(int(session.num_cpus), len(blocks)))
    embedders = max(1, min(num_actors, len(blocks)))
    cores = len(os.sched_getaffinity(0)) if session.embedded else int(session.num_cpus)
    threads = max(1, cores // embedders)
    share = {"decode": DECODE_SHARE / decoders, "embed": (1 - DECODE_SHARE) / embedders}
    cpus = {name: int(part * session.num_cpus * 1000) / 1000 for name, part in share.items()}
    decoded = ray.data.from_arrow(blocks).map_batches(
        Decode,
        fn_constructor_kwargs=dict(decoding),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=decoders),
        num_cpus=min(1.0, cpus["decode"]),
    )
    return decoded.map_batches(
        Embed,
        fn_constructor_kwargs={**embedding, "threads": threads},
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=embedders),
        num_cpus=min(1.0, cpus["embed"]),
        num_gpus=1 if use_gpu else None,
    )


def _read_manifest(clips: Path) -> pa.Table:
    try:
        table = pq.read_table(clips)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{clips}: cannot be read as a Parquet manifest of clips ({error})"
        ) from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{clips}: columns {missing} are missing (needed: {list(COLUMNS)})")
    if not len(table):
        raise UserError(f"{clips}: it lists no clip; there is nothing to embed")
    ids = table["clip_id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise UserError(f"{clips}: {len(ids) - len(set(ids))} clip ids come more than once")
    for uri in table["uri"].to_pylist():
        path = PurePosixPath(uri or "")
        if not uri or path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{clips}: uri {uri!r} is not allowed (a path relative to the corpus, inside it)"
            )
    return table.select(list(COLUMNS))


def _rows(manifest: pa.Table, slices: list[Slice]) -> list[pa.Table]:
    """The manifest's part of each slice, with the number of each row."""
    tables = []
    for part in slices:
        table = manifest.slice(part.start, part.stop - part.start).combine_chunks()
        numbers = pa.array(range(part.start, part.stop), type=pa.int64())
        tables.append(table.append_column("row", numbers))
    return tables
