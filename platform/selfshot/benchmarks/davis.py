"""DAVIS-style folders as a benchmark: frames, and an indexed PNG of masks for each of them.

    frames/bear/00000.jpg …     one folder of images a sequence, however deep
    masks/bear/00000.png …      of the same names; a pixel holds the number of its object

0 is background and 255 is void: neither is an object. A frame without a PNG is no frame of the
video.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from selfshot.benchmarks.annotated import Found, OnMessage, in_threads
from selfshot.benchmarks.assembly import Shared, assemble
from selfshot.benchmarks.csv_files import check_columns, csv_rows
from selfshot.benchmarks.folder import name_splits
from selfshot.benchmarks.manifest import Benchmark
from selfshot.data.images import image_names, image_size, read_indices
from selfshot.data.video import VideoError
from selfshot.data.ytvis import Annotations, Track, Video
from selfshot.errors import UserError
from selfshot.files import digest_bytes, digest_file
from selfshot.ops.masks import Rle, encode_rle, rle_area, rle_to_box

VOID = 255
MASK_SUFFIXES = (".png",)
COLUMNS = ("sequence", "object", "class")

Classes = Mapping[tuple[str, int], str]
Sources = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class SequenceMasks:
    """A sequence as it was read.

    Attributes:
        frames: file names below the frames' root.
        height, width: pixels.
        objects: masks of each object by its number, one a frame.
        digest: SHA-256 over its masks' names and bytes.
    """

    frames: tuple[str, ...]
    height: int
    width: int
    objects: dict[int, list[Rle | None]]
    digest: str


def build_davis(
    folder: Path,
    *,
    frames: Path,
    masks: Path,
    classes: Path | None,
    val_classes: Sequence[str],
    test_classes: Sequence[str],
    on_message: OnMessage,
    **shared: Any,
) -> Benchmark:
    """Write the manifest of DAVIS-style sequences into `folder`; splits are those of `folder`.

    Args:
        folder: where the manifest and the masks as YouTube-VIS JSON are written.
        frames: folder of the sequences' folders of images.
        masks: folder of the sequences' folders of PNGs.
        classes: CSV with columns sequence, object, class and, if wanted, source; None: a
            sequence's objects are of the class that its name says, without digits and hyphens at
            its end, and it is its own source.
        val_classes: unseen classes on which choices are made.
        test_classes: unseen classes that are scored.
        on_message: receives what was found.
        **shared: corpus, corpus_labels, seed, height, width and num_frames, as `Shared` has
            them.

    Raises:
        UserError: there is no sequence, the CSV cannot be used or does not name an object, or as
            `assemble` says.
    """
    for field, root in (("frames", frames), ("masks", masks)):
        if not root.is_dir():
            raise UserError(
                f"benchmark.{field}: {root} is no folder; give the path of one",
                setting=f"benchmark.{field}",
            )
    named, sources = (None, {}) if classes is None else read_classes(classes)
    found = read_sequences(frames, masks, named, on_message, sources)
    if classes is not None:
        found.inputs["classes"] = digest_file(classes)
    split_of = name_splits(found.annotations, val_classes, test_classes, found.name)
    return assemble(
        folder,
        found,
        Shared(frames=frames, **shared),
        name="davis",
        kind="davis",
        split_of=split_of,
        on_message=on_message,
    )


def read_classes(path: Path) -> tuple[dict[tuple[str, int], str], dict[str, str]]:
    """The class of each object: `(sequence, object)` → class; and sequence → source if named.

    Raises:
        UserError: the CSV cannot be read, lacks a column, or a line of it is wrong.
    """
    found: dict[tuple[str, int], str] = {}
    sources: dict[str, str] = {}
    with csv_rows(path, "benchmark.classes") as rows:
        check_columns(rows, COLUMNS, "benchmark.classes", path)
        for row in rows:
            where = f"benchmark.classes: {path}, line {rows.line_num}"
            sequence, number, name = ((row[column] or "").strip() for column in COLUMNS)
            if not (number.isdecimal() and len(number) < 9 and 0 < int(number) < VOID):
                raise UserError(
                    f"{where}: object {number!r} is not allowed (an integer from 1 to "
                    f"{VOID - 1}: its number in the PNGs)",
                    setting="benchmark.classes",
                )
            if not sequence or not name:
                raise UserError(
                    f"{where}: an empty sequence or class; fill it in", setting="benchmark.classes"
                )
            if found.setdefault((sequence, int(number)), name) != name:
                raise UserError(
                    f"{where}: object {number} of {sequence} is a {name} here and a "
                    f"{found[sequence, int(number)]} above; keep one line",
                    setting="benchmark.classes",
                )
            source = (row.get("source") or "").strip()
            if source and sources.setdefault(sequence, source) != source:
                raise UserError(
                    f"{where}: {sequence} is of the source {source} here and of "
                    f"{sources[sequence]} above; a sequence has one",
                    setting="benchmark.classes",
                )
    return found, sources


def class_of_name(sequence: str) -> str:
    """The class that a sequence's name says: `dogs-jump-02` shows dogs-jump."""
    name = sequence.rpartition("/")[2]
    return re.sub(r"[\d-]+$", "", name) or name


