"""The corpus becomes vectors: Ray Data over a decoder and the encoder, in shards that resume.

    manifest → slices of a batch → read and decode (a guarded decoder in each actor)
             → embed (one model in each actor) → here, where rows gather by shard → Parquet

A shard is a fixed slice of the manifest. It appears under its name when it is whole, so a killed
run goes on with the shards that are not there.

Shards are written here, by the driver, and not by the workers. One writer cannot race with its
own retry on another node, so a clip cannot come twice. A folder that only this machine sees is
enough. And a vector is a thousandth of its frames: what passes through here is small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfshot.config.addresses import is_address
from selfshot.data.corpus_manifest import Manifest, check_manifest, read_rows
from selfshot.data.storage import Storage
from selfshot.data.video import Decoder
from selfshot.distributed.session import Session, current_session, quieten
from selfshot.distributed.shards import ShardWriter, Slice, make_slices, read_finished
from selfshot.distributed.sharing import Sharing
from selfshot.errors import UserError, reported_error

SUMMARY = "summary.json"
# Of the cores that Ray counts, the decoders take this share in its books. What they use is decided
# by the operating system; what is left over in the books lets the actors of a lost node start
# again on those that remain.
BOOKED_SHARE = 0.45
# With GPUs for the network the cores are the decoders'.
GPU_BOOKED_SHARE = 0.9
# What actors may take to start and to load the encoder.
START_S = 600.0
SHOWN_CLIPS = 64


@dataclasses.dataclass(frozen=True)
class EmbeddingJob:
    """How a corpus is embedded.

    Attributes:
        num_frames: frames of a clip, sampled uniformly.
        height, width: of a frame.
        clips_per_shard: clips of a Parquet file.
        decode_timeout_s: a clip that takes longer is quarantined.
        decode_memory_mb: a clip whose decoder wants more is quarantined.
        max_quarantine_share: more clips quarantined than this share are an error.
        clips_per_batch: clips that are decoded and embedded together.
        shards_at_once: shards of one pipeline; those after it are begun when it has ended, so
            this bounds what Ray and this process hold of a long manifest.
        decoder: `decord`, and `pyav` for what it cannot read; or `pyav` alone.
        stall_timeout_s: without progress for so long, the pipeline is built anew; None: 600 s,
            and twice what a batch takes whose every clip reaches `decode_timeout_s`.
        dtype: of the vectors, `float32` or `float16`.
        concurrency: processes that decode, and copies of the encoder; None: one a core, and of
            the encoder one a GPU if there are to be any.
        use_gpu: one GPU for each of them.
        autoscales: wait for a GPU if the cluster has none, instead of refusing.
        max_failures: how often the pipeline is built anew, with no shard finished in between, after
            it has hung or after an error of the cluster that Ray did not mend by itself.
        retry_quarantined: embed the shards again that hold quarantined clips.
    """

    num_frames: int
    height: int
    width: int
    clips_per_shard: int
    decode_timeout_s: float
    decode_memory_mb: int
    max_quarantine_share: float
    clips_per_batch: int = 32
    shards_at_once: int = 1024
    decoder: Decoder = "decord"
    stall_timeout_s: float | None = None
    dtype: str = "float32"
    concurrency: int | None = None
    use_gpu: bool = False
    autoscales: bool = False
    max_failures: int = 2
    retry_quarantined: bool = False

    @property
    def limit_s(self) -> float:
        """Without progress for so long, the pipeline is built anew."""
        return self.stall_timeout_s or START_S + 2 * self.clips_per_batch * self.decode_timeout_s


def embed_corpus(
    manifest: Manifest,
    encoder: Any,
    job: EmbeddingJob,
    *,
    settings: dict[str, Any],
    out: str | Path,
    sharing: Sharing | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Embed every clip of a manifest; called again after a kill, it embeds the rest.

    Args:
        manifest: what to embed; with a root that is a folder, every node must see it.
        encoder: an object whose `embed(frames uint8 (B, T, H, W, 3))` gives float32 (B, d), and
            whose `prepare(device)`, if it has one, is called first. It is put into Ray's object
            store once, so only this process needs the files that it was read from.
        job: how.
        settings: what the vectors depend on beside `job`, such as the encoder's name and digest;
            shards of other settings are refused.
        out: folder, or its address: receives summary.json and shard-00000.parquet … with clip_id,
            embedding (NaN for a clip that was quarantined), status ("embedded", "quarantined") and
            error; decoded_frames and expected_frames, of the clip itself.
        sharing: fetches a manifest and videos that lie in a run's output folder to nodes that have
            not got them.
        on_progress: called about once a second with done, clips, quarantined, clips_per_s, eta_s.
        on_message: receives what is worth a line.

    Returns:
        what summary.json holds: clips, embedded, quarantined, salvaged (embedded clips of which a
        part of the frames was decoded) and salvaged_frames (those), clips_per_s (from the first
        batch on, of this call), seconds (of this call), start_s (of them, until the first batch),
        networks (the encoder's own account of what it was made of).

    Raises:
        UserError: a manifest that is no manifest, shards of other settings in `out`, too many
            clips that cannot be decoded, or a pipeline that hangs time after time.
    """
    import ray.data
    import ray.exceptions

    began = time.monotonic()
    check_manifest(manifest)
    storage = Storage(out, "--out")
    names = ("num_frames", "height", "width", "decoder", "dtype", "clips_per_shard")
    settings = {**settings, **{name: getattr(job, name) for name in names}}
    slices = make_slices(manifest, job.clips_per_shard)
    writer = ShardWriter(
        storage,
        slices,
        settings,
        dtype=job.dtype,
        max_share=job.max_quarantine_share,
        on_progress=on_progress,
    )
    _take_stock(writer, storage, job.retry_quarantined, on_message)
    folder, root = (
        one if is_address(one) else str(Path(one).resolve())
        for one in (manifest.folder, manifest.root)
    )
    decoding = {
        # Of the files it need not know, and there may be many.
        "manifest": Manifest(folder, (), root),
        "sharing": sharing,
        "decoder": job.decoder,
        "num_frames": job.num_frames,
        "height": job.height,
        "width": job.width,
        "time_limit_s": job.decode_timeout_s,
        "max_bytes": job.decode_memory_mb * 10**6,
    }
    failures = 0
    stuck: list[Slice] = []
    while unfinished := writer.unfinished():
        session = current_session()
        if job.use_gpu and not session.num_gpus and not job.autoscales:
            raise UserError(
                "compute.use_gpu: true, but Ray sees no GPU; set it to false, or join a cluster "
                "that has some",
                setting="compute.use_gpu",
            )
        batches = [
            batch
            for index in unfinished[: job.shards_at_once]
            for batch in slices[index].cut(job.clips_per_batch)
        ]
        sizes = _pool_sizes(session, len(batches), job)
        embedding = {
            "encoder": ray.put(encoder),
            "frames": (job.num_frames, job.height, job.width, 3),
            "threads": sizes["threads"],
            "device": "cuda" if job.use_gpu else "cpu",
        }
        dataset = _pipeline(batches, decoding, embedding, sizes, job.use_gpu)
        dataset.context.execution_no_progress_timeout_s = job.limit_s
        try:
            # Left open, the pipeline would go on after Ray's end, and start another Ray.
            with contextlib.closing(_stream(dataset)) as stream:
                for batch in stream:
                    writer.take(batch)
        except Exception as error:
            reported = reported_error(error)
            if reported is not None:
                raise reported from error
            missing = _missing(writer, batches)
            writer.forget_unfinished()
            stalled = isinstance(error, ray.data.exceptions.ExecutionTimeoutError)
            if not stalled and not _is_of_the_cluster(error):
                raise
            if stalled and job.use_gpu and job.autoscales and not current_session().num_gpus:
                on_message("there is still no GPU; waiting for one")
                continue
            # What is not finished time after time is what the pipeline hangs on.
            stuck = [batch for batch in stuck if batch in missing] or missing
            what = f"no batch has finished for {job.limit_s:g} s" if stalled else _first_line(error)
            failures = failures + 1 if len(writer.unfinished()) == len(unfinished) else 1
            if failures <= job.max_failures:
                on_message(
                    f"{what}; not finished: {_clips_of(manifest, stuck, 5)}; "
                    "going on from the finished shards"
                )
                continue
            if not stalled:
                raise
            raise UserError(
                f"{what}, {failures} times without a new shard. Not finished: "
                f"{_clips_of(manifest, stuck, SHOWN_CLIPS)}. Look for them in the logs of Ray's "
                "workers; leave them out of the manifest, or let each clip take longer with "
                f"--set embedding.decode_timeout_s={2 * job.decode_timeout_s:g}",
                setting="embedding.decode_timeout_s",
            ) from error
        if writer.parts or len(writer.unfinished()) > max(0, len(unfinished) - job.shards_at_once):
            raise RuntimeError("the pipeline ended, and not every clip came out of it")
    salvaged = writer.check_whole()
    seconds = time.monotonic() - began
    start_s = seconds if writer.first_at is None else writer.first_at - began
    summary = {
        "clips": manifest.clips,
        "embedded": manifest.clips - writer.quarantined,
        "quarantined": writer.quarantined,
        **salvaged,
        "clips_per_s": round(writer.rate() or writer.fresh / seconds, 2),
        "seconds": round(seconds, 3),
        "start_s": round(start_s, 3),
        "networks": getattr(encoder, "networks", []),
        "spent_s": {name: round(value, 3) for name, value in writer.seconds.items()},
    }
    storage.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _take_stock(
    writer: ShardWriter, storage: Storage, retry: bool, on_message: Callable[[str], None]
) -> None:
    """Find the shards of an earlier run, and remove what is of no use.

    Raises:
        UserError: the folder holds shards that were made with other settings.
    """
    storage.remove_partial()
    there = read_finished(storage)
    for name, finished in there.items():
        for key, value in finished.settings.items():
            if value != writer.settings.get(key):
                raise UserError(
                    f"{storage.address}: {name} was made with {key} {value!r}, and this run has "
                    f"{writer.settings.get(key)!r}; choose another folder, or remove the shards"
                )
    known = {part.name for part in writer.slices}
    for name in storage.sizes():
        if name.startswith("shard-") and name not in known:
            storage.remove(name)  # The manifest was longer once.
    again = 0
    for index, part in enumerate(writer.slices):
        found = there.get(part.name)
        if found is None or found.identity != part.identity:
            continue
        if retry and found.quarantined:
            again += 1
            continue
        writer.keep(index, found.quarantined)
    if there:
        on_message(
            f"{len(writer.finished)} of {len(writer.slices)} shards are there"
            + (f"; {again} with quarantined clips are made again" if again else "")
        )


