"""The end of every builder: pairs, the check for leaks, Table 6, hashes, benchmark.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.leakage import check_leakage, used_videos
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.pairs import draw_pairs
from selfshot.benchmarks.split import SIDES
from selfshot.benchmarks.statistics import statistics
from selfshot.data.ytvis import Annotations
from selfshot.files import digest_file

WRITTEN = ("annotations.json", "corpus.parquet", "corpus_labels.csv")


def finish_benchmark(
    folder: Path,
    benchmark: Benchmark,
    annotations: Annotations,
    corpus: Collection[Mapping[str, Any]],
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
        videos={side: tuple(sorted(used_videos(benchmark, side))) for side in SIDES},
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
