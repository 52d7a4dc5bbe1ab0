"""Pseudo-videos: photos with masks become clips by a camera's path and pasted objects.

The training photos stay photos: their clips are composed anew in every batch. Val and test clips
and the corpus are written once. A photo is a source: it is of one split, and no clip of a query's
photo is in the corpus.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfshot.benchmarks.annotated import (
    Found,
    OnMessage,
    in_threads,
    read_annotated,
    rename_classes,
    shrunk,
    without_pixels,
)
from selfshot.benchmarks.assembly import check_enough, count_splits
from selfshot.benchmarks.coco import COCO
from selfshot.benchmarks.corpus import rough_labels
from selfshot.benchmarks.finish import finish_benchmark
from selfshot.benchmarks.folder import name_splits
from selfshot.benchmarks.looks import near_pairs, perceptual_hash
from selfshot.benchmarks.manifest import Benchmark, write_corpus, write_corpus_labels
from selfshot.benchmarks.real_queries import RealQueries, take_real_clips, take_real_videos
from selfshot.benchmarks.split import Splits, label, split_videos
from selfshot.benchmarks.written import write_clip, write_frames
from selfshot.config.benchmarks import PseudoVideosBenchmark
from selfshot.data.clips import ClipReader
from selfshot.data.images import read_image
from selfshot.data.json_entries import read_json
from selfshot.data.scenes import MIN_VISIBLE, Scene, SceneComposer
from selfshot.data.video import VideoError
from selfshot.data.ytvis import Annotations, Track, Video, resolve_frame, save_annotations
from selfshot.errors import UserError
from selfshot.files import digest_bytes, digest_file
from selfshot.ops.masks import encode_rle, rle_area, rle_to_box

PHOTOS = "photos"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A clip that is to be written: of which photo and class, and as what."""

    id: int
    name: str
    split: str
    role: str
    video: int
    class_name: str