def _pool_sizes(session: Session, batches: int, job: EmbeddingJob) -> dict[str, int]:
    """Actors of each kind, and threads of each embedder."""
    cores = max(1, int(session.num_cpus))
    copies = job.concurrency or (int(session.num_gpus) if job.use_gpu else cores)
    copies = max(1, min(copies, batches))
    return {
        "decoders": max(1, min(job.concurrency or cores, batches)),
        "embedders": copies,
        "threads": max(1, cores // copies),
    }


def _pipeline(
    batches: Sequence[Slice],
    decoding: dict[str, Any],
    embedding: dict[str, Any],
    sizes: dict[str, int],
    use_gpu: bool,
) -> Any:
    """A Ray Data set of row, clip_id, embedding, error and times; nothing is started yet.

    Args:
        batches: what to embed, a block each.
        decoding: arguments of `Decode`.
        embedding: arguments of `Embed`.
        sizes: see `_pool_sizes`.
        use_gpu: one GPU for each embedder.
    """
    import ray.data

    from selfshot.distributed.operators import Decode, Embed

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray's own exception in its place would not say, across processes, what caused it.
    context.raise_original_map_exception = True
    quieten()  # Importing ray.data made its loggers talk again.
    share = GPU_BOOKED_SHARE if use_gpu else BOOKED_SHARE
    booked = share * current_session().num_cpus / sizes["decoders"]
    # Blocks of this process, not of read tasks: each of those starts a worker process, and wants
    # some of the core that a node of one core has given to its decoder.
    parts = ray.data.from_items(
        [dataclasses.asdict(batch) for batch in batches], override_num_blocks=len(batches)
    )
    decoded = parts.map_batches(
        Decode,
        fn_constructor_kwargs=decoding,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=sizes["decoders"]),
        num_cpus=min(share if use_gpu else 1.0, int(1000 * booked) / 1000),
    )
    return decoded.map_batches(
        Embed,
        fn_constructor_kwargs=embedding,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=sizes["embedders"]),
        # None: an embedder of a lost node must find a place among decoders.
        num_cpus=0,
        num_gpus=1 if use_gpu else None,
    )


