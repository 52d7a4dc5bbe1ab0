"""The YouTube-VIS format: annotations and results, read with care and written.

Masks stay run lengths until someone reads a frame, so memory is bounded by the file.
"""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from selfshot.data.json_entries import (
    EntryError,
    Quarantined,
    Watch,
    integer,
    is_finite,
    kind,
    known,
    once,
    read_entries,
    read_json,
    short,
    sized,
    write_json,
)
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.errors import UserError
from selfshot.ops.masks import Extents, Rle, measured_rles, rle_area, rle_to_box

__all__ = [
    "Annotations",
    "Box",
    "EntryError",
    "Prediction",
    "Quarantined",
    "Track",
    "Video",
    "Watch",
    "fold_source",
    "load_annotations",
    "load_results",
    "parse_annotations",
    "resolve_frame",
    "save_annotations",
    "save_results",
]

Box = tuple[float, float, float, float]
"""`(x, y, width, height)` in pixels."""

# pycocotools counts pixels in 32 bits.
_MAX_PIXELS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Video:
    """A video and its frames' files, relative to the frames' root.

    There is a file for each of the `length` frames, or one video file that holds them all, or no
    file is named.
    """

    id: int
    width: int
    height: int
    length: int
    file_names: tuple[str, ...]
    source_id: str | None = None

    @property
    def video_file(self) -> str | None:
        """The one file that holds all frames; None where each has its own, or none is named."""
        return self.file_names[0] if is_one_video(self.file_names) else None


@dataclasses.dataclass(frozen=True)
class Track:
    """An instance through a video: for each frame a compressed RLE, or None where it is absent."""

    id: int
    video_id: int
    category_id: int
    segmentations: tuple[Rle | None, ...]
    boxes: tuple[Box | None, ...]
    areas: tuple[float | None, ...]
    iscrowd: bool = False
    extents: Extents | None = dataclasses.field(
        default=None, init=False, compare=False, repr=False
    )
    """Of each mask, if the reader measured them. Who replaces the masks loses the measures."""

    @property
    def has_pixels(self) -> bool:
        """Whether a mask of any frame has a pixel: without one no result can find the instance."""
        return any(rle and rle_area(rle) for rle in self.segmentations)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A predicted track: for each frame a compressed RLE or None, and how sure it is."""

    video_id: int
    category_id: int
    score: float
    segmentations: tuple[Rle | None, ...]
    extents: Extents | None = dataclasses.field(
        default=None, init=False, compare=False, repr=False
    )
    """As those of a track."""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a file says: videos and class names by their ids, and the tracks in its order."""

    videos: dict[int, Video]
    categories: dict[int, str]
    tracks: tuple[Track, ...]

    def tracks_of(self, video_id: int) -> tuple[Track, ...]:
        """The tracks of one video, in the file's order; none for a video without any."""
        return self._by_video.get(video_id, ())

    @cached_property
    def sources(self) -> dict[int, str]:
        """What each video was cut from: see `sources_of`."""
        return sources_of(self.videos)

    @cached_property
    def _by_video(self) -> dict[int, tuple[Track, ...]]:
        found: dict[int, list[Track]] = {}
        for track in self.tracks:
            found.setdefault(track.video_id, []).append(track)
        return {video_id: tuple(tracks) for video_id, tracks in found.items()}


def load_annotations(
    path: Path | str, *, quarantined: list[Quarantined] | None = None, watch: Watch | None = None
) -> Annotations:
    """Read a YouTube-VIS annotation file.

    Masks may be compressed or uncompressed RLE, polygons, or null (an empty list is read as null).
    Boxes and areas that the file leaves out are computed from the masks.

    Args:
        path: the JSON file.
        quarantined: where given, an entry that cannot be used is appended here with its reason,
            and reading goes on without it and without what refers to it.
        watch: receives how far the reading is.

    Raises:
        UserError: the file is not such a file; or, without `quarantined`, an entry of it is wrong.
    """
    return parse_annotations(read_json(path, watch), path, quarantined=quarantined, watch=watch)


def parse_annotations(
    content: Any,
    path: Path | str,
    *,
    quarantined: list[Quarantined] | None = None,
    watch: Watch | None = None,
    masks: bool = True,
) -> Annotations:
    """What `load_annotations` reads, from the JSON of `path`; without `masks`, all but those."""
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: {kind(content)} is not allowed "
            '(an object with "videos", "categories" and "annotations"; is this a results file?)'
        )
    for key in ("videos", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f'{path}: "{key}": {kind(content.get(key))} is not allowed (a list of entries)'
            )
    videos: dict[int, Video] = {}
    categories: dict[int, str] = {}
    tracks: dict[int, Track] = {}

    def add_video(entry: Mapping[str, Any]) -> None:
        video = _video(entry)
        once(video.id, videos)
        videos[video.id] = video

    def add_category(entry: Mapping[str, Any]) -> None:
        category_id, name = integer(entry, "id"), entry.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: {short(name)} is not allowed (text)")
        once(category_id, categories)
        categories[category_id] = name

    def add_track(entry: Mapping[str, Any]) -> None:
        track = _track(entry, videos, categories, masks)
        once(track.id, tracks)
        tracks[track.id] = track

    read_entries(path, "videos", content["videos"], add_video, quarantined, watch)
    read_entries(path, "categories", content["categories"], add_category, quarantined, watch)
    read_entries(path, "annotations", content["annotations"], add_track, quarantined, watch)
    return Annotations(videos, categories, tuple(tracks.values()))


