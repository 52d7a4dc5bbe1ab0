"""A corpus manifest of any size: listed as a stream, hashed and cut in parallel, resumed.

Items are taken in portions; each becomes one Parquet file, whole or not there, which says in its
metadata what it was made of. A build that was killed makes only the files that are missing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfshot.benchmarks.annotated import OnMessage
from selfshot.benchmarks.corpus_items import Item
from selfshot.benchmarks.manifest import CORPUS_SCHEMA
from selfshot.data.corpus_manifest import FACTS, place_of
from selfshot.data.fetch import open_bytes
from selfshot.data.guard import GuardedDecoder, Shots
from selfshot.data.shots import SHOTS
from selfshot.data.storage import Storage
from selfshot.data.video import VideoError, duration_s
from selfshot.errors import refuse_outage
from selfshot.files import digest_bytes

SCHEMA = CORPUS_SCHEMA.append(pa.field("offset", pa.int64()))
SHORTEST_PART = 0.5
"""A last part shorter than this share of a clip's length is joined to the one before."""

ITEMS_PER_FILE = 10_000
MOST_SHOTS = 4096
_KEY = b"selfshot"
_ROWS_PER_GROUP = 4096
_PROGRESS_EVERY_S = 5.0

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How videos become clips.

    Attributes:
        clip_s: longest clip, in seconds; None: a video is one clip.
        shots: whether a clip may not reach over a cut.
        shot_threshold: share of the pixels' colours that a cut changes, at least.
        min_shot_s: a shorter shot is joined to the one before.
        shots_timeout_s: a video whose shots are not found in that time is cut without them.
        hashed: whether the videos' bytes are hashed.
    """

    clip_s: float | None = None
    shots: bool = False
    shot_threshold: float = 0.4
    min_shot_s: float = 1.0
    shots_timeout_s: float = 600.0
    hashed: bool = True


WHOLE = Cutting()


def build_manifest(
    items: Iterable[Item],
    root: str,
    out: str,
    *,
    made_from: str,
    on_message: OnMessage,
    cutting: Cutting = WHOLE,
    items_per_file: int = ITEMS_PER_FILE,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write a manifest, or go on with it.

    Args:
        items: the videos, in an order that is the same every time.
        root: path or address that their URIs are relative to.
        out: folder of the manifest, or its address.
        made_from: what corpus.json says of where the items came from.
        on_message: receives how far it is.
        cutting: how they become clips.
        items_per_file: videos of one Parquet file, and of one step of a resume.
        workers: threads, each of which may have a decoding process for shots; None: two a core.

    Returns:
        what corpus.json holds: root, made_from, clips, sources, bytes, seconds, unread.

    Raises:
        StorageError: `out`, or a video behind an address or on a disk that fails, cannot be read
            or written.
    """
    storage = Storage(out, "--out")
    storage.remove_partial()
    there = storage.sizes()
    counts = {"items": 0, "clips": 0, "bytes": 0, "seconds": 0.0, "unread": 0}
    began = said_at = time.monotonic()
    kept = files = 0
    with _Workers(root, cutting, workers or 2 * len(os.sched_getaffinity(0))) as pool:
        portions = (
            (f"clips-{number:05d}.parquet", portion)
            for number, portion in enumerate(_portions(items, items_per_file))
        )

        def start(given: tuple[str, list[Item]]) -> tuple[str, str, list[Item], Any]:
            name, portion = given
            digest = _digest(portion, root, cutting)
            found = _finished(storage, name, digest) if name in there else None
            return name, digest, portion, found or [pool.submit(one) for one in portion]

        for name, digest, portion, work in _ahead(map(start, portions)):
            if isinstance(work, dict):
                said = work
                kept += 1
            else:
                said = _write(storage, name, digest, [future.result() for future in work])
            files += 1
            counts["items"] += len(portion)
            for key, value in said.items():
                counts[key] += value
            if time.monotonic() - said_at > _PROGRESS_EVERY_S:
                said_at = time.monotonic()
                rate = counts["items"] / (said_at - began)
                on_message(f"{counts['items']} videos, {counts['clips']} clips, {rate:.0f}/s")
    for name in there:
        match = re.fullmatch(r"clips-(\d+)\.parquet", name)
        if match and int(match[1]) >= files:
            storage.remove(name)  # There were more videos once.
    if pool.without_shots:
        on_message(
            f"the shots of {len(pool.without_shots)} videos cannot be found, so their clips may "
            f"reach over cuts; the first: {pool.without_shots[0]}"
        )
    if kept:
        on_message(f"{kept} of {files} manifest files were there")
    facts = {"root": root, "made_from": made_from, **counts}
    storage.write(FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def _portions(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while portion := list(itertools.islice(iterator, size)):
        yield portion


def _ahead(started: Iterator[Made], depth: int = 2) -> Iterator[Made]:
    """The same, with the next ones begun before one is taken."""
    waiting: deque[Made] = deque()
    for one in started:
        waiting.append(one)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def _digest(portion: list[Item], root: str, cutting: Cutting) -> str:
    said = [root, dataclasses.asdict(cutting), [dataclasses.astuple(item) for item in portion]]
    return digest_bytes(json.dumps(said).encode())


def _finished(storage: Storage, name: str, digest: str) -> dict[str, Any] | None:
    """What a file of an earlier run counts, if it was made of the same.

    pyarrow raises an `OSError` for a footer that it cannot parse; an outage is a `StorageError`.
    """
    try:
        with storage.open(name) as file:
            said = json.loads((pq.read_metadata(file).metadata or {}).get(_KEY, b"null"))
    except (OSError, pa.ArrowException, ValueError):
        return None
    counts: dict[str, Any] = said["counts"] if said and said["digest"] == digest else {}
    return counts or None


def _write(
    storage: Storage, name: str, digest: str, made: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    """Write a file of the manifest; returns its counts."""
    rows = sorted((row for rows in made for row in rows), key=lambda row: row["clip_id"])
    lengths = [row["end_s"] - (row["start_s"] or 0) for row in rows if row["end_s"] is not None]
    counts = {
        "clips": len(rows),
        "bytes": sum(video[0]["bytes"] or 0 for video in made if video),
        "seconds": round(sum(lengths), 3),
        "unread": sum(1 for video in made if video and video[0]["bytes"] is None),
    }
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = table.replace_schema_metadata({_KEY: json.dumps({"digest": digest, "counts": counts})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROWS_PER_GROUP)
    storage.write(name, memoryview(sink.getvalue()))
    return counts


class _Workers:
    """Threads that look at videos, and the processes that decode for them."""

    def __init__(self, root: str, cutting: Cutting, workers: int) -> None:
        self.root, self.cutting = root, cutting
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="corpus")
        self.without_shots: list[VideoError] = []
        self.decoder = GuardedDecoder(decode=SHOTS, time_limit_s=cutting.shots_timeout_s)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.decoder.close()

    def submit(self, item: Item) -> Future[list[dict[str, Any]]]:
        """Rows of one video, in a while."""
        return self.pool.submit(self._look, item)

    def _look(self, item: Item) -> list[dict[str, Any]]:
        """Rows of one video. What cannot be read is listed too: embedding it says why."""
        place, cutting = place_of(self.root, item.uri), self.cutting
        size, digest = item.size, None
        cut = cutting.clip_s is not None or cutting.shots
        seconds = None
        if cutting.hashed or (cut and item.end_s is None):
            try:
                with open_bytes(
                    place, item.offset or 0, item.size, keep=cut, hashed=cutting.hashed
                ) as content:
                    size, digest = content.size, content.sha256
                    if cut and item.end_s is None:
                        seconds = duration_s(content.path)
                        starts = self._shots(content.path) if cutting.shots and seconds else []
            except (OSError, VideoError) as error:
                refuse_outage(error, place)
                size = None
        row = {
            "uri": item.uri,
            "source_id": item.source,
            "bytes": size,
            "sha256": digest,
            "offset": item.offset,
        }
        if seconds is None:
            spans = [(item.start_s, item.end_s)]
        else:
            spans = list(cut_spans(seconds, starts, cutting.clip_s, cutting.min_shot_s))
        return [
            {**row, "clip_id": clip_id(item, start), "start_s": start, "end_s": end}
            for start, end in spans
        ]

    def _shots(self, path: str) -> list[float]:
        try:
            found = self.decoder.decode(Shots(path, MOST_SHOTS, self.cutting.shot_threshold))
        except VideoError as error:
            self.without_shots.append(error)
            return []
        times = found.reshape(-1).view(np.float64)
        return [float(time) for time in times[~np.isnan(times)]]


def clip_id(item: Item, start_s: float | None) -> str:
    """An id that follows from the video and the time alone, and is safe as a file name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", item.name)[-80:]
    digest = digest_bytes(f"{item.uri}\0{item.name}".encode())[:12]
    time = "" if start_s is None else f"-{round(1000 * start_s):09d}"
    return f"{plain}-{digest}{time}"


def cut_spans(
    seconds: float, shots: Iterable[float], clip_s: float | None, min_shot_s: float
) -> Iterator[tuple[float, float]]:
    """Where the clips of a video begin and end: none reaches over a cut, none is too long.

    Args:
        seconds: length of the video.
        shots: times at which a shot begins.
        clip_s: longest clip; None: any. A shot's last part may be up to half as long again.
        min_shot_s: a shorter shot is joined to the one before.
    """
    edges = [0.0]
    for start in shots:
        if start - edges[-1] >= min_shot_s and seconds - start >= min_shot_s:
            edges.append(start)
    for start, end in itertools.pairwise([*edges, seconds]):
        if clip_s is None:
            yield start, end
            continue
        whole, rest = divmod(end - start, clip_s)
        parts = max(1, int(whole) + (rest >= SHORTEST_PART * clip_s))
        for part in range(parts):
            last = part == parts - 1
            yield start + part * clip_s, end if last else start + (part + 1) * clip_s