def read_sequences(
    frames: Path,
    masks: Path,
    classes: Classes | None,
    on_message: OnMessage,
    sources: Sources = MappingProxyType({}),
) -> Found:
    """Every sequence below `masks` as an annotated video.

    A sequence with a mask that cannot be used is faulty as a whole.

    Raises:
        UserError: there is none, none can be used, or an object has no class.
    """
    names = sorted(
        {
            path.parent.relative_to(masks).as_posix()
            for path in masks.rglob("*")
            if path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith(".")
        }
        - {"."}
    )
    if not names:
        raise UserError(
            f"benchmark.masks: {masks} holds no folder with PNGs (one folder of indexed PNGs a "
            "sequence)",
            setting="benchmark.masks",
        )

    def read(name: str) -> SequenceMasks | str:
        try:
            return _read_sequence(frames, masks, name)
        except VideoError as error:
            place = Path(error.path)
            return f"{place.parent.name}/{place.name}: {error.reason}"

    found = Found(f"{masks.parent.name}/{masks.name}", Annotations({}, {}, ()))
    digests: list[str] = []
    read_all = in_threads(read, names, "sequences read", on_message)
    tracks: list[tuple[int, str, list[Rle | None]]] = []
    videos: dict[int, Video] = {}
    unnamed: list[str] = []
    for name, made in zip(names, read_all, strict=True):
        if isinstance(made, str):
            found.quarantined.append((f"sequence {name}", made))
            found.unread += 1
            continue
        number = len(videos) + 1
        last = name.rpartition("/")[2]
        source = sources.get(name) or sources.get(last) or last
        digests.append(made.digest)
        videos[number] = Video(
            number, made.width, made.height, len(made.frames), made.frames, source_id=source
        )
        for index, rles in sorted(made.objects.items()):
            class_name = _class_of(name, index, classes)
            if class_name is None:
                unnamed.append(f"object {index} of {name}")
            else:
                tracks.append((number, class_name, rles))
    if not videos:
        (what, reason), *others = found.quarantined
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(
            f"benchmark.masks: none of the sequences below {masks} can be used: {what}: "
            f"{reason}{more}",
            setting="benchmark.masks",
        )
    if unnamed:
        more = f" and {len(unnamed) - 5} more" if len(unnamed) > 5 else ""
        raise UserError(
            f"benchmark.classes: no line names {', '.join(unnamed[:5])}{more}; add a line for each "
            "(sequence,object,class), as what is not named would be taught as background",
            setting="benchmark.classes",
        )
    found.inputs["masks"] = digest_bytes("".join(digests).encode())
    categories = dict(enumerate(sorted({name for _, name, _ in tracks}), start=1))
    numbers = {name: i for i, name in categories.items()}
    found.annotations = Annotations(
        videos,
        categories,
        tuple(
            _track(i, video, numbers[name], rles)
            for i, (video, name, rles) in enumerate(tracks, start=1)
        ),
    )
    return found


def _class_of(sequence: str, number: int, classes: Classes | None) -> str | None:
    if classes is None:
        return class_of_name(sequence)
    return classes.get((sequence, number)) or classes.get((sequence.rpartition("/")[2], number))


def _track(number: int, video: int, category: int, rles: list[Rle | None]) -> Track:
    return Track(
        id=number,
        video_id=video,
        category_id=category,
        segmentations=tuple(rles),
        boxes=tuple(None if rle is None else rle_to_box(rle) for rle in rles),
        areas=tuple(None if rle is None else float(rle_area(rle)) for rle in rles),
    )


def _read_sequence(frames: Path, masks: Path, name: str) -> SequenceMasks:
    """One sequence, in the natural order of its masks' names.

    Raises:
        VideoError: a frame is missing, or a PNG is not indexed or of another size.
    """
    there: dict[str, str] = {}
    for frame in image_names(frames / name):
        there[Path(frame).stem] = frame
    files: list[str] = []
    size: tuple[int, int] | None = None
    objects: dict[int, list[Rle | None]] = {}
    lines: list[str] = []
    for index, mask in enumerate(image_names(masks / name, MASK_SUFFIXES)):
        path, stem = masks / name / mask, Path(mask).stem
        if stem not in there:
            raise VideoError(f"no frame {stem} in {frames / name}", path)
        frame_path = frames / name / there[stem]
        size = size or image_size(frame_path)
        pixels = read_indices(path)
        if pixels.shape != size:
            raise VideoError(
                f"the mask is {pixels.shape[1]} × {pixels.shape[0]} pixels, and the frame has "
                f"{size[1]} × {size[0]}",
                path,
            )
        lines.append(f"{name}/{path.name}\0{digest_file(path)}\n")
        files.append(frame_path.relative_to(frames).as_posix())
        for number in np.unique(pixels).tolist():
            if number not in (0, VOID):
                rles = objects.setdefault(number, [None] * index)
                rles.append(encode_rle(pixels == number))
        for rles in objects.values():
            rles += [None] * (index + 1 - len(rles))
    assert size is not None, "a sequence has a PNG: that is how it was found"
    digest = digest_bytes("".join(lines).encode())
    return SequenceMasks(tuple(files), size[0], size[1], objects, digest)
