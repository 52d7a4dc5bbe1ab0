"""The paper's Table 6 of any benchmark, beside the paper's own figures."""

from __future__ import annotations

from selfshot.benchmarks.leakage import used_videos
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.published import published_benchmarks
from selfshot.benchmarks.split import SPLITS
from selfshot.data.ytvis import Annotations

ROWS = {
    "mean_length": "mean length (frames)",
    "mean_classes": "mean class number",
    "mean_instances": "mean instance number",
    "train_videos": "number of train videos",
    "val_test_videos": "number of val+test videos",
    "train_classes": "number of train classes",
    "val_test_classes": "number of val+test classes",
}
"""Rows of Table 6, in its order and words."""


def statistics(benchmark: Benchmark, annotations: Annotations) -> dict[str, float]:
    """The figures of Table 6: means over the videos that any split uses, crowds left out."""
    used = {split: used_videos(benchmark, split) for split in SPLITS}
    videos = set().union(*used.values())
    tracks = {v: [t for t in annotations.tracks_of(v) if not t.iscrowd] for v in videos}
    classes = {
        split: {name for name, helpers in benchmark.supports[split].items() if helpers}
        | {name for _, name in benchmark.queries[split]}
        for split in SPLITS
    }
    count = max(1, len(videos))
    return {
        "mean_length": sum(annotations.videos[video].length for video in videos) / count,
        "mean_classes": sum(len({t.category_id for t in ts}) for ts in tracks.values()) / count,
        "mean_instances": sum(map(len, tracks.values())) / count,
        "train_videos": len(used["train"]),
        "val_test_videos": len(used["val"] | used["test"]),
        "train_classes": len(classes["train"]),
        "val_test_classes": len(classes["val"] | classes["test"]),
    }


def table_6(benchmark: Benchmark) -> list[list[str]]:
    """Table 6 as text: the headings, then each row with the benchmark's figure and the paper's."""
    published = published_benchmarks().values()
    headings = ["", benchmark.name, *(f"{one.name} (paper)" for one in published)]
    return [headings] + [
        [words, _shown(benchmark.statistics[row]), *(_shown(p.table_6[row]) for p in published)]
        for row, words in ROWS.items()
    ]


def _shown(figure: float) -> str:
    """A count as it is, a mean with one digit as the paper has it."""
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.1f}"
