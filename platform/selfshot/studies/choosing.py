"""The supports stage: every query's supports of every kind, and how good the retrieval is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfshot.benchmarks.manifest import (
    Benchmark,
    load_benchmark,
    query_key,
    read_corpus,
    read_corpus_labels,
)
from selfshot.config.errors import UserError
from selfshot.evaluation.episodes import folds
from selfshot.models.weights import FrozenEncoder, load_encoder
from selfshot.retrieval.index import FlatIndex, load_index
from selfshot.retrieval.supports import Retrieved, draw, precision_at, retrieve

QUERIES_AT_ONCE = 8


def choose_supports(
    folder: Path,
    *,
    benchmark_folder: Path,
    encoder_folder: Path,
    index_folder: Path,
    seeds: Sequence[int],
    max_queries: int | None,
    count: int,
    vectors: str,
    window_size: int,
    foreground_power: float,
    duplicate_cosine: float,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """Write supports.json (query → kind → supports, best first) and retrieval.json.

    `random` is drawn with the seed of the query's fold; `oracle` takes the first of the pairs that
    the benchmark fixes; `self_shot` reads no label. Labels of the corpus, where there are any,
    only measure the retrieval.

    Args:
        folder: of the stage.
        benchmark_folder: of the benchmark.
        encoder_folder: of the trained Φ.
        index_folder: of the corpus index.
        seeds: of the folds.
        max_queries: of a fold.
        count: supports of each kind.
        vectors: `global` or `windows`, for `self_shot`.
        window_size: in tokens.
        foreground_power: see `retrieve`.
        duplicate_cosine: see `retrieve`.
        on_message: told of what is set aside.

    Returns:
        For `val` and `test`: chance, precision and mean average over classes of each way to
        make the query's vectors, and the counts of what was left out.
    """
    benchmark = load_benchmark(benchmark_folder)
    reader = benchmark.reader(benchmark_folder)
    annotations = reader.annotations
    encoder, index = load_encoder(encoder_folder), load_index(index_folder)
    labels = read_corpus_labels(benchmark_folder)
    by_source: dict[str, list[str]] = {}
    for row in read_corpus(benchmark_folder):
        by_source.setdefault(row["source_id"], []).append(row["clip_id"])
    corpus = [str(clip_id) for clip_id in index.clip_ids]
    known = set(corpus)

    ways: dict[str, dict[int, Retrieved]] = {"global": {}, "windows": {}}
    sides = {
        "val": list(benchmark.queries["val"]),
        "test": [
            pair for fold in folds(benchmark, "test", len(seeds), max_queries) for pair in fold
        ],
    }
    queries = [video for pairs in sides.values() for video, _ in pairs]
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = queries[start : start + QUERIES_AT_ONCE]
        frames = np.stack([reader.frames(video) for video in part])
        own = [
            known.intersection(by_source.get(annotations.videos[video].source_id or "", ()))
            for video in part
        ]
        for way, of_part in _search(
            encoder, index, frames, own, min(max(count, 5), len(corpus)), window_size,
            foreground_power, duplicate_cosine,
        ).items():  # fmt: skip
            ways[way] |= dict(zip(part, of_part, strict=True))

    chosen: dict[str, dict[str, list]] = {}
    short = 0
    for fold, seed in zip(folds(benchmark, "test", len(seeds), max_queries), seeds, strict=True):
        for video, name in fold:
            found = ways[vectors][video]
            if len(found.clip_ids) < count:
                short += 1
            source = annotations.videos[video].source_id
            pool = [clip for clip in corpus if clip not in by_source.get(source or "", ())]
            chosen[query_key(video, name)] = {
                "self_shot": _filled(list(found.clip_ids[:count]), count),
                "self_shot_scores": list(found.scores[:count]),
                "random": draw(pool, count, [seed, 29, video]),
                "oracle": list(benchmark.pairs["test"][query_key(video, name)][:count]),
            }
    if short:
        on_message(f"{short} queries found fewer than {count} clips; theirs are repeated")
    (folder / "supports.json").write_text(json.dumps(chosen))
    metrics = {
        side: _diagnose(benchmark, side, pairs, ways, vectors, labels, len(corpus))
        for side, pairs in sides.items()
    }
    (folder / "retrieval.json").write_text(json.dumps(metrics, indent=1))
    return metrics


def _filled(clips: list[str], count: int) -> list[str]:
    """`count` clips, repeated from the best where there are fewer.

    Raises:
        UserError: there is none.
    """
    if not clips:
        raise UserError(
            "supports.duplicate_cosine: every clip of the corpus is the query's own source or a "
            "near duplicate of it; add other clips to the corpus or raise the value"
        )
    return [clips[i % len(clips)] for i in range(count)]


def _search(
    encoder: FrozenEncoder,
    index: FlatIndex,
    frames: np.ndarray,
    own: list[set[str]],
    count: int,
    window_size: int,
    foreground_power: float,
    duplicate_cosine: float,
) -> dict[str, list[Retrieved]]:
    """Both ways for a batch of queries."""
    windows, mass = encoder.windows(frames, window_size)
    whole = encoder.embed(frames)[:, None]
    results: dict[str, list[Retrieved]] = {"global": [], "windows": []}
    for i in range(len(frames)):
        for way, vectors, weights in (
            ("global", whole[i], np.ones(1, np.float32)),
            ("windows", windows[i], mass[i]),
        ):
            results[way].append(
                retrieve(
                    index,
                    vectors,
                    weights,
                    count,
                    duplicate_cosine=duplicate_cosine,
                    own_source=own[i],
                    foreground_power=foreground_power,
                )
            )
    return results


def _diagnose(
    benchmark: Benchmark,
    side: str,
    pairs: list[tuple[int, str]],
    ways: dict[str, dict[int, Retrieved]],
    used: str,
    labels: dict[str, str],
    corpus_size: int,
) -> dict[str, Any]:
    """Precision where labels are known; counts of what was left out always."""
    found = ways[used]
    facts: dict[str, Any] = {
        "num_queries": len(pairs),
        "excluded_near_duplicates": sum(found[video].near_duplicates for video, _ in pairs),
        "excluded_same_source": sum(found[video].own_source for video, _ in pairs),
    }
    # A query whose class no corpus clip is known to show cannot be judged.
    known = set(labels.values())
    judged = [(video, name) for video, name in pairs if name in known]
    if not judged:
        return facts
    wanted = [name for _, name in judged]
    sizes = {name: sum(label == name for label in labels.values()) for name in set(wanted)}
    facts["chance"] = float(np.mean([sizes[name] / corpus_size for name in wanted]))

    def precisions(way: str, of: str | None = None) -> dict[str, float]:
        mine = [(video, name) for video, name in judged if of is None or name == of]
        classes = [[labels.get(c, "") for c in ways[way][video].clip_ids] for video, _ in mine]
        return {str(k): precision_at(classes, [name for _, name in mine], k) for k in (1, 5)}

    facts["precision_at"] = precisions(used)
    facts["per_class"] = {
        name: precisions(used, name)["5"]
        for name in sorted(benchmark.classes[side])
        if name in sizes
    }
    facts["alternatives"] = {way: {"precision_at": precisions(way)} for way in ways}
    return facts
