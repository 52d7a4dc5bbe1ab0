"""The end of every builder: pairs, the check for leaks, Table 6, hashes, benchmark.json."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfshot.benchmarks.leakage import check_leakage, used_videos
from selfshot.benchmarks.manifest import Benchmark, query_key
from selfshot.benchmarks.split import SPLITS, label, source_of
from selfshot.benchmarks.statistics import statistics
from selfshot.config.benchmarks import PAIRED_SUPPORTS
from selfshot.data.ytvis import Annotations
from selfshot.errors import UserError
from selfshot.files import digest_file

PAIRED_SPLITS = ("val", "test")

Pairs = dict[str, dict[str, tuple[int, ...]]]


def draw_pairs(benchmark: Benchmark, annotations: Annotations) -> tuple[Pairs, int]:
    """Ten supports of each val and test query, the first k of which are those of k shots.

    They are drawn from the split's supports of the query's class, without those of the query's
    own source. Where there are fewer, they are repeated in their order.

    Returns:
        For each split, the supports of each `query_key`; and how many queries have repeated ones.

    Raises:
        UserError: a query has no support at all.
    """
    numbers = {name: number for number, name in annotations.categories.items()}
    pairs: Pairs = {}
    repeated = 0
    for split in PAIRED_SPLITS:
        pairs[split] = {}
        pools = {name: sorted(videos) for name, videos in benchmark.supports[split].items()}
        source = {v: source_of(annotations, v) for videos in pools.values() for v in videos}
        sizes = {name: Counter(source[v] for v in videos) for name, videos in pools.items()}
        for video, name in benchmark.queries[split]:
            own, pool = source_of(annotations, video), pools.get(name, [])
            available = len(pool) - (sizes[name][own] if pool else 0)
            if not available:
                raise UserError(
                    f"benchmark: {label(annotations, video)}, a {split} query of {name}, has no "
                    f"support: no other video of {name} is in that split; add one",
                    setting="benchmark",
                )
            rng = np.random.default_rng([benchmark.seed, 37, video, numbers[name]])
            drawn: dict[int, None] = {}
            # Drawn one by one: a class of COCO has tens of thousands of videos, each a query.
            while len(drawn) < min(available, PAIRED_SUPPORTS):
                one = pool[int(rng.integers(len(pool)))]
                if source[one] != own:
                    drawn[one] = None
            repeated += available < PAIRED_SUPPORTS
            supports = list(drawn)
            pairs[split][query_key(video, name)] = tuple(
                supports[i % len(supports)] for i in range(PAIRED_SUPPORTS)
            )
    return pairs, repeated


WRITTEN = ("annotations.json", "corpus.parquet", "corpus_labels.csv")


def finish_benchmark(
    folder: Path,
    benchmark: Benchmark,
    annotations: Annotations,
    corpus: Iterable[Mapping[str, Any]],
    files: Mapping[int, Sequence[str]] | None = None,
) -> Benchmark:
    """Add what every benchmark has, check it, and write benchmark.json into `folder`.

    Args:
        folder: holds the other files already.
        benchmark: without pairs, statistics and hashes of files.
        annotations: of its videos.
        corpus: rows of its corpus.
        files: SHA-256 of each file of a video's frames, where they were read.

    Raises:
        UserError: it leaks, or a query has no support.
    """
    pairs, repeated = draw_pairs(benchmark, annotations)
    paired = dataclasses.replace(
        benchmark,
        videos={split: tuple(sorted(used_videos(benchmark, split))) for split in SPLITS},
        pairs=pairs,
        counts={**benchmark.counts, "queries_with_repeated_supports": repeated},
        statistics=statistics(benchmark, annotations),
        files=written_files(folder),
    )
    check_leakage(paired, annotations, corpus, files or {})
    paired.save(folder)
    return paired


def written_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a manifest folder that is there."""
    return {name: digest_file(folder / name) for name in WRITTEN if (folder / name).exists()}