def save_annotations(
    path: Path | str, annotations: Annotations, info: Mapping[str, Any] | None = None
) -> None:
    """Write a YouTube-VIS annotation file, whole or not at all."""
    videos = [
        {
            "id": video.id,
            "width": video.width,
            "height": video.height,
            "length": video.length,
            "file_names": list(video.file_names),
        }
        | ({} if video.source_id is None else {"source_id": video.source_id})
        for video in annotations.videos.values()
    ]
    categories = [{"id": key, "name": name} for key, name in annotations.categories.items()]
    tracks = [
        {
            "id": track.id,
            "video_id": track.video_id,
            "category_id": track.category_id,
            "iscrowd": int(track.iscrowd),
            "height": annotations.videos[track.video_id].height,
            "width": annotations.videos[track.video_id].width,
            "length": len(track.segmentations),
            "segmentations": _with_text(track.segmentations),
            "bboxes": track.boxes,
            "areas": track.areas,
        }
        for track in annotations.tracks
    ]
    write_json(
        path,
        {
            "info": dict(info or {}),
            "videos": videos,
            "categories": categories,
            "annotations": tracks,
        },
    )


def load_results(
    path: Path | str,
    annotations: Annotations,
    *,
    quarantined: list[Quarantined] | None = None,
    watch: Watch | None = None,
) -> list[Prediction]:
    """Read a results file: a list of `{video_id, category_id, score, segmentations}`.

    Args:
        path: the JSON file.
        annotations: the ground truth, whose videos and categories the results may name.
        quarantined: as in `load_annotations`.
        watch: likewise.

    Raises:
        UserError: the file is not such a file; or, without `quarantined`, an entry of it is wrong.
    """
    content = read_json(path, watch)
    if not isinstance(content, list):
        raise UserError(
            f"{path}: {kind(content)} is not allowed (a list of results; is this an "
            "annotation file?)"
        )
    predictions: list[Prediction] = []

    def add(entry: Mapping[str, Any]) -> None:
        video = annotations.videos[known(entry, "video_id", annotations.videos)]
        category_id = known(entry, "category_id", annotations.categories)
        score = entry.get("score")
        if not is_finite(score):
            raise ValueError(f"score: {short(score)} is not allowed (a finite number)")
        segmentations, extents = _segmentations(entry, video)
        prediction = Prediction(video.id, category_id, float(score), segmentations)
        object.__setattr__(prediction, "extents", extents)
        predictions.append(prediction)

    read_entries(path, "results", content, add, quarantined, watch)
    return predictions


def save_results(path: Path | str, predictions: list[Prediction]) -> None:
    """Write a results file, whole or not at all."""
    write_json(
        path,
        [
            {
                "video_id": prediction.video_id,
                "category_id": prediction.category_id,
                "score": prediction.score,
                "segmentations": _with_text(prediction.segmentations),
            }
            for prediction in predictions
        ],
    )


def _video(entry: Mapping[str, Any]) -> Video:
    video_id = integer(entry, "id")
    width, height = integer(entry, "width", low=1), integer(entry, "height", low=1)
    if width * height > _MAX_PIXELS:
        raise ValueError(f"width, height: {width} × {height} is more than {_MAX_PIXELS} pixels")
    names = entry.get("file_names")
    if names is None and "length" in entry:
        names = []
    if not isinstance(names, list):
        raise ValueError(f"file_names: {short(names)} is not allowed (a list of paths)")
    for index, name in enumerate(names):
        try:
            inside(name)
        except ValueError as error:
            raise ValueError(f"file_names[{index}]: {error}") from None
    one_video = is_one_video(names)
    if one_video and "length" not in entry:
        raise ValueError(f"length: missing ({short(names[0])} holds all frames; say how many)")
    length = integer(entry, "length", low=1) if "length" in entry else len(names)
    if length < 1 or (len(names) not in (0, length) and not one_video):
        raise ValueError(f"length: {length} differs from the {len(names)} file_names")
    source_id = entry.get("source_id")
    if isinstance(source_id, bool) or not isinstance(source_id, str | int | None):
        raise ValueError(f"source_id: {short(source_id)} is not allowed (text or a number)")
    return Video(
        id=video_id,
        width=width,
        height=height,
        length=length,
        file_names=tuple(names),
        source_id=None if source_id is None else str(source_id),
    )