def build_pseudo_videos(
    folder: Path, section: PseudoVideosBenchmark, *, seed: int, on_message: OnMessage
) -> Benchmark:
    """Write the photos, the val and test clips, the corpus and the manifest into `folder`.

    Args:
        folder: where they are written.
        section: which photos, and what is made of them.
        seed: of every draw.
        on_message: receives what was found, and how far it is.

    Raises:
        UserError: an input cannot be read, a class is not known, or a split that is needed has
            nothing left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, places = _joined(section, on_message)
    digests = _write_photos(folder, found, places, 2 * section.width, on_message)
    _join_duplicates(found, digests, on_message)
    photos = found.annotations
    split_of = name_splits(photos, section.val_classes, section.test_classes, found.name)
    size: dict[str, Any] = {name: getattr(section, name) for name in ("height", "width")}
    splits, lost = _split(folder, found, split_of, section, seed, size)
    pixelless: list[tuple[str, str]] = []
    photos = without_pixels(photos, pixelless, on_message)
    faults = [(label(photos, video), reason) for video, reason in sorted(found.faults.items())]
    lost = [*found.quarantined, *faults, *pixelless, *lost]
    unseen = {
        split: tuple(name for name, of in split_of.items() if of == split)
        for split in ("val", "test")
    }
    lost = [(_as_given(photos, what), why) for what, why in lost]
    _query_all(splits)
    check_enough(splits, unseen, found, False, lost)
    bystanders = _keep_bystanders(photos, splits, section.bystanders, seed)
    classes = {"train": tuple(sorted(splits.supports["train"])), **unseen}

    reader = ClipReader(photos, folder / "frames", num_frames=section.num_frames, **size)
    composer = SceneComposer(
        reader, section.scene, others=bystanders, min_object=section.min_object
    )
    plans = _plan(photos, splits, section, seed)
    written = _write_clips(folder, plans, composer, photos, seed, on_message)
    annotations, corpus, labels, made = _gathered(photos, splits, plans, written)
    groups: dict[str, tuple[int, ...]] = {}
    real = RealQueries()
    if section.videos is not None:
        composed = tuple(video for pairs in made.queries.values() for video, _ in pairs)
        real = take_real_videos(
            folder, section, split_of, made.supports, into=annotations, on_message=on_message
        )
        annotations = _with_videos(annotations, real)
        for split, pairs in real.queries.items():
            made.queries[split] += pairs
        groups = {"pseudo-videos": composed, "real videos": tuple(real.videos)}
    if section.corpus is not None:
        clips = take_real_clips(
            folder, section.corpus, section.corpus_labels, queries=real, on_message=on_message
        )
        corpus += clips.rows
        labels |= {c: section.aliases.get(name, name) for c, name in clips.labels.items()}
        real.quarantined += clips.quarantined
        real.inputs["corpus"] = clips.digest
        if section.corpus_labels is not None:
            real.inputs["corpus_labels"] = digest_file(section.corpus_labels)
    made.queries["train"] = splits.queries["train"]
    made.supports["train"] = splits.supports["train"]
    counts = {
        "photos": len(photos.videos) + found.unread,
        "objects": len(photos.tracks),
        "photos_of_seen_and_unseen": splits.mixed,
        "bystanders": len(bystanders),
        **count_splits(made, classes, on_message),
    }
    save_annotations(folder / "annotations.json", annotations, {"description": found.name})
    write_corpus(folder, corpus)
    write_corpus_labels(folder, labels)
    benchmark = Benchmark(
        name="pseudo-videos",
        kind="pseudo_videos",
        seed=seed,
        num_frames=section.num_frames,
        **size,
        classes=classes,
        queries={split: tuple(pairs) for split, pairs in made.queries.items()},
        supports={
            split: {name: tuple(videos) for name, videos in by_class.items()}
            for split, by_class in made.supports.items()
        },
        counts={**counts, "corpus_clips": len(corpus), "corpus_classes": len(set(labels.values()))},
        inputs=found.inputs | real.inputs,
        quarantined=(*lost, *made.quarantined, *real.quarantined),
        groups=groups,
        composed={
            "scene": section.scene.model_dump(mode="json"),
            "min_object": section.min_object,
        },
    )
    return finish_benchmark(folder, benchmark, annotations, corpus, real.files)


def _with_videos(annotations: Annotations, real: RealQueries) -> Annotations:
    tracks = [*annotations.tracks, *real.tracks]
    numbered = (dataclasses.replace(track, id=n) for n, track in enumerate(tracks, start=1))
    return dataclasses.replace(
        annotations, videos=annotations.videos | real.videos, tracks=tuple(numbered)
    )


def _joined(section: PseudoVideosBenchmark, on_message: OnMessage) -> tuple[Found, dict[int, Path]]:
    """All sources' photos with ids and class names of their own, and where each of them lies."""
    parts: list[tuple[Found, Path]] = []
    names: set[str] = set()
    given: set[str] = set()
    for index, source in enumerate(section.sources):
        setting = f"sources[{index}].annotations"
        found = read_annotated(source.annotations, setting, COCO)
        own = found.annotations.categories.values()
        given |= set(own)
        renamed = {name: section.aliases.get(name, name) for name in own}
        found.annotations = rename_classes(found.annotations, renamed)
        names |= set(found.annotations.categories.values())
        parts.append((found, source.images))
        on_message(
            f"{found.name}: {len(found.annotations.videos)} photos, "
            f"{len(found.annotations.tracks)} objects of {len(found.annotations.categories)} "
            "classes"
        )
    _check_aliases(section, given, names)
    ids = {name: number for number, name in enumerate(sorted(names), start=1)}
    joined = Found(
        " and ".join(found.name for found, _ in parts),
        Annotations({}, {number: name for name, number in ids.items()}, ()),
        unread=sum(found.unread for found, _ in parts),
    )
    tracks: list[Track] = []
    places: dict[int, Path] = {}
    fresh = itertools.count(1)
    for index, (found, images) in enumerate(parts):
        joined.inputs |= found.inputs
        joined.quarantined += [(f"{found.name}: {what}", why) for what, why in found.quarantined]
        for number, video in found.annotations.videos.items():
            new = next(fresh)
            places[new] = resolve_frame(images, video.file_names[0])
            joined.annotations.videos[new] = dataclasses.replace(
                video, id=new, source_id=f"{index}/{video.source_id or video.file_names[0]}"
            )
            if number in found.faults:
                joined.faults[new] = found.faults[number]
            for track in found.annotations.tracks_of(number):
                name = found.annotations.categories[track.category_id]
                tracks.append(
                    dataclasses.replace(
                        track, id=len(tracks) + 1, video_id=new, category_id=ids[name]
                    )
                )
    joined.annotations = dataclasses.replace(joined.annotations, tracks=tuple(tracks))
    return joined, places


