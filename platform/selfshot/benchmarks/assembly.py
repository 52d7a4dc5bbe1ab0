"""Annotated videos and clips → a benchmark folder: what the builders of real videos share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.annotated import (
    Found,
    OnMessage,
    check_frames,
    join_same_files,
    without_pixels,
)
from selfshot.benchmarks.corpus import gather_corpus
from selfshot.benchmarks.finish import finish_benchmark
from selfshot.benchmarks.leakage import query_files, query_sources
from selfshot.benchmarks.manifest import Benchmark, iterate_corpus
from selfshot.benchmarks.split import SPLITS, UNSEEN, Splits, label, split_videos
from selfshot.data.clips import ClipReader
from selfshot.data.images import is_sorted_as_text
from selfshot.data.ytvis import save_annotations
from selfshot.errors import UserError
from selfshot.files import digest_file

SHOWN_REASONS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """The settings of every benchmark that is read.

    Attributes:
        frames: what the videos' file names are relative to.
        corpus: a folder of clips, or of a corpus manifest.
        corpus_labels: CSV with columns clip, rough_label and, optionally, source; for diagnosis.
        seed: of every draw.
        height, width: of a clip as the model sees it, in pixels.
        num_frames: of such a clip.
        val_share: see `split_videos`.
    """

    frames: Path
    corpus: Path
    corpus_labels: Path | None
    seed: int
    height: int
    width: int
    num_frames: int
    val_share: float = 0.0


def assemble(
    folder: Path,
    found: Found,
    shared: Shared,
    *,
    name: str,
    kind: str,
    split_of: Mapping[str, str],
    one_source_of_same_files: bool = False,
    on_message: OnMessage,
) -> Benchmark:
    """Check, split, list the corpus and write the manifest of `found` into `folder`.

    Args:
        folder: where it is written; nothing is copied into it.
        found: the videos.
        shared: what is made of them.
        name: of the benchmark.
        kind: its builder.
        split_of: the split of each class, or `UNSEEN`.
        one_source_of_same_files: videos of the same files, under two names, are of one source;
            otherwise they are a leak where the sources that they claim bring them apart.
        on_message: receives what was found, a line at a time.

    Raises:
        UserError: an input cannot be read, a split that is needed has nothing left, or it leaks.
    """
    loaded, frames = found.annotations, shared.frames
    size: dict[str, Any] = {
        name: getattr(shared, name) for name in ("height", "width", "num_frames")
    }
    for field, path in (("frames", frames), ("corpus", shared.corpus)):
        if not path.is_dir():
            raise UserError(
                f"benchmark.{field}: {path} is no folder; give the path of one",
                setting=f"benchmark.{field}",
            )
    on_message(
        f"{found.name}: {len(loaded.videos)} videos, {len(loaded.tracks)} instances of "
        f"{len(loaded.categories)} classes"
    )
    mixed = [one.id for one in loaded.videos.values() if is_sorted_as_text(one.file_names)]
    if mixed:
        on_message(
            f"{len(mixed)} videos list their frames as 0, 1, 10, 2, such as video {mixed[0]}: if "
            "that is not their order in time, sort file_names and segmentations by number"
        )
    check_frames(found, frames, on_message)
    if one_source_of_same_files:
        join_same_files(found, on_message)
        loaded = found.annotations
    faults = [(label(loaded, video), reason) for video, reason in sorted(found.faults.items())]
    reader = ClipReader(loaded, frames, **size)
    # With the instances that have no pixel: a video that holds one of an unseen class never trains.
    splits = split_videos(reader, split_of, found.faults, shared.seed, val_share=shared.val_share)
    unseen = _unseen(split_of)
    pixelless: list[tuple[str, str]] = []
    num_tracks = len(loaded.tracks)
    loaded = without_pixels(loaded, pixelless, on_message)
    lost = [*found.quarantined, *faults, *pixelless]
    check_enough(splits, unseen, found, UNSEEN in split_of.values(), lost)
    classes = {"train": tuple(sorted(splits.supports["train"])), **unseen}
    queries = {split: tuple(pairs) for split, pairs in splits.queries.items()}
    supports = {
        split: {name: tuple(videos) for name, videos in by_class.items()}
        for split, by_class in splits.supports.items()
    }
    quarantined = [*lost, *splits.quarantined]
    benchmark = Benchmark(
        name=name,
        kind=kind,
        seed=shared.seed,
        **size,
        classes=classes,
        queries=queries,
        supports=supports,
    )

    folder.mkdir(parents=True, exist_ok=True)
    gathered = gather_corpus(
        shared.corpus,
        folder,
        corpus_labels=shared.corpus_labels,
        sources=query_sources(benchmark, loaded),
        files=query_files(benchmark, found.files),
        quarantined=quarantined,
        on_message=on_message,
    )
    inputs = {**found.inputs, "corpus": gathered.digest}
    if shared.corpus_labels is not None:
        inputs["corpus_labels"] = digest_file(shared.corpus_labels)
    save_annotations(folder / "annotations.json", loaded, {"description": found.name})

    num_videos = len(loaded.videos) + found.unread
    used = {split: splits.videos(split) for split in SPLITS}
    counts = {
        "videos": num_videos,
        "tracks": num_tracks,
        "tracks_without_pixels": len(pixelless),
        "corpus_clips": gathered.clips,
        "corpus_clips_of_query_sources": gathered.left_out,
        "corpus_classes": gathered.classes,
        "videos_of_seen_and_unseen": splits.mixed,
        "videos_quarantined": num_videos - sum(map(len, used.values())),
        **count_splits(splits, classes, on_message),
    }
    if not splits.queries["val"]:
        on_message("val: no class has readable videos of two sources, so nothing is chosen on it")
    if splits.mixed:
        on_message(f"{splits.mixed} videos show seen and unseen classes; none of them trains")
    if quarantined:
        on_message(
            f"quarantined: {len(quarantined)} entries of benchmark.json, "
            f"{counts['videos_quarantined']} of {num_videos} videos as a whole"
        )
    whole = dataclasses.replace(
        benchmark,
        frames_root=str(frames.resolve()),
        corpus_root=gathered.root,
        counts=counts,
        inputs=inputs,
        quarantined=tuple(quarantined),
    )
    return finish_benchmark(folder, whole, loaded, iterate_corpus(folder), found.files)


def _unseen(split_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The classes of val and of test; a class whose videos are dealt is one of both."""
    return {
        one: tuple(name for name, split in split_of.items() if split in (one, UNSEEN))
        for one in ("val", "test")
    }


