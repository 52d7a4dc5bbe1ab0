"""The two stages of retrieval, and the same search for clips of one's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from safetensors.numpy import save_file

from selfshot.benchmarks.manifest import (
    first_of_each_class,
    load_benchmark,
    query_key,
    read_corpus,
    read_corpus_labels,
)
from selfshot.config.schema import Experiment
from selfshot.data.clips import ClipReader
from selfshot.data.supports import SupportReader
from selfshot.data.video import VideoError
from selfshot.data.ytvis import fold_source
from selfshot.errors import UserError
from selfshot.evaluation.rendering.sheets import Tile, query_sheet
from selfshot.models.device import device_for
from selfshot.models.trained_encoder import FrozenEncoder, load_encoder
from selfshot.retrieval.building import load_index
from selfshot.retrieval.describe import (
    SEEN_FILE,
    QueryEncoder,
    SeenClasses,
    batches_of,
    read_seen,
)
from selfshot.retrieval.judge import JUDGED_RANKS, SUSPECT_COSINE, judge
from selfshot.retrieval.search import CorpusSearch, SearchResult
from selfshot.retrieval.select import Query, Sources, select
from selfshot.store.local import StageFolder
from selfshot.studies.context import Context, Metrics
from selfshot.studies.settings import precision_of_vectors

SEEN_CLIPS = 12
"""Labelled clips of each seen class, for the seen-class penalty: its first support videos."""

SHEET_FILE, SHEET_QUERIES, SHEET_CLIPS = "gallery.png", 12, 5


def make_seen(context: Context, folder: StageFolder) -> Metrics:
    """Φ of labelled clips of the seen classes; returns how many clips of how many classes.

    Raises:
        UserError: the benchmark has no support video of a seen class.
    """
    source = context.folders["benchmark"]
    benchmark = load_benchmark(source)
    by_class = {
        name: list(videos[:SEEN_CLIPS])
        for name, videos in benchmark.supports["train"].items()
        if videos
    }
    videos = sorted({video for some in by_class.values() for video in some})
    if not videos:
        raise UserError(
            "evaluation.supports: 'seen_penalty' needs labelled videos of seen classes, and the "
            "benchmark has no support video of one; take the row out",
            setting="evaluation.supports",
        )
    encoder = _encoder(context)
    report = context.progress.every("labelled clips of seen classes")
    vectors: list[np.ndarray] = []
    for _, frames in batches_of(videos, benchmark.reader(source).frames):
        vectors += [*encoder.embed(frames)]
        report(len(vectors), len(videos))
    save_file({"vectors": np.stack(vectors).astype(np.float32)}, folder.path / SEEN_FILE)
    (folder.path / "seen.json").write_text(json.dumps({"videos": videos, "classes": by_class}))
    return {"clips": len(videos), "classes": len(by_class)}


def _encoder(context: Context) -> FrozenEncoder:
    """The trained Φ, where it runs."""
    device = device_for(context.experiment.compute.use_gpu, context.progress.note)
    precision = precision_of_vectors(context.experiment)
    return load_encoder(context.folders["encoder"] / "export", precision).to(device)


def open_search(
    experiment: Experiment, folders: Mapping[str, Path], encoder: FrozenEncoder
) -> tuple[QueryEncoder, CorpusSearch]:
    """How an experiment describes queries, and searches its whole corpus.

    Args:
        experiment: whose settings count.
        folders: of its `retrieval_stages`.
        encoder: the trained Φ, on any device.
    """
    section = experiment.supports
    seen = None
    if "seen" in folders:
        seen = SeenClasses(read_seen(folders["seen"]), section.seen_penalty)
    return (
        QueryEncoder(encoder, section.window_size, seen),
        CorpusSearch(load_index(folders["index"]), section.duplicate_cosine, section.expand_by),
    )


def retrieval_stages(experiment: Experiment) -> list[str]:
    """The stages that `open_search` reads."""
    penalised = "seen_penalty" in experiment.evaluation.supports
    return ["encoder", "index", *(["seen"] if penalised else [])]


def retrieve_clips(
    experiment: Experiment,
    folders: Mapping[str, Path],
    clips: UInt8[np.ndarray, "clips time height width 3"],
    count: int,
    device: str,
) -> list[SearchResult]:
    """Clips of an experiment's corpus for clips of one's own, as the stage `supports` finds them.

    Args:
        experiment: whose settings count.
        folders: of its `retrieval_stages`.
        clips: of the queries.
        count: clips wanted of each.
        device: where the encoder runs.
    """
    precision = precision_of_vectors(experiment)
    encoder = load_encoder(folders["encoder"] / "export", precision).to(device)
    describe, search = open_search(experiment, folders, encoder)
    way = "seen_penalty" if "seen" in folders else experiment.supports.vectors
    return [search(described[way], count) for described in describe(clips)]


def make_supports(context: Context, folder: StageFolder) -> Metrics:
    """Write supports.json (query → kind → supports, best first), retrieval.json and gallery.png.

    `self_shot` reads no label of the corpus and of no unseen class, and `seen_penalty` those of
    seen classes besides. Labels of the corpus, where there are any, only judge the search.

    Returns:
        For `val` and `test`: chance, precision, recall and mAP of the retrieval, of each way to
        make the query's vectors, and the counts of what was left out.
    """
    experiment, note = context.experiment, context.progress.note
    section, evaluation = experiment.supports, experiment.evaluation
    source = context.folders["benchmark"]
    benchmark = load_benchmark(source)
    reader = benchmark.reader(source)
    describe, search = open_search(experiment, context.folders, _encoder(context))
    if section.corpus_share < 1:
        search = _share(search, section.corpus_share, section.corpus_seed)
        note(f"{len(search):,} of {len(search.index):,} clips are searched")
    own_source = _own_source(source, reader)
    dealt = benchmark.folds("test", evaluation.folds, evaluation.max_queries_per_fold)
    splits = {
        split: [
            Query(query_key(video, name), video, name, fold, own_source(video))
            for fold, some in enumerate(folds)
            for video, name in some
        ]
        for split, folds in (("val", [benchmark.queries["val"]]), ("test", dealt))
    }
    queries = [query for some in splits.values() for query in some]
    wanted = section.chosen(evaluation.supports)
    # The first clips of a longer ranking are those of a shorter one.
    depth = min(max(section.most, JUDGED_RANKS), len(search))

    labelled = max((shots for kind, shots, _ in wanted.values() if kind == "semi_shot"), default=0)
    pairs = benchmark.pairs["test"]
    paired = [video for query in splits["test"] for video in pairs[query.key][:labelled]]
    described = describe.videos([*(query.video for query in queries), *paired], reader.frames)
    found = {
        way: {q.key: search(described[q.video][way], depth, q.own_source) for q in queries}
        for way in describe.ways
    }
    sources = Sources(
        search, found, lambda video: described[video][section.vectors], section.vectors, pairs,
        own_source,
    )  # fmt: skip
    chosen = {query.key: select(sources, query, wanted) for query in splits["test"]}
    short = sum(len(found[section.vectors][key].clip_ids) < section.most for key in chosen)
    if short:
        note(f"{short} queries found fewer than {section.most} clips; theirs are repeated")
    (folder.path / "supports.json").write_text(json.dumps(chosen))

    clips = search.index.clip_ids if search.rows is None else search.index.clip_ids.at(search.rows)
    searched = set(clips)
    labels = {clip: name for clip, name in read_corpus_labels(source).items() if clip in searched}
    found["random"] = {
        q.key: SearchResult(search.draw(depth, [q.fold, 29, q.video], q.own_source), ())
        for q in queries
    }
    metrics = {
        split: judge(some, found, section.vectors, labels, len(search), depth)
        for split, some in splits.items()
    }
    (folder.path / "retrieval.json").write_text(json.dumps(metrics, indent=1))
    shown = first_of_each_class(splits["test"], lambda query: query.class_name, SHEET_QUERIES)
    supports = benchmark.support_reader(source, reader)
    _sheet(shown, found[section.vectors], labels, supports).save(folder.path / SHEET_FILE)
    _tell(metrics, note)
    return metrics


def _share(search: CorpusSearch, share: float, seed: int) -> CorpusSearch:
    """The same of a part of the corpus.

    Raises:
        UserError: nothing is in it.
    """
    rows = search.index.clip_ids.share(share, seed)
    if not len(rows):
        raise UserError(
            f"supports.corpus_share: {share:g} leaves none of {len(search)} clips; raise it",
            setting="supports.corpus_share",
        )
    return dataclasses.replace(search, rows=rows)


def _own_source(folder: Path, reader: ClipReader) -> Callable[[int], frozenset[str]]:
    """Gives the clips of the corpus from the same source as an annotated video."""
    sources = reader.annotations.sources
    by_source: dict[str, set[str]] = {}
    for row in read_corpus(folder):
        by_source.setdefault(fold_source(row["source_id"]), set()).add(row["clip_id"])
    return lambda video: frozenset(by_source.get(fold_source(sources[video]), ()))


def _tell(metrics: Mapping[str, Mapping[str, Any]], note: Callable[[str], None]) -> None:
    for split, judged in metrics.items():
        if judged["suspected_same_scene"]:
            note(
                f"{judged['suspected_same_scene']} clips are nearer than {SUSPECT_COSINE:g} to a "
                f"{split} query and kept: see {SHEET_FILE} whether they show its own scene, and "
                "supports.duplicate_cosine"
            )
    test = metrics["test"]
    note(
        f"precision@5 on unseen classes: {100 * test['precision_at']['5']:.1f}% "
        f"(chance {100 * test['chance']:.1f}%), mAP {100 * test['mAP']:.1f}% "
        f"(random {100 * test['random']['mAP']:.1f}%)"
        if "precision_at" in test
        else "the corpus has no labels, so no precision is known"
    )
    note(
        f"left out: {test['excluded_near_duplicates']} near duplicates, "
        f"{test['excluded_same_source']} clips of a query's own source"
    )


def _sheet(
    shown: Sequence[Query],
    found: Mapping[str, SearchResult],
    labels: Mapping[str, str],
    supports: SupportReader,
) -> Image.Image:
    """Queries with the first clips that were found for them."""
    rows = []
    for query in shown:
        result = found[query.key]
        left_out = result.near_duplicates + result.own_source
        frames = supports.frames(query.video)
        caption = f"{query.class_name}, video {query.video}"
        caption += f"\n{left_out} left out" if left_out else ""
        tiles = []
        for clip, score in zip(result.clip_ids[:SHEET_CLIPS], result.scores, strict=False):
            label = labels.get(clip)
            try:
                clip_frames = supports.frames(clip)
                frame = clip_frames[len(clip_frames) // 2]
            except VideoError:
                frame = None
            right = None if label is None else label == query.class_name
            tiles.append(Tile(frame, f"{label or 'unknown'} {score:.3f}\n{clip[-28:]}", right))
        rows.append((Tile(frames[len(frames) // 2], caption), tiles))
    return query_sheet(rows)