def _check_aliases(section: PseudoVideosBenchmark, given: set[str], names: set[str]) -> None:
    """Refuse an alias that changes nothing: a slip in it would let an unseen class train.

    Args:
        section: with the aliases.
        given: names of classes as the sources have them.
        names: the same after the aliases.
    """
    if section.videos is not None:
        found = read_json(section.videos.annotations)
        entries = found.get("categories") if isinstance(found, dict) else None
        given = given | {str(one.get("name")) for one in entries or () if isinstance(one, dict)}
    if section.corpus_labels is not None:
        given = given | rough_labels(section.corpus_labels)
    for name, target in section.aliases.items():
        if name not in given:
            reason = f"{name!r} is no class of the sources"
        elif target not in names:
            reason = f"{name}: {target!r} is no class of the sources"
        elif section.aliases.get(target, target) != target:
            reason = f"{name}: {target!r} is an alias itself"
        else:
            continue
        wrong = target if name in given else name
        close = difflib.get_close_matches(wrong, sorted(given), 1, 0.6)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(
            f"benchmark.aliases: {reason}{hint}; mend it, or take it out",
            setting="benchmark.aliases",
        )


def _write_photos(
    folder: Path, found: Found, places: Mapping[int, Path], longest: int, on_message: OnMessage
) -> dict[int, int]:
    """Copy the photos upright and not larger than needed, with their masks; their hashes."""
    before = found.annotations
    (folder / "frames" / PHOTOS).mkdir(parents=True, exist_ok=True)

    def copy(video: Video) -> tuple[Video, list[Track], int, str] | str:
        try:
            size = (video.height, video.width)
            pixels = read_image(places[video.id], *size, size)
        except VideoError as error:
            return f"{places[video.id].name}: {error.reason}"
        shrink = min(1.0, longest / max(size))
        height, width = (max(1, round(side * shrink)) for side in size)
        picture = Image.fromarray(pixels)
        if shrink < 1:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        name = f"{PHOTOS}/{video.id:07d}.jpg"
        picture.save(folder / "frames" / name, quality=92, subsampling=0)
        tracks = [shrunk(track, size, (height, width)) for track in before.tracks_of(video.id)]
        copied = dataclasses.replace(video, height=height, width=width, file_names=(name,))
        data = (folder / "frames" / name).read_bytes()
        return copied, tracks, perceptual_hash(picture), digest_bytes(data)

    videos = [video for number, video in before.videos.items() if number not in found.faults]
    kept: dict[int, Video] = dict(before.videos)
    tracks: list[Track] = [t for t in before.tracks if t.video_id in found.faults]
    hashes: dict[int, int] = {}
    files: list[str] = []
    for video, made in zip(
        videos, in_threads(copy, videos, "photos read", on_message), strict=True
    ):
        if isinstance(made, str):
            found.faults[video.id] = made
            tracks += before.tracks_of(video.id)
            continue
        kept[video.id], own, hashes[video.id], file = made
        tracks += own
        files.append(file)
    found.inputs["images"] = digest_bytes("\n".join(files).encode())
    found.annotations = Annotations(kept, before.categories, tuple(tracks))
    return hashes


def _join_duplicates(found: Found, hashes: Mapping[int, int], on_message: OnMessage) -> None:
    """Give photos that look the same one source, with all that is of the source of either."""
    videos = found.annotations.videos
    pairs = [(str(videos[a].source_id), str(videos[b].source_id)) for a, b in near_pairs(hashes)]
    first: dict[str, str] = {}

    def root(source: str) -> str:
        while source in first:
            source = first[source]
        return source

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        if low != high:
            first[high] = low
    for number, video in videos.items():
        source = root(str(video.source_id))
        if source != video.source_id:
            videos[number] = dataclasses.replace(video, source_id=source)
    if pairs:
        on_message(
            f"{len(pairs)} pairs of photos look the same, such as {' and '.join(pairs[0])}: one "
            "source each"
        )
    found.annotations = dataclasses.replace(found.annotations, videos=videos)


