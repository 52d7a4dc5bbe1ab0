"""Building an index from a folder of embeddings, part by part, and measuring how good it is.

    clip_ids.*       names of the rows
    index.faiss      a whole index, or the centres and codebooks of one whose lists are on disk
    lists.bin        the inverted lists, mapped into memory by a search
    vectors.f16      exact unit vectors in half precision, where candidates are compared anew
    metadata.json    the plan, how it was tuned, and what was measured

No more than a part of the vectors is in memory at a time, but for `flat` and `hnsw`, which are
whole in memory when they are searched as well. A killed build goes on from its last part.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from selfshot.files import write_atomically
from selfshot.models.device import device_for
from selfshot.retrieval.clip_ids import ClipIds, write_ids
from selfshot.retrieval.embeddings import (
    count_embedded,
    iterate_blocks,
    iterate_ids,
    sample_embeddings,
)
from selfshot.retrieval.exact import ExactSearch
from selfshot.retrieval.index import (
    INDEX_FILE,
    ClipIndex,
    empty_index,
    faiss_facts,
    lack_of_gpus,
    merge_lists,
    read_index,
    train_index,
    unit_vectors,
    write_index,
)
from selfshot.retrieval.kinds import IndexPlan, Kind, plan_index

METADATA_FILE = "metadata.json"
EXACT_FILE = "vectors.f16"
NEIGHBOURS = 32  # of a clip, itself among them, that a query is made of
NEIGHBOUR_EFFORT = 16
TIMED_S = 0.5  # a rate is taken over at least as long
SAVED_EVERY_S = 60.0  # between two copies of a graph that is being built


@dataclasses.dataclass(frozen=True)
class BuildSettings:
    """How an index is built; see `IndexConfig`."""

    kind: Kind | Literal["auto"] = "flat"
    memory_gb: float = 8.0
    wished_recall: float = 0.95
    recall_at: int = 5
    lists: int | None = None
    code_bytes: int | None = None
    rotation: bool = False
    rerank: int = 0
    links: int = 32
    construction: int = 80
    effort: int | None = None
    training_sample: int = 262_144
    held_queries: int = 400
    part_rows: int = 262_144
    seed: int = 0
    use_gpu: bool = False


def build_from_embeddings(
    embeddings: Path,
    folder: Path,
    scratch: Path,
    settings: BuildSettings,
    on_message: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Index the embedded clips of a folder.

    Args:
        embeddings: with shards, see `retrieval/embeddings.py`.
        folder: written to; it is there already.
        scratch: of what a killed build goes on from; deleted by the caller at the end.
        settings: how.
        on_message: told what is done.

    Returns:
        The metadata, as written.

    Raises:
        UserError: the kind does not fit the corpus.
        ValueError: a vector has no direction, or an id comes twice.
    """
    clips, dim = count_embedded(embeddings)
    plan = plan_index(
        clips,
        dim,
        **{
            field: getattr(settings, field)
            for field in ("kind", "memory_gb", "wished_recall", "lists", "code_bytes", "rotation",
                          "rerank", "links", "training_sample")
        },
    )  # fmt: skip
    if settings.kind == "auto":
        on_message(f"{clips:,} vectors of {dim}: {plan.kind}, {plan.reason}")
    ids = write_ids(folder, iterate_ids(embeddings))
    seconds = _Seconds(scratch / "seconds.json")
    build = _Build(embeddings, folder, scratch, settings, plan, dim, seconds, on_message)
    if plan.kind in ("flat", "hnsw"):
        build.whole()
    else:
        build.in_lists()
    facts: dict[str, Any] = {
        **dataclasses.asdict(plan),
        "clips": clips,
        "dim": dim,
        "seed": settings.seed,
        "exact": plan.kind == "flat",
        "effort": 1,
        **faiss_facts(),
    }
    write_atomically(folder / METADATA_FILE, json.dumps(facts, indent=1) + "\n")
    if plan.kind != "flat":
        index = load_index(folder)
        facts |= measure(index, ids, embeddings, settings, on_message)
    files = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    facts |= {
        "memory_bytes_per_vector": plan.memory_bytes(dim) + plan.shared_bytes(dim) / clips,
        "disk_bytes_per_vector": files / clips,
        "build_seconds": seconds.total(),
        **{f"{name}_seconds": value for name, value in seconds.parts.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write_atomically(folder / METADATA_FILE, json.dumps(facts, indent=1) + "\n")
    return facts


def load_index(folder: Path) -> ClipIndex:
    """Open what `build_from_embeddings` wrote. Lists on disk are mapped, not read."""
    ids = ClipIds.load(folder)
    if not (folder / METADATA_FILE).exists():  # of an earlier version, or of ClipIndex.save
        return ClipIndex(read_index(folder / INDEX_FILE), ids)
    facts = json.loads((folder / METADATA_FILE).read_text())
    plan = IndexPlan(**{field.name: facts[field.name] for field in dataclasses.fields(IndexPlan)})
    exact = None
    if plan.rerank:
        shape = (facts["clips"], facts["dim"])
        exact = np.memmap(folder / EXACT_FILE, np.float16, "r", shape=shape)
    index = read_index(folder / INDEX_FILE)
    return ClipIndex(index, ids, plan=plan, effort=facts["effort"], exact=exact)


@dataclasses.dataclass
class _Build:
    embeddings: Path
    folder: Path
    scratch: Path
    settings: BuildSettings
    plan: IndexPlan
    dim: int
    seconds: _Seconds
    on_message: Callable[[str], None]

    def whole(self) -> None:
        """An index that is in memory as a whole; a graph is saved now and then."""
        kept = self.scratch / INDEX_FILE
        if kept.exists():
            index = read_index(kept)
            self.on_message(f"going on after {index.ntotal:,} vectors")
        else:
            index = empty_index(
                self.plan,
                self.dim,
                construction=self.settings.construction,
                seed=self.settings.seed,
            )
        saved = time.monotonic()
        for _, unit in _unit_blocks(self.embeddings, self.settings.part_rows, index.ntotal):
            with self.seconds.of("add"):
                index.add(unit)
            if self.plan.kind == "hnsw" and time.monotonic() - saved > SAVED_EVERY_S:
                write_index(index, kept)
                self.seconds.save()
                saved = time.monotonic()
                self.on_message(f"{index.ntotal:,} vectors in the graph")
        write_index(index, self.folder / INDEX_FILE)
        self.seconds.save()

    def in_lists(self) -> None:
        """Train on a sample, add part by part, join the parts on disk."""
        trained = self.scratch / "trained.faiss"
        if not trained.exists():
            index = empty_index(self.plan, self.dim, seed=self.settings.seed)
            _, sample = sample_embeddings(
                self.embeddings, self.settings.training_sample, self.settings.seed
            )
            lack = lack_of_gpus() if self.settings.use_gpu else None
            if lack is not None:
                self.on_message(lack)
            with self.seconds.of("train"):
                train_index(
                    index,
                    unit_vectors(sample, [f"sample {row}" for row in range(len(sample))]),
                    use_gpu=self.settings.use_gpu and lack is None,
                )
            self.seconds.save()
            write_index(index, trained)
            self.on_message(f"{self.plan.lists} lists trained on {len(sample):,} vectors")
        rows, start = self.settings.part_rows, 0
        parts: list[Path] = []
        while self._part(start).exists():
            parts.append(self._part(start))
            start += rows
        if start:
            self.on_message(f"going on after {len(parts)} parts")
        for first, unit in _unit_blocks(self.embeddings, rows, start):
            if self.plan.rerank:
                self._write_exact(first, unit)
            index = read_index(trained)
            with self.seconds.of("add"):
                index.add_with_ids(unit, np.arange(first, first + len(unit)))
            parts.append(self._part(first))
            self.seconds.save()
            write_index(index, parts[-1])
            self.on_message(f"{first + len(unit):,} vectors added")
        if not (self.folder / INDEX_FILE).exists():
            with self.seconds.of("merge"):
                merge_lists(trained, parts, self.folder)
            self.seconds.save()

    def _part(self, first: int) -> Path:
        # With the size in the name, for a build may be gone on with in parts of another size.
        return self.scratch / f"part-{self.settings.part_rows}-{first:012d}.faiss"

    def _write_exact(self, first: int, unit: Float[np.ndarray, "rows dim"]) -> None:
        path = self.folder / EXACT_FILE
        path.touch()
        with path.open("r+b") as file:
            file.seek(first * self.dim * 2)
            file.write(unit.astype(np.float16).tobytes())
            file.flush()
            os.fsync(file.fileno())


def _unit_blocks(
    embeddings: Path, rows: int, start: int = 0
) -> Iterator[tuple[int, Float[np.ndarray, "rows dim"]]]:
    for first, ids, vectors in iterate_blocks(embeddings, rows, start):
        yield first, unit_vectors(vectors, ids)


def measure(
    index: ClipIndex,
    ids: ClipIds,
    embeddings: Path,
    settings: BuildSettings,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """Find the least effort that reaches the wished recall, and what it brings.

    Queries are made of clips of the corpus and their neighbours (`made_queries`), for a clip itself
    would be found too easily: a graph has links from it to just its neighbours. The effort is found
    on every second of them and everything told is measured on the others.

    Returns:
        `effort`, `recall` and `queries_per_second` at it; `exact_queries_per_second` of comparing
        all; `sweep`, the recall of each effort tried.
    """
    k = min(settings.recall_at, len(ids))
    rows, sample = sample_embeddings(embeddings, settings.held_queries, settings.seed + 1)
    unit = made_queries(
        index, unit_vectors(sample, [f"sample {row}" for row in range(len(sample))]), settings.seed
    )
    exact = ExactSearch(unit, k, device_for(settings.use_gpu, on_message))
    compared = 0.0
    for first, block in _unit_blocks(embeddings, settings.part_rows):
        began = time.perf_counter()
        exact.add(first, block)
        compared += time.perf_counter() - began
    tuned, held = slice(0, None, 2), slice(1 if len(rows) > 1 else 0, None, 2)
    sweep: list[dict[str, float]] = []
    index.effort = settings.effort or 1
    while True:
        recall = _recall(index, unit[tuned], exact.rows[tuned], k)
        sweep.append({"effort": index.effort, "recall": recall})
        if (
            settings.effort is not None
            or recall >= settings.wished_recall
            or index.effort >= index.most_effort
        ):
            break
        index.effort = min(index.effort * 2, index.most_effort)
    if settings.effort is None and len(sweep) > 1 and recall >= settings.wished_recall:
        # Between the last two powers of two, by halves.
        low, high = int(sweep[-2]["effort"]), index.effort
        while high - low > max(low // 8, 1):
            index.effort = (low + high) // 2
            between = _recall(index, unit[tuned], exact.rows[tuned], k)
            sweep.append({"effort": index.effort, "recall": between})
            if between >= settings.wished_recall:
                high = index.effort
            else:
                low = index.effort
        index.effort = high
    facts: dict[str, Any] = {
        "effort": index.effort,
        "recall": _recall(index, unit[held], exact.rows[held], k),
        "recall_at": k,
        "held_queries": len(rows[held]),
        "queries_per_second": _rate(index, unit[held], k),
        "exact_queries_per_second": len(rows) / max(compared, 1e-9),
        "sweep": sorted(sweep, key=lambda point: point["effort"]),
    }
    on_message(
        f"recall@{k} {100 * facts['recall']:.1f}% at an effort of {index.effort}, "
        f"{facts['queries_per_second']:,.0f} queries a second "
        f"({facts['exact_queries_per_second']:,.0f} when all are compared)"
    )
    if facts["recall"] < settings.wished_recall:
        on_message(
            f"warning: index.wished_recall: {settings.wished_recall:g} is not reached; raise "
            "index.code_bytes, index.rerank or index.training_sample"
        )
    return facts


def made_queries(
    index: ClipIndex, unit: Float[np.ndarray, "queries dim"], seed: int
) -> Float[np.ndarray, "queries dim"]:
    """Vectors as far from the corpus's as those are from each other, and none of them.

    Around each clip a draw is made from the normal distribution that has the mean and the
    covariance of its nearest clips: their offsets from the mean are added with random weights.
    """
    index.effort = min(NEIGHBOUR_EFFORT, index.most_effort)
    k = min(NEIGHBOURS, len(index))
    _, found = index.search_rows(unit, k)
    rows, places = np.unique(found, return_inverse=True)
    near = index.vectors_at(rows)[places.reshape(found.shape)]
    middle = near.mean(1)
    weights = np.random.default_rng([seed, 41]).normal(size=found.shape) / np.sqrt(max(k - 1, 1))
    made = middle + np.einsum("qk,qkd->qd", weights, near - middle[:, None])
    return unit_vectors(made, [f"made query {row}" for row in range(len(made))])


def _recall(
    index: ClipIndex,
    unit: Float[np.ndarray, "queries dim"],
    truth: Int[np.ndarray, "queries k"],
    k: int,
) -> float:
    """Share of the true nearest that are among the first `k`."""
    _, found = index.search_rows(unit, k)
    hits = [len({*a} & {*b}) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return sum(hits) / (len(unit) * k)


def _rate(index: ClipIndex, unit: Float[np.ndarray, "queries dim"], k: int) -> float:
    """Queries a second in batches as large as `unit`, after one to warm up."""
    index.search_rows(unit, k)
    began, done, taken = time.perf_counter(), 0, 0.0
    while not done or taken < TIMED_S:
        index.search_rows(unit, k)
        done += len(unit)
        taken = time.perf_counter() - began
    return done / taken


class _Seconds:
    """What each part of a build took, killed attempts included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str) -> _Timer:
        return _Timer(self.parts, name)

    def save(self) -> None:
        write_atomically(self.path, json.dumps(self.parts, indent=1) + "\n")

    def total(self) -> float:
        return sum(self.parts.values())


@dataclasses.dataclass
class _Timer:
    parts: dict[str, float]
    name: str

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        taken = time.perf_counter() - self.began
        self.parts[self.name] = self.parts.get(self.name, 0.0) + taken
