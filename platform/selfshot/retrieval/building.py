"""Building an index from a folder of embeddings, part by part, and measuring how good it is.

    clip_ids.*       names of the rows
    index.faiss      a flat index, or the centres and codebooks of one whose lists are on disk
    lists.bin        the inverted lists, mapped into memory by a search
    refine.faiss     exact unit vectors in half precision, mapped: candidates are compared with them
    metadata.json    the factory string, how it was tuned, and what was measured

No more than a part of the vectors is in memory at a time, but for `flat`, which is whole in memory
when it is searched as well. A killed build goes on from its last part.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from selfshot.errors import UserError
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
    LISTS_FILE,
    REFINE_FILE,
    ClipIndex,
    empty_index,
    faiss_facts,
    inverted_file,
    lack_of_gpus,
    merge_lists,
    read_index,
    read_refined,
    refine_header,
    train_index,
    unit_vectors,
    write_index,
)

METADATA_FILE = "metadata.json"
EXACT_VALUES = 2**28  # numbers that exact search compares a query with in some milliseconds
LEAST_PER_LIST = 39  # training vectors of a list, below which k-means finds poor centres
TRAINING_SAMPLE = 262_144  # vectors that lists and codes are fitted to
PART_ROWS = 262_144  # vectors added at a time, and between two places to go on from
PQ_BYTES = 64  # of a code at most
RABITQ_BITS = (2, 1)  # a dimension; the first that fits the memory
ROW_NUMBER = 8  # bytes
RECALL_AT = 5  # nearest clips, of which recall is the share that is found
HELD_QUERIES = 400  # half of them settle nprobe, the others measure
NEIGHBOURS = 32  # of a clip, itself among them, that a query is made of
NEIGHBOUR_NPROBE = 16
TIMED_S = 0.5  # a rate is taken over at least as long


@dataclasses.dataclass(frozen=True)
class BuildSettings:
    """How an index is built; see `IndexConfig`."""

    kind: Literal["flat", "ivf_pq", "ivf_rabitq", "auto"] = "flat"
    factory: str | None = None
    memory_gb: float = 8.0
    target_recall: float = 0.95
    nprobe: int | None = None
    refine_factor: int = 4
    seed: int = 0
    use_gpu: bool = False


def choose_factory(clips: int, dim: int, settings: BuildSettings) -> tuple[str, str]:
    """FAISS' factory string of an index of `clips` vectors of `dim` numbers, and why that one.

    Raises:
        UserError: a flat index does not fit the memory.
    """
    if settings.factory is not None:
        return settings.factory, "set by hand"
    trained = min(clips, TRAINING_SAMPLE)
    lists = min(2 ** round(math.log2(4 * math.sqrt(clips))), max(trained // LEAST_PER_LIST, 1))
    gigabytes = 4 * dim * clips / 1e9
    fits = gigabytes <= settings.memory_gb
    if settings.kind == "flat" and not fits:
        raise UserError(
            f"index.kind: flat takes {gigabytes:.3g} GB for {clips:,} vectors of {dim}, and "
            f"index.memory_gb is {settings.memory_gb:g}; raise it, or take auto or ivf_rabitq",
            setting="index.kind",
        )
    if settings.kind == "flat" or (
        settings.kind == "auto" and fits and clips * dim <= EXACT_VALUES
    ):
        return "Flat", "all vectors are compared"
    if settings.kind == "ivf_pq":
        most = min(max(dim // 2, 1), PQ_BYTES)
        code = next(size for size in range(most, 0, -1) if dim % size == 0)
        return f"IVF{lists},PQ{code}", f"lists of codes of {code} bytes"
    for bits in RABITQ_BITS:
        factory = f"IVF{lists},RaBitQ{bits}"
        code = inverted_file(empty_index(factory, dim)).code_size
        if (code + ROW_NUMBER) * clips / 1e9 <= settings.memory_gb:
            break
    return factory, f"lists of codes of {bits} bits a number, {code} bytes"


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
        on_message: receives what is done.

    Returns:
        The metadata, as written.

    Raises:
        UserError: the kind does not fit the corpus.
        ValueError: a vector has no direction, or an id comes twice.
    """
    clips, dim = count_embedded(embeddings)
    factory, reason = choose_factory(clips, dim, settings)
    if settings.kind == "auto":
        on_message(f"{clips:,} vectors of {dim}: {factory}, {reason}")
    ids = write_ids(folder, iterate_ids(embeddings))
    seconds = _Seconds(scratch / "seconds.json")
    build = _Build(embeddings, folder, scratch, settings, factory, clips, dim, seconds, on_message)
    if factory == "Flat":
        build.whole()
    else:
        build.in_lists()
    facts: dict[str, Any] = {
        "factory": factory,
        "reason": reason,
        "clips": clips,
        "dim": dim,
        "seed": settings.seed,
        "nprobe": 1,
        "refine_factor": settings.refine_factor,
        **faiss_facts(),
    }
    write_atomically(folder / METADATA_FILE, json.dumps(facts, indent=1) + "\n")
    if factory != "Flat":
        index = load_index(folder)
        facts |= measure(index, ids, embeddings, settings, on_message)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    facts |= {
        "memory_bytes_per_vector": (sizes[INDEX_FILE] + sizes.get(LISTS_FILE, 0)) / clips,
        "disk_bytes_per_vector": sum(sizes.values()) / clips,
        "build_seconds": seconds.total(),
        **{f"{name}_seconds": value for name, value in seconds.parts.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write_atomically(folder / METADATA_FILE, json.dumps(facts, indent=1) + "\n")
    return facts


def load_index(folder: Path) -> ClipIndex:
    """Open what `build_from_embeddings` or `ClipIndex.save` wrote.

    Lists on disk are mapped, not read.
    """
    ids, index, facts = ClipIds.load(folder), read_refined(folder), {}
    if (folder / METADATA_FILE).exists():
        facts = json.loads((folder / METADATA_FILE).read_text())
    said = {name: facts[name] for name in ("nprobe", "refine_factor") if name in facts}
    return ClipIndex(index, ids, **said)


@dataclasses.dataclass
class _Build:
    embeddings: Path
    folder: Path
    scratch: Path
    settings: BuildSettings
    factory: str
    clips: int
    dim: int
    seconds: _Seconds
    on_message: Callable[[str], None]

    def whole(self) -> None:
        """An index that is in memory as a whole."""
        index = empty_index(self.factory, self.dim)
        for _, unit in _unit_blocks(self.embeddings):
            with self.seconds.of("add"):
                index.add(unit)
        write_index(index, self.folder / INDEX_FILE)
        self.seconds.save()

    def in_lists(self) -> None:
        """Train on a sample, add part by part, join the parts on disk."""
        trained = self.scratch / "trained.faiss"
        if not trained.exists():
            index = empty_index(self.factory, self.dim)
            _, sample = sample_embeddings(self.embeddings, TRAINING_SAMPLE, self.settings.seed)
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
            self.on_message(f"{self.factory} trained on {len(sample):,} vectors")
        start, parts = 0, []
        while self._part(start).exists():
            parts.append(self._part(start))
            start += PART_ROWS
        if start:
            self.on_message(f"going on after {len(parts)} parts")
        for first, unit in _unit_blocks(self.embeddings, start):
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
        return self.scratch / f"part-{first:012d}.faiss"

    def _write_exact(self, first: int, unit: Float[np.ndarray, "rows dim"]) -> None:
        path, header = self.folder / REFINE_FILE, refine_header(self.clips, self.dim)
        path.touch()
        with path.open("r+b") as file:
            file.write(header)
            file.seek(len(header) + first * self.dim * 2)
            file.write(unit.astype(np.float16).tobytes())
            file.flush()
            os.fsync(file.fileno())


def _unit_blocks(
    embeddings: Path, start: int = 0
) -> Iterator[tuple[int, Float[np.ndarray, "rows dim"]]]:
    for first, ids, vectors in iterate_blocks(embeddings, PART_ROWS, start):
        yield first, unit_vectors(vectors, ids)


def measure(
    index: ClipIndex,
    ids: ClipIds,
    embeddings: Path,
    settings: BuildSettings,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """Set `nprobe` so that the target recall is reached, and measure what it brings.

    Queries are made of clips of the corpus and their neighbours (`made_queries`), for a clip itself
    would be found too easily. `nprobe` is raised by steps of √2 on every second of them, and
    all reported figures are measured on the others.

    Returns:
        `nprobe`, `recall` and `queries_per_second` at it; `exact_queries_per_second` of comparing
        all; `sweep`, the recall of each `nprobe` tried.
    """
    k = min(RECALL_AT, len(ids))
    rows, sample = sample_embeddings(embeddings, HELD_QUERIES, settings.seed + 1)
    unit = made_queries(
        index, unit_vectors(sample, [f"sample {row}" for row in range(len(sample))]), settings.seed
    )
    exact = ExactSearch(unit, k, device_for(settings.use_gpu, on_message))
    compared = 0.0
    for first, block in _unit_blocks(embeddings):
        began = time.perf_counter()
        exact.add(first, block)
        compared += time.perf_counter() - began
    tuned, held = slice(0, None, 2), slice(1 if len(rows) > 1 else 0, None, 2)
    steps = sorted({min(round(2 ** (step / 2)), index.nlist) for step in range(64)})
    sweep: list[dict[str, float]] = []
    for nprobe in steps if settings.nprobe is None else [min(settings.nprobe, index.nlist)]:
        index.nprobe = nprobe
        recall = _recall(index, unit[tuned], exact.rows[tuned], k)
        sweep.append({"nprobe": nprobe, "recall": recall})
        if recall >= settings.target_recall:
            break
    facts: dict[str, Any] = {
        "nprobe": index.nprobe,
        "recall": _recall(index, unit[held], exact.rows[held], k),
        "recall_at": k,
        "held_queries": len(rows[held]),
        "queries_per_second": _rate(index, unit[held], k),
        "exact_queries_per_second": len(rows) / max(compared, 1e-9),
        "sweep": sweep,
    }
    on_message(
        f"recall@{k} {100 * facts['recall']:.1f}% with nprobe {index.nprobe}, "
        f"{facts['queries_per_second']:,.0f} queries a second "
        f"({facts['exact_queries_per_second']:,.0f} when all are compared)"
    )
    if facts["recall"] < settings.target_recall:
        on_message(
            f"warning: index.target_recall: {settings.target_recall:g} is not reached; aim "
            "higher, or raise index.refine_factor, or index.memory_gb for longer codes"
        )
    return facts


def made_queries(
    index: ClipIndex, unit: Float[np.ndarray, "queries dim"], seed: int
) -> Float[np.ndarray, "queries dim"]:
    """Vectors as far from the corpus's as those are from each other, and none of them.

    Around each clip a draw is made from the normal distribution that has the mean and the
    covariance of its nearest clips: their offsets from the mean are added with random weights.
    """
    index.nprobe = min(NEIGHBOUR_NPROBE, index.nlist)
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