def _split(
    folder: Path,
    found: Found,
    split_of: Mapping[str, str],
    section: PseudoVideosBenchmark,
    seed: int,
    size: Mapping[str, Any],
) -> tuple[Splits, list[tuple[str, str]]]:
    """Deal the photos; small objects count for where a photo may be used, and are no targets."""
    photos = found.annotations
    crowded = {(t.video_id, t.category_id) for t in photos.tracks if t.iscrowd}
    tracks = tuple(
        dataclasses.replace(track, iscrowd=True)
        if _share(photos, track) < section.min_object
        # Of a crowd in the photo it is not said where its members are.
        or (track.video_id, track.category_id) in crowded
        else track
        for track in photos.tracks
    )
    reader = ClipReader(
        dataclasses.replace(photos, tracks=tracks), folder / "frames", num_frames=1, **size
    )
    splits = split_videos(reader, split_of, found.faults, seed)
    # Of a seen class even one photo is enough: see `_query_all`.
    lost = [(what, why) for what, why in splits.quarantined if " as a train query of " not in what]
    return splits, lost


def _share(photos: Annotations, track: Track) -> float:
    rle, video = track.segmentations[0], photos.videos[track.video_id]
    return 0.0 if rle is None else rle_area(rle) / (video.height * video.width)


def _keep_bystanders(photos: Annotations, splits: Splits, share: float, seed: int) -> list[int]:
    """Take a share of the training photos' sources out of training; every other one is a query."""
    videos = sorted(splits.videos("train"))
    sources = sorted({photos.sources[video] for video in videos})
    order = np.random.default_rng([seed, 61]).permutation(len(sources))
    taken = {sources[i] for i in order[: round(share * len(sources))]}
    kept = [video for video in videos if photos.sources[video] in taken]
    out = set(kept)
    helpers = splits.supports["train"]
    for name in list(helpers):
        left = [video for video in helpers[name] if video not in out]
        if left:
            helpers[name] = left
        else:
            del helpers[name]
    if not helpers:
        raise UserError(
            f"benchmark.bystanders: {share} leaves no photo to train on; lower it",
            setting="benchmark.bystanders",
        )
    _query_all(splits)
    return kept


def _query_all(splits: Splits) -> None:
    """Make every training photo a query: where its class has no other, it supports itself."""
    helpers = splits.supports["train"]
    splits.queries["train"] = [(video, name) for name in sorted(helpers) for video in helpers[name]]


def _as_given(photos: Annotations, what: str) -> str:
    """A message's photo by the name that it came with, and not by that of its copy."""
    return re.sub(
        rf"video (\d+) \({PHOTOS}\)|video (\d+)$",
        lambda found: f"photo {photos.videos[int(found[1] or found[2])].source_id}",
        what,
    )


def _plan(
    photos: Annotations, splits: Splits, section: PseudoVideosBenchmark, seed: int
) -> list[_Plan]:
    """Every clip that is written. Names carry no class: a file name must not be a label.

    No bystander is in the corpus, or a query would find the ground of its own clip there.
    """
    wanted: list[tuple[str, str, int, str]] = []
    rng = np.random.default_rng([seed, 67])
    for split in ("val", "test"):
        queries: dict[str, list[int]] = {}
        for video, name in splits.queries[split]:
            queries.setdefault(name, []).append(video)
        for role, by_class, clips in (
            ("query", queries, section.eval_queries),
            ("support", splits.supports[split], section.eval_supports),
        ):
            for name, videos in by_class.items():
                for video in _some(rng, videos, section.eval_photos):
                    wanted += [(split, role, video, name)] * clips
    asked = {
        photos.sources[video] for split in ("val", "test") for video, _ in splits.queries[split]
    }
    unseen = {}
    for split in ("val", "test"):
        for name, videos in splits.supports[split].items():
            # A photo may support one class and be a query of another.
            if left := [video for video in videos if photos.sources[video] not in asked]:
                unseen[name] = left
    seen = splits.supports["train"]
    of_unseen = round(section.corpus_clips * section.corpus_unseen)
    for pools, count in ((unseen, of_unseen), (seen, section.corpus_clips - of_unseen)):
        names = sorted(pools)
        for n in range(count if names else 0):
            # Every class as often as another.
            name = names[n % len(names)]
            wanted.append(
                ("corpus", "corpus", int(pools[name][rng.integers(len(pools[name]))]), name)
            )
    first = max(photos.videos, default=0) + 1
    order = iter(rng.permutation(sum(one[1] == "corpus" for one in wanted)).tolist())
    plans = []
    for number, (split, role, video, name) in enumerate(wanted, start=first):
        what = f"clip_{next(order):06d}" if role == "corpus" else f"{split}_{number:07d}"
        plans.append(_Plan(number, what, split, role, video, name))
    return plans


