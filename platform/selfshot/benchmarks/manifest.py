"""A benchmark folder: its classes, queries and supports.

Layout of a benchmark folder::

    benchmark.json      the `Benchmark` below
    annotations.json    YouTube-VIS JSON of every annotated video
    frames/             JPEG frames (or `frames_root` points to where they are)
    corpus.parquet      clip_id, uri, start_s, end_s, source_id, bytes, sha256: the unlabelled clips
    corpus_labels.csv   clip_id, class: for diagnosis and pictures only, never read by a method
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfshot.config.benchmarks import SceneConfig
from selfshot.data.clips import ClipReader
from selfshot.data.guard import Clip
from selfshot.data.scenes import SceneComposer, SceneReader
from selfshot.data.supports import SupportReader
from selfshot.data.ytvis import load_annotations

T = TypeVar("T")

CORPUS_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("source_id", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a benchmark fixes for everyone who is compared on it.

    Attributes:
        name: its name.
        kind: its builder.
        seed: of every random choice in it.
        height, width, num_frames: of a clip as the model sees it (pixels, pixels, frames).
        classes: class names of each split: `train` (seen), `val` and `test` (unseen).
        queries: for each split, `(video_id, class)` pairs; in a test query of several classes
            the class is the one that query and supports share.
        supports: for each split and class, the annotated videos that may be oracle supports.
        frames_root: folder of the frames, relative to the benchmark folder or absolute.
        corpus_root: folder that the corpus URIs are relative to, likewise.
        videos: of each split: its queries and supports.
        pairs: for val and test, the labelled supports of each `query_key`, in an order that is
            fixed: the first k are those of k shots.
        counts: what was counted while building.
        statistics: the figures of the paper's Table 6.
        files: SHA-256 of each file that was written beside this one.
        inputs: SHA-256 of each input, by its setting.
        quarantined: `(what, reason)` of everything that was left out.
        composed: where training clips are composed of the training videos, which are photos:
            `scene`, a `SceneConfig` as JSON values, and `min_object`.
        groups: videos of the queries that are scored apart as well, by the group's name.
    """

    name: str
    kind: str
    seed: int
    height: int
    width: int
    num_frames: int
    classes: dict[str, tuple[str, ...]]
    queries: dict[str, tuple[tuple[int, str], ...]]
    supports: dict[str, dict[str, tuple[int, ...]]]
    frames_root: str = "frames"
    corpus_root: str = "corpus"
    videos: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    pairs: dict[str, dict[str, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    statistics: dict[str, float] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    quarantined: tuple[tuple[str, str], ...] = ()
    composed: dict[str, Any] | None = None
    groups: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def reader(self, folder: Path) -> ClipReader:
        """A reader of the annotated clips of the benchmark in `folder`, at the model's size."""
        return ClipReader(
            load_annotations(folder / "annotations.json"),
            (folder / self.frames_root).resolve(),
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
        )

    def training_reader(self, folder: Path) -> ClipReader:
        """A reader of what trains: the annotated clips, or clips that it composes of photos."""
        reader = self.reader(folder)
        if self.composed is None:
            return reader
        composer = SceneComposer(
            reader,
            SceneConfig.model_validate(self.composed["scene"]),
            others=self.videos["train"],
            min_object=self.composed["min_object"],
        )
        return SceneReader(composer)

    def support_reader(
        self, folder: Path, reader: ClipReader, num_frames: int | None = None
    ) -> SupportReader:
        """A reader of supports: clips of the corpus, and annotated videos.

        Args:
            folder: of the benchmark.
            reader: of its annotated videos.
            num_frames: of a support; none: as many as the benchmark's clips; 1: the middle one.
        """
        root = (folder / self.corpus_root).resolve()
        clips = {
            row["clip_id"]: Clip(str(root / row["uri"]), row["start_s"], row["end_s"])
            for row in read_corpus(folder)
        }
        return SupportReader(clips, reader.of_length(num_frames))

    def folds(self, split: str, count: int, most: int | None = None) -> list[list[tuple[int, str]]]:
        """Deal the queries of a split to `count` disjoint folds, class by class.

        Every fold holds other videos, so the deviation over folds is that of new queries.

        Args:
            split: `val` or `test`.
            count: folds.
            most: queries of a fold at most; none: all.
        """
        dealt: list[list[tuple[int, str]]] = [[] for _ in range(count)]
        rng = np.random.default_rng([self.seed, 23])
        by_class: dict[str, list[int]] = {}
        for video, name in self.queries[split]:
            by_class.setdefault(name, []).append(video)
        turn = 0
        fold_of: dict[int, int] = {}
        for name in sorted(by_class):
            for video in rng.permutation(by_class[name]).tolist():
                # A video that is a query of several classes is so in one fold.
                if video not in fold_of:
                    fold_of[video] = turn % count
                    turn += 1
                dealt[fold_of[video]].append((video, name))
        # Cut evenly over the classes, which stand in blocks.
        return [
            fold if most is None or len(fold) <= most
            else [fold[i] for i in np.linspace(0, len(fold) - 1, most).round().astype(int)]
            for fold in dealt
        ]  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write `benchmark.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
        (folder / "benchmark.json").write_text(text, encoding="utf-8")


def query_key(video: int, name: str) -> str:
    """What a query is called in files: one video may be a query of several classes."""
    return f"{video}:{name}"


def first_of_each_class(queries: Iterable[T], class_of: Callable[[T], str], count: int) -> list[T]:
    """The first query of each class, then the second, until there are enough: nobody chose them."""
    by_class: dict[str, list[T]] = {}
    for query in queries:
        by_class.setdefault(class_of(query), []).append(query)
    turns = itertools.zip_longest(*(by_class[name] for name in sorted(by_class)))
    return [query for turn in turns for query in turn if query is not None][:count]


def load_benchmark(folder: Path) -> Benchmark:
    """Read `benchmark.json` of a folder that `Benchmark.save` wrote."""
    raw = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    raw["classes"] = {split: tuple(names) for split, names in raw["classes"].items()}
    raw["queries"] = {
        split: tuple((int(video), name) for video, name in pairs)
        for split, pairs in raw["queries"].items()
    }
    raw["supports"] = {
        split: {name: tuple(videos) for name, videos in by_class.items()}
        for split, by_class in raw["supports"].items()
    }
    raw["videos"] = {split: tuple(ids) for split, ids in raw.get("videos", {}).items()}
    raw["pairs"] = {
        split: {key: tuple(videos) for key, videos in by_query.items()}
        for split, by_query in raw.get("pairs", {}).items()
    }
    raw["groups"] = {name: tuple(ids) for name, ids in raw.get("groups", {}).items()}
    raw["quarantined"] = tuple((what, reason) for what, reason in raw["quarantined"])
    return Benchmark(**raw)


def write_corpus(folder: Path, rows: Iterable[dict]) -> None:
    """Write `corpus.parquet`, ordered by clip id."""
    ordered = sorted(rows, key=lambda row: row["clip_id"])
    pq.write_table(pa.Table.from_pylist(ordered, CORPUS_SCHEMA), folder / "corpus.parquet")


def read_corpus(folder: Path) -> list[dict]:
    """Rows of `corpus.parquet` in its order."""
    return pq.read_table(folder / "corpus.parquet").to_pylist()


def iterate_corpus(folder: Path) -> Iterator[dict]:
    """The same, one after another."""
    for batch in pq.ParquetFile(folder / "corpus.parquet").iter_batches():
        yield from batch.to_pylist()


def corpus_size(folder: Path) -> int:
    """How many clips `corpus.parquet` of a benchmark folder lists; they are not read."""
    return int(pq.read_metadata(folder / "corpus.parquet").num_rows)


def write_corpus_labels(folder: Path, labels: dict[str, str]) -> None:
    """Write `corpus_labels.csv`; an empty label means that none is known."""
    with (folder / "corpus_labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "class"])
        writer.writerows(sorted(labels.items()))


def read_corpus_labels(folder: Path) -> dict[str, str]:
    """Known labels of corpus clips, for diagnosis only; empty where there are none."""
    path = folder / "corpus_labels.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["clip_id"]: row["class"] for row in csv.DictReader(file) if row["class"]}
