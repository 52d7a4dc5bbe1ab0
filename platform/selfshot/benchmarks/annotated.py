"""Annotated videos as a builder finds them: what can be used, what cannot and why."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from selfshot.data.frames import FrameReader
from selfshot.data.json_entries import TAKEN, is_finite, read_json
from selfshot.data.ytvis import Annotations, Quarantined, Track, parse_annotations, resolve_frame
from selfshot.errors import UserError
from selfshot.files import digest_bytes, digest_file, digest_pieces
from selfshot.ops.masks import Rle, decode_rles, encode_rle, rle_area, rle_to_box

FEW_HOLDERS = 16
PROGRESS_EVERY_S = 10.0

OnMessage = Callable[[str], None]
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Form:
    """Another form of annotations than YouTube-VIS's.

    Attributes:
        convert: makes the YouTube-VIS form of what a file holds, entry by entry; it is given the
            file's path and its setting for messages.
        words: YouTube-VIS's names of keys → the file's own, for messages.
    """

    convert: Callable[[Any, Path, str], dict[str, Any]] = lambda content, path, setting: content
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def said(self, text: str) -> str:
        """A message in the file's own words."""
        for ours, own in self.words.items():
            text = text.replace(ours, own)
        return text


YOUTUBE_VIS = Form()


@dataclasses.dataclass
class Found:
    """Annotated videos.

    Attributes:
        name: what messages call where they come from.
        annotations: all of them, faulty ones too.
        faults: videos that are not to be used, with the reason.
        quarantined: `(what, reason)` of entries that could not be read.
        unread: how many of these are videos.
        inputs: SHA-256 of each input, by its setting.
        files: SHA-256 of each file of a video's frames, for the videos that were looked at.
    """

    name: str
    annotations: Annotations
    faults: dict[int, str] = dataclasses.field(default_factory=dict)
    quarantined: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    unread: int = 0
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def read_annotated(
    path: Path,
    field: str = "annotations",
    form: Form = YOUTUBE_VIS,
) -> Found:
    """Read a YouTube-VIS JSON with what is faulty in it.

    A video with an instance that cannot be read is faulty as a whole: what is not annotated would
    be taught as background, and an unseen class might train.

    Args:
        path: the JSON.
        field: the setting that names it.
        form: of the file.

    Raises:
        UserError: the file is no such JSON, none of its videos, categories or annotations can be
            read, or two classes share a name or an id.
    """
    content = form.convert(read_json(path), path, f"benchmark.{field}")
    # Parsing empties the lists that it reads.
    video_of = _ids_of(content, "annotations", "video_id")
    twins = {number for number, n in Counter(_ids_of(content, "videos", "id")).items() if n > 1}
    entries: list[Quarantined] = []
    loaded = parse_annotations(content, path, quarantined=entries)
    _refuse_unusable(loaded, entries, f"benchmark.{field}", path, form)
    found = Found(path.name, loaded, inputs={field: digest_file(path)})
    for entry in entries:
        number = re.match(r"annotations\[(\d+)\]", entry.entry)
        video = video_of[int(number[1])] if number else None
        if video in loaded.videos:
            found.faults[video] = (
                f"one of its instances cannot be read ({entry.entry}: {form.said(entry.reason)})"
            )
    for video in loaded.videos:
        if video in twins:
            found.faults[video] = f"several videos have the id {video}: whose instances are these?"
    found.unread = sum(entry.entry.startswith("videos[") for entry in entries)
    found.quarantined = [(form.said(entry.entry), form.said(entry.reason)) for entry in entries]
    return found


def check_annotations(path: Path, field: str, form: Form = YOUTUBE_VIS) -> list[str]:
    """Read a file as `read_annotated` does, but none of its masks.

    Returns:
        the entries that would be quarantined, each with its reason.

    Raises:
        UserError: the file is no such JSON, none of its videos, categories or annotations can be
            read, or two classes share a name or an id.
    """
    entries: list[Quarantined] = []
    loaded = parse_annotations(
        form.convert(read_json(path), path, f"benchmark.{field}"),
        path,
        quarantined=entries,
        masks=False,
    )
    _refuse_unusable(loaded, entries, f"benchmark.{field}", path, form)
    return [form.said(f"{entry.entry}: {entry.reason}") for entry in entries]