def _some(rng: np.random.Generator, videos: Sequence[int], most: int) -> list[int]:
    """All of a class's photos, or so many of them, in their order."""
    if len(videos) <= most:
        return list(videos)
    return [videos[i] for i in sorted(rng.choice(len(videos), most, replace=False).tolist())]


def _write_clips(
    folder: Path,
    plans: Sequence[_Plan],
    composer: SceneComposer,
    photos: Annotations,
    seed: int,
    on_message: OnMessage,
) -> list[tuple[Video | None, list[Track], dict[str, Any] | None]]:
    """Compose and write every clip: its video and tracks, or its row of the corpus."""
    numbers = {name: number for number, name in photos.categories.items()}
    length = composer.reader.num_frames

    def write(plan: _Plan) -> tuple[Video | None, list[Track], dict[str, Any] | None]:
        rng = np.random.default_rng([seed, 71, plan.id])
        compose = composer.query if plan.role == "query" else composer.support
        scene = compose(rng, plan.video, numbers[plan.class_name], length)
        source = photos.sources[plan.video]
        if plan.role == "corpus":
            row = write_clip(folder, plan.name, scene.frames)
            return None, [], {**row, "source_id": source}
        names = write_frames(folder, plan.name, scene.frames)
        _, height, width = scene.labels.shape
        video = Video(plan.id, width, height, length, tuple(names), source)
        return video, _tracks_of(scene, plan.id), None

    return list(in_threads(write, plans, "clips written", on_message))


def _tracks_of(scene: Scene, video_id: int) -> list[Track]:
    """A scene's objects; one that hardly shows is a crowd, which is neither found nor missed."""
    tracks = []
    for number, category in enumerate(scene.classes, start=1):
        masks = scene.labels == number
        areas = masks.sum((1, 2))
        if not areas.any():
            continue
        rles = tuple(encode_rle(mask) if mask.any() else None for mask in masks)
        tracks.append(
            Track(
                id=0,
                video_id=video_id,
                category_id=category,
                segmentations=rles,
                boxes=tuple(None if rle is None else rle_to_box(rle) for rle in rles),
                areas=tuple(float(area) if area else None for area in areas),
                iscrowd=bool(areas.max() < MIN_VISIBLE * masks[0].size),
            )
        )
    return tracks


def _gathered(
    photos: Annotations,
    splits: Splits,
    plans: Sequence[_Plan],
    written: Sequence[tuple[Video | None, list[Track], dict[str, Any] | None]],
) -> tuple[Annotations, list[dict[str, Any]], dict[str, str], Splits]:
    """The training photos and the clips as annotations; the corpus and its labels; the splits."""
    training = splits.videos("train")
    videos = {number: photos.videos[number] for number in sorted(training)}
    tracks = [track for track in photos.tracks if track.video_id in training]
    corpus: list[dict[str, Any]] = []
    labels: dict[str, str] = {}
    made = Splits({"val": [], "test": []}, {"val": {}, "test": {}}, [])
    numbers = {name: number for number, name in photos.categories.items()}
    for plan, (video, own, row) in zip(plans, written, strict=True):
        if row is not None:
            corpus.append(row)
            labels[row["clip_id"]] = plan.class_name
            continue
        assert video is not None
        targets = [t for t in own if t.category_id == numbers[plan.class_name] and not t.iscrowd]
        if not targets:
            made.quarantined.append((plan.name, f"no {plan.class_name} is visible in any frame"))
            continue
        videos[plan.id] = video
        tracks += own
        if plan.role == "query":
            made.queries[plan.split].append((plan.id, plan.class_name))
        else:
            made.supports[plan.split].setdefault(plan.class_name, []).append(plan.id)
    numbered = tuple(
        dataclasses.replace(track, id=number) for number, track in enumerate(tracks, start=1)
    )
    return Annotations(videos, photos.categories, numbered), corpus, labels, made
