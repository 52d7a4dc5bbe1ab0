"""Real videos as a benchmark: a YouTube-VIS file with its frames, and a folder of clips.

Nothing is copied: the manifest points to where frames and clips are. Whatever is left out is named
in `set_aside` with its reason.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from selfshot.benchmarks.folder_corpus import OnMessage, corpus_rows, in_threads
from selfshot.benchmarks.folder_split import SIDES, Split, label, split_videos
from selfshot.benchmarks.manifest import Benchmark, write_corpus, write_corpus_labels
from selfshot.config.errors import UserError
from selfshot.data.clips import ClipReader
from selfshot.data.frames import FrameReader
from selfshot.data.json_entries import read_json
from selfshot.data.ytvis import (
    Annotations,
    SetAside,
    load_annotations,
    save_annotations,
)


def fingerprint(
    annotations: Path, frames: Path, corpus: Path, corpus_labels: Path | None = None
) -> str:
    """A digest that changes when the inputs do: the texts' bytes, the other files' size and time.

    Raises:
        UserError: the JSON cannot be read.
    """
    digest = hashlib.sha256()
    for field, path in (("annotations", annotations), ("corpus_labels", corpus_labels)):
        if path is None:
            continue
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"benchmark.{field}: {path}: {error.strerror}") from None
    for root in (frames, corpus):
        for parent, folders, names in os.walk(root):
            folders.sort()
            for one in sorted(os.path.join(parent, name) for name in names):
                try:
                    state = os.stat(one)
                    facts = f"{state.st_size} {state.st_mtime_ns}"
                except OSError:
                    facts = "unreadable"
                name = os.fsencode(os.path.relpath(one, root))
                digest.update(name + b"\0" + facts.encode() + b"\0")
        digest.update(b"\0")
    return digest.hexdigest()


def build_folder(
    folder: Path,
    *,
    annotations: Path,
    frames: Path,
    corpus: Path,
    corpus_labels: Path | None,
    seed: int,
    height: int,
    width: int,
    num_frames: int,
    val_classes: Sequence[str],
    test_classes: Sequence[str],
    on_message: OnMessage,
) -> Benchmark:
    """Write the manifest of a benchmark of real videos into `folder`.

    Every class that is not named is seen. A video that shows an unseen class never trains, and
    neither does another video of its source. The sources of an unseen class are dealt to queries
    and oracle supports, so that no support comes from its query's source; a video asks for one
    class only.

    Args:
        folder: where the manifest is written.
        annotations: YouTube-VIS JSON.
        frames: what its file names are relative to.
        corpus: searched recursively for unlabelled clips.
        corpus_labels: CSV with columns clip, rough_label and, optionally, source; for diagnosis.
        seed: of the deal of sources.
        height: of a clip as the model sees it, in pixels.
        width: likewise.
        num_frames: of such a clip.
        val_classes: unseen classes on which choices are made.
        test_classes: unseen classes that are scored.
        on_message: is told what was found, a line at a time.

    Raises:
        UserError: an input cannot be read, a class is not known, or a side that is needed has
            nothing left.
    """
    for field, path in (("frames", frames), ("corpus", corpus)):
        if not path.is_dir():
            raise UserError(f"benchmark.{field}: {path} is no folder; give the path of one")
    loaded, faults, set_aside, unread = _read_annotations(annotations)
    unseen = {"val": tuple(dict.fromkeys(val_classes)), "test": tuple(dict.fromkeys(test_classes))}
    side_of = _sides_of_classes(loaded, unseen, annotations.name)
    on_message(
        f"{annotations.name}: {len(loaded.videos)} videos, {len(loaded.tracks)} instances of "
        f"{len(loaded.categories)} classes"
    )
    faults |= _frame_faults(loaded, frames, on_message)
    set_aside += [(label(loaded, video), reason) for video, reason in sorted(faults.items())]
    reader = ClipReader(loaded, frames, num_frames=num_frames, height=height, width=width)
    split = split_videos(reader, side_of, faults, seed)
    set_aside += split.set_aside
    _check_enough(split, unseen, annotations.name)

    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = corpus_rows(corpus, corpus_labels, set_aside, on_message)
    write_corpus(folder, rows)
    if corpus_labels is not None:
        write_corpus_labels(folder, labels)
    save_annotations(folder / "annotations.json", loaded, {"description": annotations.name})

    used = {side: split.videos(side) for side in SIDES}
    num_videos = len(loaded.videos) + unread
    counts = {
        "videos": num_videos,
        "tracks": len(loaded.tracks),
        "corpus_clips": len(rows),
        "corpus_classes": len(set(labels.values()) - {""}),
        "videos_of_seen_and_unseen": split.mixed,
        "videos_set_aside": num_videos - sum(map(len, used.values())),
    }
    classes = {"train": tuple(sorted(split.supports["train"])), **unseen}
    for side in SIDES:
        helpers = {video for videos in split.supports[side].values() for video in videos}
        counts |= {
            f"{side}_classes": len(classes[side]),
            f"{side}_videos": len(used[side]),
            f"{side}_queries": len(split.queries[side]),
            f"{side}_supports": len(helpers),
        }
        on_message(
            f"{side}: {len(classes[side])} classes, {len(used[side])} videos, "
            f"{len(split.queries[side])} queries, {len(helpers)} supports"
        )
    if not split.queries["val"]:
        on_message("val: no class has readable videos of two sources, so nothing is chosen on it")
    if split.mixed:
        on_message(f"{split.mixed} videos show seen and unseen classes; none of them trains")
    if set_aside:
        on_message(
            f"set aside: {len(set_aside)} entries of benchmark.json, "
            f"{counts['videos_set_aside']} of {num_videos} videos as a whole"
        )
    benchmark = Benchmark(
        name="folder",
        kind="folder",
        seed=seed,
        height=height,
        width=width,
        num_frames=num_frames,
        classes=classes,
        queries={side: tuple(pairs) for side, pairs in split.queries.items()},
        supports={
            side: {name: tuple(videos) for name, videos in by_class.items()}
            for side, by_class in split.supports.items()
        },
        frames_root=str(frames.resolve()),
        corpus_root=str(corpus.resolve()),
        counts=counts,
        set_aside=tuple(set_aside),
    )
    benchmark.save(folder)
    return benchmark


def _read_annotations(
    path: Path,
) -> tuple[Annotations, dict[int, str], list[tuple[str, str]], int]:
    """The file, faulty videos, entries that were set aside, and how many of these are videos.

    A video with an instance that cannot be read is faulty as a whole: what is not annotated would
    be taught as background, and an unseen class might train.
    """
    entries: list[SetAside] = []
    loaded = load_annotations(path, set_aside=entries)
    raw = read_json(path)["annotations"] if entries else []
    faults: dict[int, str] = {}
    for entry in entries:
        found = re.match(r"annotations\[(\d+)\]", entry.entry)
        track = raw[int(found[1])] if found else None
        video = track.get("video_id") if isinstance(track, dict) else None
        if isinstance(video, int) and video in loaded.videos:
            faults[video] = f"one of its instances cannot be read ({entry.entry}: {entry.reason})"
    unread = sum(entry.entry.startswith("videos[") for entry in entries)
    return loaded, faults, [(entry.entry, entry.reason) for entry in entries], unread


def _sides_of_classes(
    annotations: Annotations, unseen: dict[str, tuple[str, ...]], file_name: str
) -> dict[str, str]:
    """The side of each class of the file.

    Raises:
        UserError: two classes share a name, or a name is none of the file's classes.
    """
    for name, count in Counter(annotations.categories.values()).items():
        if count > 1:
            ids = [i for i, other in annotations.categories.items() if other == name]
            raise UserError(
                f"{file_name}: categories {ids} are all named {name!r}; make them one category"
            )
    side_of = dict.fromkeys(sorted(annotations.categories.values()), "train")
    folded = {name.casefold(): name for name in side_of}
    problems = []
    for side, names in unseen.items():
        for name in names:
            if name in side_of:
                side_of[name] = side
                continue
            close = difflib.get_close_matches(name.casefold(), folded, 3, 0.5)
            nearest = " or ".join(repr(folded[one]) for one in close)
            hint = f" (did you mean {nearest}?)" if nearest else ""
            problems.append(f"benchmark.{side}_classes: {name!r} is no class of it{hint}")
    if problems:
        raise UserError("; ".join(problems) + f"; {file_name} has {', '.join(side_of)}")
    return side_of


def _frame_faults(annotations: Annotations, frames: Path, on_message: OnMessage) -> dict[int, str]:
    """Videos of which a frame is missing or cannot be decoded, with the reason."""
    reader = FrameReader(frames)
    numbers = sorted(annotations.videos)
    videos = [annotations.videos[number] for number in numbers]
    try:
        faults = list(in_threads(reader.fault, videos, "videos checked", on_message))
    finally:
        reader.close()
    return {
        number: reason for number, reason in zip(numbers, faults, strict=True) if reason is not None
    }


def _check_enough(split: Split, unseen: dict[str, tuple[str, ...]], file_name: str) -> None:
    """Refuse a benchmark that cannot train or cannot be scored.

    Raises:
        UserError: no seen class, no training query or no test query is left.
    """
    able = ", ".join(split.two_sources) or "none"
    mend = f"classes of {file_name} with readable videos of two sources, as both need: {able}"
    if not split.supports["train"]:
        raise UserError(
            "benchmark: no seen class is left to train on beside the "
            f"{sum(map(len, unseen.values()))} of val_classes and test_classes and the videos "
            f"that show them; name fewer there ({mend})"
        )
    if not split.queries["train"]:
        raise UserError(
            "benchmark: no seen class is left with a query and a support of two sources; name "
            f"fewer in val_classes and test_classes ({mend})"
        )
    if not split.queries["test"]:
        raise UserError(
            f"benchmark.test_classes: no query of {', '.join(unseen['test'])} is left; name other "
            f"classes or add videos ({mend})"
        )