def _refuse_unusable(
    annotations: Annotations, wrong: Sequence[Quarantined], setting: str, path: Path, form: Form
) -> None:
    """Refuse annotations without a video, a category or an instance, or with mixed categories."""
    place = f"{setting}: {path}"
    for section, read in (
        ("videos", annotations.videos),
        ("categories", annotations.categories),
        ("annotations", annotations.tracks),
    ):
        if read:
            continue
        name = form.said(f"{section}[").rstrip("[")
        mine = [one for one in wrong if one.entry.startswith(section)]
        if not mine:
            raise UserError(f"{place}: {name}: the list is empty", setting=setting)
        more = f" (and {len(mine) - 1} more)" if len(mine) > 1 else ""
        first = form.said(f"{mine[0].entry}: {mine[0].reason}")
        raise UserError(f"{place}: none of its {name} can be read: {first}{more}", setting=setting)
    for one in wrong:
        if one.entry.startswith("categories") and one.reason.endswith(TAKEN):
            raise UserError(
                f"{place}: {one.entry}: {one.reason}; give each category an id of its own, and its "
                "annotations that id",
                setting=setting,
            )
    for name, count in Counter(annotations.categories.values()).items():
        if count > 1:
            ids = [i for i, other in annotations.categories.items() if other == name]
            raise UserError(
                f"{place}: categories {ids} are all named {name!r}; make them one category",
                setting=setting,
            )


def _ids_of(content: Any, section: str, key: str) -> list[int | None]:
    """The id that each entry of a section names; None where it names none.

    One that is written as another type (`"7"`, 7.0) still says which video is meant.
    """
    entries = content.get(section) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return []
    values = (entry.get(key) if isinstance(entry, dict) else None for entry in entries)
    return [
        int(value)
        if (isinstance(value, int | float) and is_finite(value) and value == int(value))
        or (isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value))
        else None
        for value in values
    ]


def rename_classes(annotations: Annotations, names: Mapping[str, str | None]) -> Annotations:
    """The same videos with other class names; tracks of a class that has none are left out.

    Classes that get one name become one. Ids follow the names' order.
    """
    ids = {name: i for i, name in enumerate(sorted({n for n in names.values() if n}), start=1)}
    tracks = []
    for track in annotations.tracks:
        name = names[annotations.categories[track.category_id]]
        if name is not None:
            tracks.append(dataclasses.replace(track, category_id=ids[name]))
    return Annotations(annotations.videos, {i: name for name, i in ids.items()}, tuple(tracks))


def shrunk(track: Track, old: tuple[int, int], new: tuple[int, int]) -> Track:
    """A track in frames of another height and width; by the nearest pixel."""
    if old == new:
        return track
    rows, columns = (
        ((np.arange(to) + 0.5) * was / to).astype(int) for was, to in zip(old, new, strict=True)
    )
    rles: list[Rle | None] = []
    for rle in track.segmentations:
        mask = None if rle is None else decode_rles([rle], *old)[0][np.ix_(rows, columns)]
        rles.append(None if mask is None or not mask.any() else encode_rle(mask))
    return dataclasses.replace(
        track,
        segmentations=tuple(rles),
        boxes=tuple(None if rle is None else rle_to_box(rle) for rle in rles),
        areas=tuple(None if rle is None else float(rle_area(rle)) for rle in rles),
    )


def without_pixels(
    annotations: Annotations, quarantined: list[tuple[str, str]], on_message: OnMessage
) -> Annotations:
    """The same without the instances that have no pixel in any frame.

    Nobody can find them, and they teach nothing.

    Args:
        annotations: of the videos.
        quarantined: receives each of them, with the reason.
        on_message: receives how many there are.

    Raises:
        UserError: no instance has a pixel.
    """
    kept: list[Track] = []
    visible = partly = 0
    for track in annotations.tracks:
        boxed = any(
            rle is None and box is not None and box[2] * box[3] > 0
            for rle, box in zip(track.segmentations, track.boxes, strict=True)
        )
        if track.has_pixels:
            kept.append(track)
            partly += boxed
            continue
        visible += boxed
        quarantined.append(
            (
                f"annotation {track.id} of video {track.video_id}",
                "its masks have no pixel in any frame"
                + ", though it has boxes: what they show counts as background" * boxed,
            )
        )
    if partly:
        on_message(
            f"{partly} instances have frames with a box and no mask: what those boxes show counts "
            "as background there"
        )
    count = len(annotations.tracks) - len(kept)
    if not count:
        return annotations
    if not kept:
        raise UserError(f"benchmark: none of the {count} instances has a pixel in any frame; give "
                        "them masks: boxes are not enough", setting="benchmark")  # fmt: skip
    background = (
        f"; {visible} of them have boxes, and what those show counts as background: give them "
        "masks, or leave out their videos"
    )
    on_message(
        f"{count} of {len(annotations.tracks)} instances have no pixel in any frame and are left "
        "out" + background * (visible > 0)
    )
    return dataclasses.replace(annotations, tracks=tuple(kept))