def _stream(dataset: Any) -> Generator[dict[str, np.ndarray], None, None]:
    """Batches as they are made, in any order."""
    # Fetched ahead, a batch would be held back until the next one is made.
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)


def _missing(writer: ShardWriter, batches: Sequence[Slice]) -> list[Slice]:
    """Batches that have not come out of the pipeline, in their order."""
    came = {int(rows["row"][0]) for part in writer.parts.values() for rows in part}
    open_shards = {writer.slices[index].name for index in writer.unfinished()}
    return [one for one in batches if one.name in open_shards and one.start not in came]


def _clips_of(manifest: Manifest, batches: Sequence[Slice], most: int) -> str:
    """The ids of so many clips of them, for people."""
    names: list[str] = []
    for batch in batches:
        if len(names) < most:
            rows = read_rows(manifest, batch.file, batch.first, batch.first + len(batch))
            names += rows["clip_id"].to_pylist()
    more = sum(len(batch) for batch in batches) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _is_of_the_cluster(error: BaseException) -> bool:
    """Whether a node, a worker or an object was lost, and no code of ours is to blame."""
    import ray.exceptions as rayed

    lost = (
        rayed.ActorDiedError,
        rayed.ActorUnavailableError,
        rayed.NodeDiedError,
        rayed.ObjectLostError,
        rayed.OutOfMemoryError,
        rayed.WorkerCrashedError,
    )
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, lost):
            return True
        seen.add(id(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