def count_splits(
    splits: Splits, classes: Mapping[str, Sequence[str]], on_message: OnMessage
) -> dict[str, int]:
    """Classes, videos, queries and supports of each split, which are reported as well."""
    counts: dict[str, int] = {}
    for split in SPLITS:
        videos = splits.videos(split)
        helpers = {video for members in splits.supports[split].values() for video in members}
        counts |= {
            f"{split}_classes": len(classes[split]),
            f"{split}_videos": len(videos),
            f"{split}_queries": len(splits.queries[split]),
            f"{split}_supports": len(helpers),
        }
        on_message(
            f"{split}: {len(classes[split])} classes, {len(videos)} videos, "
            f"{len(splits.queries[split])} queries, {len(helpers)} supports"
        )
    return counts


def check_enough(
    splits: Splits,
    unseen: Mapping[str, Sequence[str]],
    found: Found,
    dealt: bool,
    faults: Sequence[tuple[str, str]],
) -> None:
    """Refuse a benchmark that cannot train or cannot be scored.

    Raises:
        UserError: no video can be used, or no seen class, no training query or no test query is
            left.
    """
    reasons = "; ".join(": ".join(one) for one in faults[:SHOWN_REASONS])
    if len(faults) > SHOWN_REASONS:
        reasons += f"; and {len(faults) - SHOWN_REASONS} more"
    num_videos = len(found.annotations.videos) + found.unread
    if num_videos and found.faults.keys() >= found.annotations.videos.keys():
        raise UserError(
            f"benchmark: none of the {num_videos} videos of {found.name} can be used: {reasons}",
            setting="benchmark",
        )
    able = ", ".join(splits.two_sources) or "none"
    mend = f"classes of {found.name} with readable videos of two sources, as both need: {able}"
    lost = f"; quarantined: {reasons}" if faults else ""
    if dealt:
        for split, what in (("train", "seen"), ("test", UNSEEN)):
            if not splits.queries[split]:
                raise UserError(
                    f"benchmark: no {what} class of {found.name} has a query and a support of two "
                    f"sources ({mend}{lost}); are the frames and the file whole?",
                    setting="benchmark",
                )
        return
    if not splits.supports["train"]:
        raise UserError(
            "benchmark: no seen class is left to train on beside the "
            f"{sum(map(len, unseen.values()))} of val_classes and test_classes and the videos "
            f"that show them; name fewer there ({mend}{lost})",
            setting="benchmark",
        )
    if not splits.queries["train"]:
        raise UserError(
            "benchmark: no seen class is left with a query and a support of two sources; name "
            f"fewer in val_classes and test_classes ({mend}{lost})",
            setting="benchmark",
        )
    if not splits.queries["test"]:
        raise UserError(
            f"benchmark.test_classes: no query of {', '.join(unseen['test'])} is left; name other "
            f"classes or add videos ({mend}{lost})",
            setting="benchmark.test_classes",
        )
