"""The check that nothing of a test query has been trained on, or may be retrieved for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from selfshot.benchmarks.annotated import same_files
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.split import SPLITS, UNSEEN, label, source_of
from selfshot.data.ytvis import Annotations, fold_source
from selfshot.errors import UserError

SHOWN = 5


def used_videos(benchmark: Benchmark, split: str) -> set[int]:
    """Videos that are queries or supports in a split."""
    helpers = {video for videos in benchmark.supports[split].values() for video in videos}
    return helpers | {video for video, _ in benchmark.queries[split]}


def query_sources(benchmark: Benchmark, annotations: Annotations) -> set[str]:
    """Sources of the val and test queries: no clip of the corpus may be of one."""
    pairs = [*benchmark.queries["val"], *benchmark.queries["test"]]
    return {source_of(annotations, video) for video, _ in pairs}


def query_files(benchmark: Benchmark, files: Mapping[int, Sequence[str]]) -> set[str]:
    """SHA-256 of the files of val and test queries: no clip of the corpus may be one."""
    pairs = [*benchmark.queries["val"], *benchmark.queries["test"]]
    return {file for video, _ in pairs for file in files.get(video, ())}


def check_leakage(
    benchmark: Benchmark,
    annotations: Annotations,
    corpus: Iterable[Mapping[str, Any]],
    files: Mapping[int, Sequence[str]],
) -> None:
    """Refuse a benchmark that leaks; every builder calls it last.

    Args:
        benchmark: with its pairs.
        annotations: of its videos.
        corpus: rows of its corpus.
        files: SHA-256 of each file of a video's frames, where they were read.

    Raises:
        UserError: a video, its frames or its source is in two splits, by their names or by the
            bytes of their files; a training video shows an
            unseen class; a support is of its query's own source, or of another split or class; or
            a clip of the corpus is of a query's source.
    """
    leaks = [
        *_across_splits(benchmark, annotations),
        *_seen_and_unseen(benchmark, annotations),
        *_within_pairs(benchmark, annotations),
        *_into_corpus(benchmark, annotations, corpus, files),
        *_same_files(benchmark, annotations, files),
    ]
    if leaks:
        more = [f"and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
        raise UserError(
            "benchmark: it leaks, so its scores would mean nothing: "
            + "; ".join([*leaks[:SHOWN], *more])
            + "; give videos that were cut from one recording the same source_id, or remove one",
            setting="benchmark",
        )


def _across_splits(benchmark: Benchmark, annotations: Annotations) -> Iterator[str]:
    used = {split: used_videos(benchmark, split) for split in SPLITS}
    sources = {split: {source_of(annotations, v) for v in used[split]} for split in SPLITS}
    # Two entries may name the same frames, whatever sources they claim.
    frames = {
        split: {annotations.videos[v].file_names[0] for v in used[split] if
               annotations.videos[v].file_names}
        for split in SPLITS
    }  # fmt: skip
    for one, other in combinations(SPLITS, 2):
        for video in sorted(used[one] & used[other]):
            yield f"{label(annotations, video)} is used for {one} and for {other}"
        for what, of_side in (("source", sources), ("frame", frames)):
            for name in sorted(of_side[one] & of_side[other]):
                yield f"the {what} {name} is used for {one} and for {other}"


def _seen_and_unseen(benchmark: Benchmark, annotations: Annotations) -> Iterator[str]:
    unseen = {*benchmark.classes["val"], *benchmark.classes["test"]}
    for name in sorted(unseen & set(benchmark.classes["train"])):
        yield f"the class {name} is seen and {UNSEEN}"
    for video in sorted(used_videos(benchmark, "train")):
        shown = {annotations.categories[t.category_id] for t in annotations.tracks_of(video)}
        for name in sorted(shown & unseen):
            yield f"{label(annotations, video)} trains and shows {name}, which is {UNSEEN}"


def _within_pairs(benchmark: Benchmark, annotations: Annotations) -> Iterator[str]:
    for split, pairs in benchmark.pairs.items():
        members = {name: set(videos) for name, videos in benchmark.supports[split].items()}
        for key, supports in pairs.items():
            number, _, name = key.partition(":")
            query = int(number)
            for support in sorted(set(supports)):
                if source_of(annotations, support) == source_of(annotations, query):
                    yield f"{label(annotations, query)} has a support of its own source"
                if support not in members.get(name, ()):
                    yield (
                        f"{label(annotations, support)} supports a {split} query of {name} and is "
                        f"no {split} support of it"
                    )


def _into_corpus(
    benchmark: Benchmark,
    annotations: Annotations,
    corpus: Iterable[Mapping[str, Any]],
    files: Mapping[int, Sequence[str]],
) -> Iterator[str]:
    sources = set(map(fold_source, query_sources(benchmark, annotations)))
    of_queries = query_files(benchmark, files)
    for row in corpus:
        if fold_source(row["source_id"]) in sources:
            yield f"the corpus clip {row['clip_id']} is of a query's source, {row['source_id']}"
        elif row.get("sha256") in of_queries:
            yield f"the corpus clip {row['clip_id']} is a query's own file"


def _same_files(
    benchmark: Benchmark, annotations: Annotations, files: Mapping[int, Sequence[str]]
) -> Iterator[str]:
    """Videos of two splits, or a query and its support, of the same files."""
    splits = {split: used_videos(benchmark, split) for split in SPLITS}
    used, sources = set().union(*splits.values()), annotations.sources
    for one, other in same_files({video: files[video] for video in files if video in used}):
        names = f"{label(annotations, one)} and {label(annotations, other)}"
        apart = [split for split in SPLITS if (one in splits[split]) != (other in splits[split])]
        if apart:
            yield f"{names} are the same files, and used in different splits, {', '.join(apart)}"
        elif one not in splits["train"] and sources[one] != sources[other]:
            yield f"{names} are the same files under two sources"
