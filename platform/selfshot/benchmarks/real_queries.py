"""Real videos of unseen classes as queries of a benchmark of photos, and real clips for its corpus.

Both are copied: frames no larger than the model has a use for, clips as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfshot.benchmarks.annotated import (
    Found,
    OnMessage,
    check_frames,
    in_threads,
    read_annotated,
    rename_classes,
    shrunk,
)
from selfshot.benchmarks.corpus import gather_corpus
from selfshot.benchmarks.looks import SAME_BITS, perceptual_hash
from selfshot.benchmarks.manifest import iterate_corpus, read_corpus_labels
from selfshot.benchmarks.split import SPLITS, label
from selfshot.benchmarks.written import write_frames
from selfshot.config.benchmarks import PseudoVideosBenchmark
from selfshot.data.clips import sampled_frames
from selfshot.data.frames import FrameReader
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.ytvis import Annotations, Track, Video
from selfshot.files import atomic_file

VIDEOS = "videos"
REAL = "real"

HASHED_FRAMES = 8
"""Of a clip, evenly spaced, which are compared with all frames of the queries."""

HASHED_SIZE = (64, 96)
"""Height and width at which frames are hashed."""


@dataclasses.dataclass
class RealQueries:
    """Real videos that are queries.

    Attributes:
        videos: by their new ids.
        tracks: of them, those of the benchmark's classes.
        queries: `(video, class)` pairs of val and test.
        files: SHA-256 of each file of a video's frames.
        hashes: perceptual hashes of all its frames.
        quarantined: `(what, reason)` of the others.
        inputs: SHA-256 of what was read, by its setting.
    """

    videos: dict[int, Video] = dataclasses.field(default_factory=dict)
    tracks: list[Track] = dataclasses.field(default_factory=list)
    queries: dict[str, list[tuple[int, str]]] = dataclasses.field(
        default_factory=lambda: {"val": [], "test": []}
    )
    files: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    hashes: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    quarantined: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)


def take_real_videos(
    folder: Path,
    section: PseudoVideosBenchmark,
    split_of: Mapping[str, str],
    supported: Mapping[str, Collection[str]],
    *,
    into: Annotations,
    on_message: OnMessage,
) -> RealQueries:
    """Copy the videos that show an unseen class, and say what they are queries of.

    A video belongs to the last split of which it shows a class. It is a query of each class of that
    split that it shows and that has labelled supports, as the row `oracle` needs some. Of a longer
    video as many frames are taken as a clip has, evenly spaced, and nothing else is scored.

    Args:
        folder: of the benchmark.
        section: its `videos`, aliases and sizes.
        split_of: the split of each class of the photos; what is none of them is ignored.
        supported: of each split the classes with labelled supports.
        into: what the videos join; their ids follow its own.
        on_message: receives what was found.
    """
    source, aliases, longest = section.videos, section.aliases, 2 * section.width
    assert source is not None
    found = read_annotated(source.annotations, "videos.annotations")
    names = {name: aliases.get(name, name) for name in found.annotations.categories.values()}
    found.annotations = rename_classes(found.annotations, names)
    check_frames(found, source.frames, on_message)
    made = RealQueries(quarantined=list(found.quarantined))
    made.inputs = {
        "videos.annotations": found.inputs["videos.annotations"],
        "videos.frames": found.inputs["frames"],
    }
    wanted = _queries_of(found, split_of, supported, section.num_frames, made)
    ids = {number: new for new, number in enumerate(wanted, start=max(into.videos) + 1)}
    numbers = {name: number for number, name in into.categories.items()}
    reader = FrameReader(source.frames)

    def copy(number: int) -> tuple[Video, list[Track], tuple[int, ...]]:
        video = found.annotations.videos[number]
        shrink = min(1.0, longest / max(video.height, video.width))
        height, width = (max(1, round(side * shrink)) for side in (video.height, video.width))
        name = f"{VIDEOS}/{ids[number]:07d}"
        chosen = sampled_frames(video.length, section.num_frames)
        files = write_frames(folder, name, reader.read(video, chosen, height, width))
        copied = Video(
            ids[number], width, height, len(chosen), tuple(files),
            f"{VIDEOS}/{found.annotations.sources[number]}",
        )  # fmt: skip
        tracks = [
            dataclasses.replace(
                shrunk(_at(track, chosen), (video.height, video.width), (height, width)),
                video_id=ids[number],
                category_id=numbers[found.annotations.categories[track.category_id]],
            )
            for track in found.annotations.tracks_of(number)
            if found.annotations.categories[track.category_id] in numbers
        ]
        small = reader.read(video, range(video.length), *HASHED_SIZE)
        return copied, tracks, tuple(perceptual_hash(Image.fromarray(one)) for one in small)

    try:
        copies = list(in_threads(copy, list(wanted), "real videos read", on_message))
    finally:
        reader.close()
    for number, (video, tracks, hashes) in zip(wanted, copies, strict=True):
        made.hashes[video.id] = hashes
        split, classes = wanted[number]
        made.videos[video.id] = video
        made.files[video.id] = found.files[number]
        made.tracks += [track for track in tracks if track.has_pixels]
        made.queries[split] += [(video.id, name) for name in classes]
    on_message(
        f"{found.name}: {len(made.videos)} of {len(found.annotations.videos)} real videos are "
        f"queries, {len(made.queries['val'])} times for val and {len(made.queries['test'])} times "
        "for test"
    )
    return made


def _at(track: Track, frames: Sequence[int]) -> Track:
    """A track in some frames of its video."""
    return dataclasses.replace(
        track,
        segmentations=tuple(track.segmentations[i] for i in frames),
        boxes=tuple(track.boxes[i] for i in frames),
        areas=tuple(track.areas[i] for i in frames),
    )


def _queries_of(
    found: Found,
    split_of: Mapping[str, str],
    supported: Mapping[str, Collection[str]],
    num_frames: int,
    made: RealQueries,
) -> dict[int, tuple[str, list[str]]]:
    """The split and the classes of each video that is a query; `made` receives the others."""
    wanted: dict[int, tuple[str, list[str]]] = {}
    annotations = found.annotations
    for number in sorted(annotations.videos):
        what = f"{VIDEOS}: {label(annotations, number)}"
        if number in found.faults:
            made.quarantined.append((what, found.faults[number]))
            continue
        shown = sorted(
            {
                annotations.categories[track.category_id]
                for track in annotations.tracks_of(number)
                if track.has_pixels and not track.iscrowd
            }
        )
        frames = sampled_frames(annotations.videos[number].length, num_frames)
        kept = {
            annotations.categories[track.category_id]
            for track in annotations.tracks_of(number)
            if not track.iscrowd and _at(track, frames).has_pixels
        }
        splits = [split_of[name] for name in shown if split_of.get(name, "train") != "train"]
        if not splits:
            made.quarantined.append((what, f"it shows no unseen class ({', '.join(shown)})"))
            continue
        split = max(splits, key=SPLITS.index)
        classes = [name for name in shown if split_of.get(name) == split]
        able = [name for name in classes if name in supported[split] and name in kept]
        if able:
            wanted[number] = (split, able)
        else:
            made.quarantined.append(
                (
                    what,
                    f"no photo supports {', '.join(classes)}, or the clip's frames show none of it",
                )
            )
    return wanted


@dataclasses.dataclass
class RealClips:
    """Real clips of the corpus: their rows, rough labels, and a digest of them all."""

    rows: list[dict[str, Any]]
    labels: dict[str, str]
    digest: str
    quarantined: list[tuple[str, str]]


def take_real_clips(
    folder: Path,
    corpus: Path,
    corpus_labels: Path | None,
    *,
    queries: RealQueries,
    on_message: OnMessage,
) -> RealClips:
    """Copy unlabelled clips into `folder/corpus/real`, but for those of a query's own recording.

    That is a clip of its source, one of its files, or one of which a frame looks like one of the
    query's: a recording is known by other names elsewhere.

    Args:
        folder: of the benchmark.
        corpus: folder of clips, or of a corpus manifest.
        corpus_labels: CSV of rough labels.
        queries: the real videos.
        on_message: receives what was found.
    """
    quarantined: list[tuple[str, str]] = []
    listed = folder / "real_corpus"
    listed.mkdir(parents=True, exist_ok=True)
    sources = {(video.source_id or "").partition("/")[2] for video in queries.videos.values()}
    gathered = gather_corpus(
        corpus,
        listed,
        corpus_labels=corpus_labels,
        sources=sources,
        files={file for files in queries.files.values() for file in files},
        quarantined=quarantined,
        on_message=on_message,
    )
    rows = []
    copied: set[str] = set()
    for row, looks_like in _compared(iterate_corpus(listed), Path(gathered.root), queries):
        if looks_like is not None:
            quarantined.append((f"corpus: {row['uri']}", looks_like))
            continue
        target = folder / "corpus" / REAL / row["uri"]
        if row["uri"] not in copied:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as partial:
                shutil.copyfile(Path(gathered.root) / row["uri"], partial)
            copied.add(row["uri"])
        rows.append(
            {
                **row,
                "clip_id": f"{REAL}/{row['clip_id']}",
                "uri": f"{REAL}/{row['uri']}",
                "source_id": f"{VIDEOS}/{row['source_id']}",
            }
        )
    labels = {f"{REAL}/{clip}": name for clip, name in read_corpus_labels(listed).items()}
    shutil.rmtree(listed)
    return RealClips(rows, labels, gathered.digest, quarantined)


def _compared(
    rows: Iterable[dict[str, Any]], root: Path, queries: RealQueries
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each clip, and why it is of a query's recording; None: no frame of it looks like one.

    A clip that cannot be decoded is left to the embedding, which quarantines it.
    """
    if not queries.hashes:
        yield from ((row, None) for row in rows)
        return
    known = np.array([one for some in queries.hashes.values() for one in some], np.uint64)
    names = [
        str(queries.videos[video].source_id).partition("/")[2]
        for video, some in queries.hashes.items()
        for _ in some
    ]
    height, width = HASHED_SIZE
    with GuardedDecoder(num_frames=HASHED_FRAMES, height=height, width=width) as decoder:
        listed, again = itertools.tee(rows)
        clips = (Clip(str(root / r["uri"]), r["start_s"], r["end_s"]) for r in again)
        for row, answer in zip(listed, decoder.decode_many(clips), strict=True):
            if isinstance(answer, Exception):
                yield row, None
                continue
            hashes = [perceptual_hash(Image.fromarray(one)) for one in answer.frames]
            apart = np.bitwise_count(np.array(hashes, np.uint64)[:, None] ^ known)
            near = np.argwhere(apart <= SAME_BITS)
            reason = "a frame of it looks like one of the query video "
            yield row, reason + names[near[0, 1]] if len(near) else None
