"""Annotated videos as a builder finds them: what can be used, what cannot and why."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfshot.benchmarks.folder_corpus import OnMessage, in_threads
from selfshot.config.errors import UserError
from selfshot.data.frames import FrameReader
from selfshot.data.json_entries import read_json
from selfshot.data.ytvis import Annotations, SetAside, parse_annotations, resolve_frame


@dataclasses.dataclass
class Found:
    """Annotated videos.

    Attributes:
        name: what messages call where they come from.
        annotations: all of them, faulty ones too.
        faults: videos that are not to be used, with the reason.
        set_aside: `(what, reason)` of entries that could not be read.
        unread: how many of these are videos.
        inputs: SHA-256 of each input, by its setting.
    """

    name: str
    annotations: Annotations
    faults: dict[int, str] = dataclasses.field(default_factory=dict)
    set_aside: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    unread: int = 0
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)


def read_annotated(
    path: Path,
    field: str = "annotations",
    convert: Callable[[Any, Path], dict[str, Any]] | None = None,
) -> Found:
    """Read a YouTube-VIS JSON with what is faulty in it.

    A video with an instance that cannot be read is faulty as a whole: what is not annotated would
    be taught as background, and an unseen class might train.

    Args:
        path: the JSON.
        field: the setting that names it.
        convert: makes the YouTube-VIS form of what the file holds, entry by entry.

    Raises:
        UserError: the file is no such JSON, or two of its classes share a name.
    """
    content = read_json(path)
    if convert is not None:
        content = convert(content, path)
    # Parsing empties the lists that it reads.
    video_of = _videos_of_entries(content)
    entries: list[SetAside] = []
    loaded = parse_annotations(content, path, set_aside=entries)
    for name, count in Counter(loaded.categories.values()).items():
        if count > 1:
            ids = [i for i, other in loaded.categories.items() if other == name]
            raise UserError(
                f"{path.name}: categories {ids} are all named {name!r}; make them one category"
            )
    found = Found(path.name, loaded, inputs={field: sha256_of(path)})
    for entry in entries:
        number = re.match(r"annotations\[(\d+)\]", entry.entry)
        video = video_of[int(number[1])] if number else None
        if isinstance(video, int) and video in loaded.videos:
            found.faults[video] = (
                f"one of its instances cannot be read ({entry.entry}: {entry.reason})"
            )
    found.unread = sum(entry.entry.startswith("videos[") for entry in entries)
    found.set_aside = [(entry.entry, entry.reason) for entry in entries]
    return found


def _videos_of_entries(content: Any) -> list[Any]:
    """What each annotation of a file names as its video; None where it names none."""
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return []
    return [entry.get("video_id") if isinstance(entry, dict) else None for entry in entries]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def check_frames(found: Found, frames: Path, on_message: OnMessage) -> None:
    """Decode every frame: adds the faulty videos to `found`, and a digest of the others' frames.

    Args:
        found: whose videos; those that are faulty already are not looked at.
        frames: what their file names are relative to.
        on_message: is told how far it is.
    """
    reader = FrameReader(frames)

    def look(video: int) -> tuple[str | None, str]:
        entry = found.annotations.videos[video]
        reason = reader.fault(entry)
        if reason is not None:
            return reason, ""
        digest = hashlib.sha256()
        for name in entry.file_names:
            digest.update(f"{name}\0{sha256_of(resolve_frame(frames, name))}\n".encode())
        return None, digest.hexdigest()

    videos = [video for video in sorted(found.annotations.videos) if video not in found.faults]
    whole = hashlib.sha256()
    try:
        looked = list(in_threads(look, videos, "videos checked", on_message))
    finally:
        reader.close()
    for video, (reason, digest) in zip(videos, looked, strict=True):
        if reason is None:
            whole.update(digest.encode())
        else:
            found.faults[video] = reason
    found.inputs["frames"] = whole.hexdigest()
