"""The supports stage: every query's supports of every kind, and how good the retrieval is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
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
from selfshot.data.clips import ClipReader
from selfshot.data.video import VideoError
from selfshot.data.ytvis import fold_source
from selfshot.errors import UserError
from selfshot.evaluation.episodes import SupportReader, first_of_each_class, folds
from selfshot.evaluation.ranking import Ranking, precision_at, ranking_scores
from selfshot.evaluation.rendering.sheets import Tile, query_sheet
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.retrieval.building import load_index
from selfshot.retrieval.methods import (
    Asked,
    Chosen,
    Method,
    OracleVideos,
    QueryCrops,
    RandomClips,
    RetrievedClips,
    SemiShot,
    Support,
)
from selfshot.studies.describing import QUERIES_AT_ONCE, WAYS, DescribedVideos, SeenClasses
from selfshot.studies.seen import read_seen

SHEET_FILE = "gallery.png"


@dataclasses.dataclass(frozen=True)
class SupportSettings:
    """How supports are chosen; see `SupportsConfig`.

    `count` is the supports of each kind, `kinds` those that are made beside random, self-shot and
    oracle ones, and `semi_shot` pairs of labelled and found.
    """

    count: int
    vectors: str
    window_size: int
    duplicate_cosine: float
    expand_by: int = 0
    suspect_cosine: float = 0.9
    corpus_share: float = 1.0
    corpus_seed: int = 0
    kinds: Sequence[str] = ()
    semi_shot: Sequence[tuple[int, int]] = ()
    candidates: int = 50
    seen_penalty: float = 0.0
    crop_share: float = 0.5
    judged_ranks: int = 50
    gallery_queries: int = 12


def choose_supports(
    folder: Path,
    settings: SupportSettings,
    *,
    benchmark_folder: Path,
    encoder: FrozenEncoder,
    index_folder: Path,
    seen_folder: Path | None = None,
    seeds: Sequence[int],
    max_queries: int | None,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """Write supports.json (query → kind → supports, best first), retrieval.json and gallery.png.

    `random` is drawn with the seed of the query's fold; `oracle` takes the first of the pairs that
    the benchmark fixes; `self_shot` reads no label of the corpus and
    of no unseen class, and `seen_penalty`
    those of seen classes besides. Labels of the corpus, where there are any, only measure the
    retrieval.

    Args:
        folder: of the stage.
        settings: how.
        benchmark_folder: of the benchmark.
        encoder: the trained Φ, on any device.
        index_folder: of the corpus index.
        seen_folder: of the labelled clips of seen classes, for the kind `seen_penalty`.
        seeds: of the folds.
        max_queries: of a fold.
        on_message: told of what is set aside.

    Returns:
        For `val` and `test`: chance, precision, recall and mAP of the retrieval, of each way to
        make the query's vectors, and the counts of what was left out.
    """
    benchmark = load_benchmark(benchmark_folder)
    reader = benchmark.reader(benchmark_folder)
    index = load_index(index_folder)
    searched = index.clip_ids.share(settings.corpus_share, settings.corpus_seed)
    if not len(searched):
        raise UserError(
            f"supports.corpus_share: {settings.corpus_share:g} leaves none of {len(index)} clips; "
            "raise it",
            setting="supports.corpus_share",
        )
    if settings.corpus_share < 1:
        on_message(f"{len(searched):,} of {len(index):,} clips are searched")
    corpus = _Corpus(benchmark_folder, reader, set(index.clip_ids.at(searched).tolist()))
    seen = None
    if seen_folder is not None:
        seen = SeenClasses(read_seen(seen_folder), settings.seen_penalty)
    described = DescribedVideos(encoder, reader, settings.window_size, seen)
    subset = searched if settings.corpus_share < 1 else None
    ways = {
        way: RetrievedClips(
            index,
            described.by(way),
            settings.duplicate_cosine,
            subset,
            settings.expand_by,
            settings.candidates,
        )
        for way in WAYS
        if way != "seen_penalty" or seen is not None
    }
    test = [
        (Asked(query_key(video, name), video, seed, corpus.own_source(video)), name)
        for fold, seed in zip(folds(benchmark, "test", len(seeds), max_queries), seeds, strict=True)
        for video, name in fold
    ]
    val = [
        (Asked(query_key(video, name), video, 0, corpus.own_source(video)), name)
        for video, name in benchmark.queries["val"]
    ]
    # The first clips of a longer ranking are those of a shorter one.
    depth = min(max(settings.count, settings.judged_ranks, 5), len(searched))
    found: dict[str, dict[str, Chosen]] = {way: {} for way in ways}
    drawn: dict[str, Chosen] = {}
    scored = RandomClips(index, searched, described.by(settings.vectors))
    for queries in _batches([query for query, _ in val + test]):
        described.prepare([query.video for query in queries])
        for way, retrieved in ways.items():
            found[way] |= _by_key(queries, retrieved(queries, depth))
        drawn |= _by_key(queries, scored(queries, settings.count))

    made: dict[str, Method] = {"oracle": OracleVideos(benchmark.pairs["test"])}
    made |= {
        kind: QueryCrops(of, settings.crop_share)
        for kind, of in (("temporal_crops", "time"), ("spatial_crops", "space"))
        if kind in settings.kinds
    }
    semi_shot = dict(sorted(settings.semi_shot)) if "semi_shot" in settings.kinds else {}
    for labelled in semi_shot:
        made[f"semi_shot_{labelled}"] = SemiShot(
            index, described.by(settings.vectors), benchmark.pairs["test"], corpus.own_source,
            labelled, settings.candidates, settings.duplicate_cosine, subset,
        )  # fmt: skip
    counts = {
        f"semi_shot_{labelled}": labelled + most for labelled, most in semi_shot.items()
    }
    chosen: dict[str, dict[str, list]] = {query.key: {} for query, _ in test}
    short = 0
    for queries in _batches([query for query, _ in test]):
        for query in queries:
            mine = found[settings.vectors][query.key]
            short += len(mine.supports) < settings.count
            compared = {"self_shot": mine, "random": drawn[query.key]}
            if seen is not None:
                compared["seen_penalty"] = found["seen_penalty"][query.key]
            for kind, one in compared.items():
                chosen[query.key][kind] = _filled(one.supports, settings.count)
                chosen[query.key][f"{kind}_scores"] = list(one.scores[: settings.count])
        if semi_shot:
            described.prepare(
                [query.video for query in queries]
                + [v for q in queries for v in benchmark.pairs["test"][q.key][: max(semi_shot)]]
            )
        for kind, method in made.items():
            count = counts.get(kind, settings.count)
            for query, one in zip(queries, method(queries, count), strict=True):
                chosen[query.key][kind] = (
                    list(one.supports) if kind == "oracle" else _filled(one.supports, count)
                )
    if short:
        on_message(f"{short} queries found fewer than {settings.count} clips; theirs are repeated")
    (folder / "supports.json").write_text(json.dumps(chosen))

    metrics = {}
    for side, pairs in (("val", val), ("test", test)):
        blind = RandomClips(index, searched)
        random = _by_key([q for q, _ in pairs], blind([q for q, _ in pairs], depth))
        metrics[side] = _diagnose(
            benchmark, side, pairs, found | {"random": random}, settings.vectors, corpus.labels,
            len(searched), depth,
        )  # fmt: skip
        near = {query.key: found["global"][query.key].scores for query, _ in pairs}
        suspects = sum(score > settings.suspect_cosine for some in near.values() for score in some)
        metrics[side]["suspected_same_scene"] = suspects
        if suspects:
            on_message(
                f"{suspects} clips are nearer than {settings.suspect_cosine:g} to a {side} query "
                f"and kept: see {SHEET_FILE} whether they show its own scene, and "
                "supports.duplicate_cosine"
            )
    (folder / "retrieval.json").write_text(json.dumps(metrics, indent=1))
    if settings.gallery_queries:
        shown = first_of_each_class(test, settings.gallery_queries)
        _draw_gallery(
            folder / SHEET_FILE, shown, found[settings.vectors], corpus, reader,
            SupportReader(benchmark_folder, benchmark, reader),
        )  # fmt: skip
    return metrics


class _Corpus:
    """What is known of the clips that are searched."""

    def __init__(self, folder: Path, reader: ClipReader, searched: set[str]) -> None:
        self.labels = {
            clip: name for clip, name in read_corpus_labels(folder).items() if clip in searched
        }
        self._sources = reader.annotations.sources
        self._by_source: dict[str, set[str]] = {}
        for row in read_corpus(folder):
            if row["clip_id"] in searched:
                self._by_source.setdefault(fold_source(row["source_id"]), set()).add(row["clip_id"])

    def own_source(self, video: int) -> frozenset[str]:
        """Clips from the same source as an annotated video."""
        return frozenset(self._by_source.get(fold_source(self._sources[video]), ()))


def _batches(queries: Sequence[Asked]) -> list[Sequence[Asked]]:
    return [
        queries[start : start + QUERIES_AT_ONCE]
        for start in range(0, len(queries), QUERIES_AT_ONCE)
    ]


def _by_key(queries: Sequence[Asked], chosen: Sequence[Chosen]) -> dict[str, Chosen]:
    return {query.key: one for query, one in zip(queries, chosen, strict=True)}


def _filled(supports: Sequence[Support], count: int) -> list[Support]:
    """`count` supports, repeated from the best where there are fewer.

    Raises:
        UserError: there is none.
    """
    if not supports:
        raise UserError(
            "supports.duplicate_cosine: every clip of the corpus is the query's own source or a "
            "near duplicate of it; add other clips to the corpus or raise the value",
            setting="supports.duplicate_cosine",
        )
    return [supports[i % len(supports)] for i in range(count)]


def _diagnose(
    benchmark: Benchmark,
    side: str,
    pairs: Sequence[tuple[Asked, str]],
    ways: Mapping[str, Mapping[str, Chosen]],
    used: str,
    labels: Mapping[str, str],
    corpus_size: int,
    depth: int,
) -> dict[str, Any]:
    """Precision, recall and mAP where labels are known; counts of what was left out always."""
    found = ways[used]
    facts: dict[str, Any] = {
        "num_queries": len(pairs),
        "clips_searched": corpus_size,
        "excluded_near_duplicates": sum(found[query.key].near_duplicates for query, _ in pairs),
        "excluded_same_source": sum(found[query.key].own_source for query, _ in pairs),
    }
    # A query whose class no corpus clip is known to show cannot be judged.
    known = list(labels.values())
    sizes = {name: known.count(name) for name in {name for _, name in pairs} & set(known)}
    judged = [(query, name) for query, name in pairs if name in sizes]
    if not judged:
        return facts
    facts["chance"] = float(np.mean([sizes[name] / corpus_size for _, name in judged]))

    def rankings(way: str) -> list[Ranking]:
        return [
            Ranking(
                [labels.get(str(clip), "") for clip in ways[way][query.key].supports],
                name,
                sizes[name],
            )
            for query, name in judged
        ]

    every = {way: rankings(way) for way in ways}
    scores = {way: ranking_scores(of_way, depth) for way, of_way in every.items()}
    by_class = {
        name: [ranking for ranking in every[used] if ranking.wanted == name]
        for name in sorted(benchmark.classes[side])
        if name in sizes
    }
    return {
        **facts,
        **scores[used],
        "per_class": {name: precision_at(some, 5) for name, some in by_class.items()},
        "mAP_per_class": {
            name: ranking_scores(some, depth)["mAP"] for name, some in by_class.items()
        },
        "judged_ranks": depth,
        "random": scores["random"],
        "alternatives": {way: scores[way] for way in WAYS if way in scores},
    }


def _draw_gallery(
    path: Path,
    shown: Sequence[tuple[Asked, str]],
    found: Mapping[str, Chosen],
    corpus: _Corpus,
    reader: ClipReader,
    supports: SupportReader,
    most: int = 5,
) -> None:
    """Queries with the first clips that were found for them."""
    rows = []
    for query, name in shown:
        mine = found[query.key]
        left_out = mine.near_duplicates + mine.own_source
        frames = reader.frames(query.video)
        caption = f"{name}, video {query.video}" + (f"\n{left_out} left out" if left_out else "")
        tiles = []
        for clip, score in zip(mine.supports[:most], mine.scores, strict=False):
            label = corpus.labels.get(str(clip))
            try:
                clip_frames = supports.frames(clip)
                frame = clip_frames[len(clip_frames) // 2]
            except VideoError:
                frame = None
            caption_of_clip = f"{label or 'unknown'} {score:.3f}\n{str(clip)[-28:]}"
            tiles.append(Tile(frame, caption_of_clip, None if label is None else label == name))
        rows.append((Tile(frames[len(frames) // 2], caption), tiles))
    query_sheet(rows).save(path)