def _track(
    entry: Mapping[str, Any],
    videos: Mapping[int, Video],
    categories: Mapping[int, str],
    masks: bool,
) -> Track:
    track_id = integer(entry, "id")
    video = videos[known(entry, "video_id", videos)]
    category_id = known(entry, "category_id", categories)
    iscrowd = entry.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise ValueError(f"iscrowd: {short(iscrowd)} is not allowed (0 or 1)")
    if not masks and isinstance(entry.get("segmentations"), list):
        entry = {**entry, "segmentations": [None] * len(entry["segmentations"])}
    segmentations, extents = _segmentations(entry, video)
    boxes, areas = entry.get("bboxes"), entry.get("areas")
    if boxes is None:
        boxes = [None] * video.length
    if areas is None:
        areas = [
            None if rle is None else float(area)
            for rle, area in zip(segmentations, extents[0].tolist(), strict=True)
        ]
    for name, values in (("bboxes", boxes), ("areas", areas)):
        if not isinstance(values, list) or len(values) != video.length:
            raise ValueError(f"{name}: {sized(values)} for a video of {video.length} frames")
    track = Track(
        id=track_id,
        video_id=video.id,
        category_id=category_id,
        segmentations=segmentations,
        boxes=tuple(
            _box(box, rle, frame)
            for frame, (box, rle) in enumerate(zip(boxes, segmentations, strict=True))
        ),
        areas=tuple(_checked_area(area, frame) for frame, area in enumerate(areas)),
        iscrowd=bool(iscrowd),
    )
    object.__setattr__(track, "extents", extents)
    return track


def _segmentations(
    entry: Mapping[str, Any], video: Video
) -> tuple[tuple[Rle | None, ...], Extents]:
    segmentations = entry.get("segmentations")
    if not isinstance(segmentations, list) or len(segmentations) != video.length:
        raise ValueError(
            f"segmentations: {sized(segmentations)} for video {video.id} of {video.length} frames"
        )
    try:
        return measured_rles(segmentations, video.height, video.width)
    except ValueError as error:
        raise ValueError(f"segmentations, {error}") from None


def _box(box: object, rle: Rle | None, frame: int) -> Box | None:
    if box is None:
        return None if rle is None else rle_to_box(rle)
    if isinstance(box, list) and len(box) == 4 and all(is_finite(value) for value in box):
        x, y, width, height = (float(value) for value in box)
        if width >= 0 and height >= 0:
            return x, y, width, height
    raise ValueError(f"bboxes[{frame}]: {short(box)} is not allowed ([x, y, width, height])")


def _checked_area(area: Any, frame: int) -> float | None:
    if area is None or (is_finite(area) and area >= 0):
        return area
    raise ValueError(f"areas[{frame}]: {short(area)} is not allowed (a number ≥ 0, or null)")


def _with_text(segmentations: tuple[Rle | None, ...]) -> list[Rle | None]:
    """Counts as text: JSON has no bytes."""
    return [
        rle
        if rle is None or isinstance(rle["counts"], str)
        else {**rle, "counts": rle["counts"].decode("ascii")}
        for rle in segmentations
    ]


def resolve_frame(root: Path | str, file_name: str) -> Path:
    """The path of a frame below the frames' root.

    Raises:
        UserError: the name is empty, absolute, or steps out of the root.
    """
    try:
        return Path(root) / inside(file_name)
    except ValueError as error:
        raise UserError(f"{root}: file_name: {error}") from None


def inside(file_name: object) -> str:
    """The name itself, refused with a ValueError if it could lead out of a folder."""
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise ValueError(f"{short(file_name)} is not allowed (a path below the frames' root)")
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:
        raise ValueError(f"{short(file_name)} is no name that a file can have") from None
    for form in (PurePosixPath(file_name), PureWindowsPath(file_name)):
        if form.is_absolute() or form.drive or form.root or ".." in form.parts:
            raise ValueError(
                f"{short(file_name)} leaves the frames' root (give a path below it, without ..)"
            )
    return file_name


def is_one_video(file_names: Sequence[str]) -> bool:
    """Whether the names are that of one video file, rather than of images."""
    suffixes = [PurePosixPath(name).suffix.lower() for name in file_names[:2]]
    return len(suffixes) == 1 and suffixes[0] in VIDEO_SUFFIXES


def fold_source(name: str) -> str:
    """A source's name without what differs by accident: case, outer spaces, the form of accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def sources_of(videos: Mapping[int, Video]) -> dict[int, str]:
    """What each video was cut from; one that does not say is its own source.

    Two entries of the same frames are one source, and so are names that `fold_source` makes one:
    all have the name of the first. A slash keeps a path apart from a name.
    """
    first: dict[str, str] = {}
    found = {}
    for number in sorted(videos):
        video = videos[number]
        name = video.source_id
        if name is None:
            name = f"/{video.file_names[0]}" if video.file_names else f"/video {number}"
        found[number] = first.setdefault(fold_source(name), name)
    return found