def same_files(files: Mapping[int, Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs of videos of which half of the frames, of the shorter one at least, are the same files.

    One frame may be the same: many recordings begin with a black one.

    Args:
        files: SHA-256 of each file of a video's frames.
    """
    holders: dict[str, list[int]] = {}
    for video in sorted(files):
        for file in set(files[video]):
            holders.setdefault(file, []).append(video)
    shared: Counter[tuple[int, int]] = Counter()
    for videos in holders.values():
        # What very many have is no mark of a video; if they are all alike, neighbours show it.
        alike = combinations(videos, 2) if len(videos) <= FEW_HOLDERS else pairwise(videos)
        shared.update(alike)
    return [
        (one, other)
        for (one, other), count in sorted(shared.items())
        if 2 * count >= min(len(set(files[one])), len(set(files[other])))
    ]


def join_same_files(found: Found, on_message: OnMessage) -> None:
    """Give videos of the same files one source, whatever they are called."""
    videos = dict(found.annotations.videos)
    pairs = same_files(found.files)
    sources = dict(found.annotations.sources)
    for one, other in pairs:
        old, new = sources[other], sources[one]
        if old == new:
            continue
        for video, source in sources.items():
            if source == old:
                sources[video] = new
    changed = [v for v, source in sources.items() if source != found.annotations.sources[v]]
    for video in {*changed, *(one for pair in pairs for one in pair)}:
        videos[video] = dataclasses.replace(videos[video], source_id=sources[video])
    if pairs:
        one, other = pairs[0]
        on_message(
            f"{found.name}: {len(pairs)} pairs of videos are the same files, such as {one} and "
            f"{other}; each pair is one source"
        )
        found.annotations = dataclasses.replace(found.annotations, videos=videos)


def in_threads(
    work: Callable[[Item], Made], items: Sequence[Item], what: str, on_message: OnMessage
) -> Iterator[Made]:
    """Results in the order of the items; says how far it is when it takes long."""
    said_at = time.monotonic()
    with ThreadPoolExecutor(thread_name_prefix="folder") as pool:
        for done, result in enumerate(pool.map(work, items), start=1):
            if time.monotonic() - said_at > PROGRESS_EVERY_S:
                said_at = time.monotonic()
                on_message(f"{what}: {done} of {len(items)}")
            yield result


def check_frames(found: Found, frames: Path, on_message: OnMessage) -> None:
    """Decode every frame: adds the faulty videos to `found`, and digests of the others' frames.

    Args:
        found: whose videos; those that are faulty already are not looked at.
        frames: what their file names are relative to.
        on_message: receives how far it is.
    """
    reader = FrameReader(frames)

    def look(video: int) -> tuple[str | None, tuple[str, ...]]:
        entry = found.annotations.videos[video]
        reason = reader.fault(entry)
        if reason is not None:
            return reason, ()
        return None, tuple(digest_file(resolve_frame(frames, name)) for name in entry.file_names)

    videos = [video for video in sorted(found.annotations.videos) if video not in found.faults]
    digests: list[str] = []
    try:
        looked = list(in_threads(look, videos, "videos checked", on_message))
    finally:
        reader.close()
    for video, (reason, files) in zip(videos, looked, strict=True):
        if reason is not None:
            found.faults[video] = reason
            continue
        found.files[video] = files
        names = found.annotations.videos[video].file_names
        lines = (f"{name}\0{file}\n" for name, file in zip(names, files, strict=True))
        digests.append(digest_pieces(line.encode(errors="surrogatepass") for line in lines))
    found.inputs["frames"] = digest_bytes("".join(digests).encode())
