"""Self-VIS and Self-OVIS: the paper's splits of YouTube-VIS and of OVIS (Tables 6 and 7).

Only the training files are used, as only they have masks. Which of the unseen classes' videos are
for validation and which for test is not published: they are dealt by the seed, class by class.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from selfshot.benchmarks.annotated import Found, OnMessage, read_annotated, rename_classes
from selfshot.benchmarks.assembly import Shared, assemble
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.published import (
    PublishedBenchmark,
    match_categories,
    published_benchmarks,
)
from selfshot.benchmarks.split import UNSEEN
from selfshot.data.ytvis import Annotations, Track, Video

NOT_LISTED = "it shows only {}, which Table 7 does not list"


def build_self_vis(
    folder: Path,
    *,
    annotations: Path,
    extra_annotations: Path | None,
    on_message: OnMessage,
    **shared: Any,
) -> Benchmark:
    """Write Self-VIS's manifest into `folder`: YouTube-VIS's videos of one class each.

    Args:
        folder: where the manifest is written.
        annotations: training JSON of YouTube-VIS 2021, or of 2019.
        extra_annotations: of the other edition. A video that both have is taken from the first,
            and from this one only if Table 7 does not list its class there.
        on_message: receives what was found.
        **shared: frames, corpus, corpus_labels, seed, height, width, num_frames and val_share,
            as `Shared` has them.

    Raises:
        UserError: a category is none of YouTube-VIS's, or as `assemble` says.
    """
    published = published_benchmarks()["self_vis"]
    found = _read(annotations, "annotations", published, on_message, one_class=True)
    if extra_annotations is not None:
        extra = _read(extra_annotations, "extra_annotations", published, on_message, one_class=True)
        found = _merged(found, extra, on_message)
    return _assemble(folder, found, "self_vis", published, on_message, shared)


def build_self_ovis(
    folder: Path, *, annotations: Path, on_message: OnMessage, **shared: Any
) -> Benchmark:
    """Write Self-OVIS's manifest into `folder`.

    A video of seen and unseen classes is for val or test, where it is a query of each unseen class.

    Args:
        folder: where the manifest is written.
        annotations: training JSON of OVIS.
        on_message: receives what was found.
        **shared: as in `build_self_vis`.

    Raises:
        UserError: a category is none of OVIS's, or as `assemble` says.
    """
    published = published_benchmarks()["self_ovis"]
    found = _read(annotations, "annotations", published, on_message, one_class=False)
    return _assemble(folder, found, "self_ovis", published, on_message, shared)


def _assemble(
    folder: Path,
    found: Found,
    kind: str,
    published: PublishedBenchmark,
    on_message: OnMessage,
    shared: Mapping[str, Any],
) -> Benchmark:
    split_of = dict.fromkeys(published.seen.values(), "train")
    split_of |= dict.fromkeys(published.unseen.values(), UNSEEN)
    there = set(found.annotations.categories.values())
    for words, classes in (("seen", published.seen), (UNSEEN, published.unseen)):
        absent = [paper_name for paper_name, name in classes.items() if name not in there]
        if absent:
            on_message(
                f"{len(absent)} of Table 7's {len(classes)} {words} classes are in no file: "
                f"{', '.join(absent)}"
            )
    return assemble(
        folder,
        found,
        Shared(**shared),
        name=published.name,
        kind=kind,
        split_of={name: split for name, split in split_of.items() if name in there},
        on_message=on_message,
    )


def _read(
    path: Path, field: str, published: PublishedBenchmark, on_message: OnMessage, *, one_class: bool
) -> Found:
    """A dataset's file with the classes of Table 7; the other videos are faulty."""
    found = read_annotated(path, field)
    before = found.annotations
    names = match_categories(published, before.categories.values(), path.name, field)
    unlisted = sorted(name for name, matched in names.items() if matched is None)
    listed = lost = several = 0
    for video in before.videos:
        shown = {before.categories[track.category_id] for track in before.tracks_of(video)}
        if one_class and len(shown) > 1:
            several += 1
            reason = f"it shows {len(shown)} classes: {', '.join(sorted(shown))}"
        elif shown & set(unlisted):
            lost += 1
            reason = NOT_LISTED.format(", ".join(sorted(shown)))
        else:
            listed += 1
            continue
        found.faults.setdefault(video, reason)
    on_message(
        f"{path.name}: {listed} videos"
        + f" of one class, {several} of several" * one_class
        + f", {lost} of a class that Table 7 does not list ({', '.join(unlisted)})" * bool(unlisted)
    )
    tidy = _with_sources(rename_classes(before, names))
    return dataclasses.replace(found, annotations=tidy)


def _with_sources(annotations: Annotations) -> Annotations:
    """Videos named after their frames' folder, which is what both editions know a video by."""
    videos = {
        number: dataclasses.replace(video, source_id=video.source_id or _frames_folder(video))
        for number, video in annotations.videos.items()
    }
    return dataclasses.replace(annotations, videos=videos)


def _frames_folder(video: Video) -> str | None:
    return str(PurePosixPath(video.file_names[0]).parent) if video.file_names else None


def _merged(first: Found, other: Found, on_message: OnMessage) -> Found:
    """Both editions as one, with ids of its own for the second's videos, tracks and classes."""
    by_source = {video.source_id: number for number, video in first.annotations.videos.items()}
    names = sorted({*first.annotations.categories.values(), *other.annotations.categories.values()})
    ids = {name: number for number, name in enumerate(names, start=1)}
    merged = dataclasses.replace(first, name=f"{first.name} and {other.name}")
    videos: dict[int, Video] = dict(first.annotations.videos)
    tracks: list[Track] = []
    merged.faults = dict(first.faults)
    replaced = new = 0
    take: dict[int, int] = {}
    fresh = itertools.count(max(videos, default=0) + 1)
    for number, video in other.annotations.videos.items():
        known = by_source.get(video.source_id) if video.source_id else None
        if known is not None:
            unlisted = first.faults.get(known, "").startswith(NOT_LISTED.partition("{")[0])
            if not unlisted:
                continue
            del videos[known], merged.faults[known]
            replaced += 1
        else:
            new += 1
        take[number] = next(fresh)
        videos[take[number]] = dataclasses.replace(video, id=take[number])
        if number in other.faults:
            merged.faults[take[number]] = other.faults[number]
    for track in first.annotations.tracks:
        if track.video_id in videos:
            name = first.annotations.categories[track.category_id]
            tracks.append(dataclasses.replace(track, category_id=ids[name]))
    start = max((track.id for track in tracks), default=0)
    for track in other.annotations.tracks:
        if track.video_id in take:
            start += 1
            name = other.annotations.categories[track.category_id]
            tracks.append(
                dataclasses.replace(
                    track, id=start, video_id=take[track.video_id], category_id=ids[name]
                )
            )
    on_message(
        f"{other.name}: {new} videos that {first.name} does not have, and {replaced} whose class "
        "Table 7 lists only here"
    )
    merged.annotations = Annotations(videos, {i: name for name, i in ids.items()}, tuple(tracks))
    merged.quarantined = [*first.quarantined, *other.quarantined]
    merged.unread = first.unread + other.unread
    merged.inputs = {**first.inputs, **other.inputs}
    return merged
