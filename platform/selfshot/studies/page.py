"""The report of an experiment: gathers what the stages left and has the page written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from selfshot.benchmarks.manifest import Benchmark, load_benchmark, query_key, read_corpus_labels
from selfshot.config.load import resolved_yaml
from selfshot.data.clips import ClipReader
from selfshot.data.video import VideoError
from selfshot.data.ytvis import load_results
from selfshot.evaluation.corpus_map import draw_corpus
from selfshot.evaluation.episodes import SupportReader, folds, row_name
from selfshot.evaluation.pictures import contact_sheet, overlay
from selfshot.models.device import device_for
from selfshot.ops.masks import decode_rle
from selfshot.retrieval.embeddings import read_embeddings
from selfshot.studies.environment import run_environment
from selfshot.studies.examples import KIND, write_attention, write_films
from selfshot.studies.gallery import SHOWN_SCORE
from selfshot.studies.published import published_rows
from selfshot.studies.report import GalleryItem, Support, write_report

if TYPE_CHECKING:
    from selfshot.studies.context import Context

SHOWN = ("none", "query_itself", "random", "self_shot", "oracle")
"""Rows whose predictions the gallery draws, each at its fewest shots."""


def make_page(context: Context, folder: Path) -> None:
    """Write the report into `folder`."""
    experiment, folders = context.experiment, context.folders
    benchmark = load_benchmark(folders["benchmark"])
    rows = json.loads((folders["evaluation"] / "results.json").read_text())
    retrieval = json.loads((folders["supports"] / "retrieval.json").read_text())
    gallery = build_gallery(
        folders, benchmark, rows, len(experiment.evaluation.seeds),
        experiment.evaluation.max_queries_per_seed, experiment.report.gallery_queries,
        support_frames=experiment.evaluation.support_frames,
    )  # fmt: skip
    films = min(experiment.report.films, len(gallery))
    if films:
        gallery = _write_examples(context, folder, benchmark, rows, gallery, films)
    write_report(
        folder,
        title=experiment.name,
        description=experiment.description,
        rows=rows,
        retrieval=retrieval["test"],
        benchmark={
            "name": benchmark.name,
            "counts": benchmark.counts,
            "classes": {side: list(names) for side, names in benchmark.classes.items()},
        },
        gallery=gallery,
        curves=_curves(folders),
        timings=context.timings,
        published=published_rows(),
        mlflow=context.tracking,
        environment={
            **run_environment(),
            "stage keys": "\n".join(f"{name}: {key}" for name, key in context.keys.items()),
            "settings": resolved_yaml(experiment),
        },
    )
    write_sheet(folder / "gallery.png", gallery)
    draw_corpus(
        folder / "corpus.png",
        *read_embeddings(folders["embeddings"]),
        read_corpus_labels(folders["benchmark"]),
    )


def _curves(folders: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    curves = {}
    for name in ("backbone", "encoder", "vis", "vis_no_fuser"):
        history = folders[name] / "history.jsonl" if name in folders else None
        if history is not None and history.exists():
            points = [json.loads(line) for line in history.read_text().splitlines()]
            curves[name] = [
                {k: v for k, v in point.items() if k != "time" and not k.startswith("lr")}
                for point in points
            ]
    return curves


def gallery_order(
    benchmark: Benchmark, num_folds: int, most: int | None, count: int
) -> list[tuple[str, int, int]]:
    """Class, video and fold: the first query of each class, then the second, up to `count`."""
    by_class: dict[str, list[tuple[int, int]]] = {}
    for number, fold in enumerate(folds(benchmark, "test", num_folds, most)):
        for video, name in fold:
            by_class.setdefault(name, []).append((video, number))
    turns = max((len(videos) for videos in by_class.values()), default=0)
    return [
        (name, *by_class[name][turn])
        for turn in range(turns)
        for name in sorted(by_class)
        if turn < len(by_class[name])
    ][:count]


def _fewest(rows: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The row of a kind of supports with the fewest of them."""
    of_kind = [row for row in rows if row["supports"] == kind]
    return min(of_kind, key=lambda row: (row["shots"], row["extra"])) if of_kind else None


def _write_examples(
    context: Context,
    folder: Path,
    benchmark: Benchmark,
    rows: list[dict[str, Any]],
    gallery: list[GalleryItem],
    count: int,
) -> list[GalleryItem]:
    """Figures 3 and 5 of the first items, where the table has a row of self-shot supports."""
    evaluation, folders = context.experiment.evaluation, context.folders
    row = _fewest(rows, KIND)
    if row is None:
        context.progress.note(f"report.films: the table has no row {KIND}, so none is drawn")
        return gallery
    reader = benchmark.reader(folders["benchmark"])
    order = gallery_order(
        benchmark, len(evaluation.seeds), evaluation.max_queries_per_seed, count
    )
    videos = [video for _, video, _ in order]
    predictions = [
        one
        for number in sorted({number for _, _, number in order})
        for one in load_results(
            folders["evaluation"] / "predictions" / f"{row_name(row)}.fold{number}.json",
            reader.annotations,
        )
    ]
    write_films(folder, reader, videos, gallery[:count], predictions)
    export = folders["vis"] / "export"
    shots = row["shots"] + row["extra"]
    device = device_for(context.experiment.compute.use_gpu, context.progress.note)
    drawn = write_attention(folder, export, reader, videos, gallery[:count], shots, device)
    return [*drawn, *gallery[count:]]


def build_gallery(
    folders: dict[str, Path],
    benchmark: Benchmark,
    rows: list[dict[str, Any]],
    num_folds: int,
    most: int | None,
    count: int,
    support_frames: int | None = None,
) -> list[GalleryItem]:
    """The first query of each class, then the second, until there are enough: nobody chose them.

    Args:
        folders: of the finished stages.
        benchmark: the benchmark.
        rows: of the table.
        num_folds: folds of the test queries.
        most: queries of a fold.
        count: items wanted.
        support_frames: frames of a support; none: as many as the benchmark's clips have.
    """
    folder = folders["benchmark"]
    reader = benchmark.reader(folder)
    annotations = reader.annotations
    support_reader = SupportReader(folder, benchmark, reader, support_frames)
    labels = read_corpus_labels(folder)
    chosen = json.loads((folders["supports"] / "supports.json").read_text())
    category_ids = {name: i for i, name in annotations.categories.items()}

    order = gallery_order(benchmark, num_folds, most, count)
    shown = {kind: row for kind in SHOWN if (row := _fewest(rows, kind)) is not None}
    predictions = {
        (kind, number): load_results(
            folders["evaluation"] / "predictions" / f"{row_name(row)}.fold{number}.json",
            annotations,
        )
        for kind, row in shown.items()
        for number in {number for _, _, number in order}
    }

    def supports_of(kind: str, video: int, name: str) -> list[Support]:
        found = []
        of_query = chosen[query_key(video, name)]
        for position, support in enumerate(of_query[kind]):
            is_clip = isinstance(support, str)
            label = labels.get(support) if is_clip else name
            scores = of_query["self_shot_scores"]
            scored = kind == "self_shot" and position < len(scores)
            try:
                frames = support_reader.frames(support)
            except VideoError:
                continue
            found.append(
                Support(
                    frames=frames,
                    class_name=label,
                    score=scores[position] if scored else None,
                    correct=None if label is None else label == name,
                    clip_id=str(support),
                )
            )
        return found

    items = []
    for name, video, number in order:
        predicted = {}
        for kind in shown:
            asked = (video, category_ids[name])
            mine = [p for p in predictions[kind, number] if (p.video_id, p.category_id) == asked]
            masks = [_clip_masks(p.segmentations, reader, video) for p in mine]
            if masks:
                predicted[kind] = (np.stack(masks), np.array([p.score for p in mine]))
        truth = reader.tracks(video, stride=1, category_id=category_ids[name]).masks > 0.5
        items.append(
            GalleryItem(
                title=annotations.videos[video].source_id or str(video),
                query_class=name,
                query_frames=reader.frames(video),
                truth_masks=truth,
                supports={
                    kind: supports_of(kind, video, name)
                    for kind in ("self_shot", "random", "oracle")
                    if kind in shown
                },
                predictions=predicted,
            )
        )
    return items


def _clip_masks(segmentations: tuple, reader: ClipReader, video_id: int) -> np.ndarray:
    """A predicted track at the clip's frames and size, bool (T, H, W)."""
    video = reader.annotations.videos[video_id]
    rows = (np.arange(reader.height) + 0.5) * video.height / reader.height
    columns = (np.arange(reader.width) + 0.5) * video.width / reader.width
    masks = np.zeros((reader.num_frames, reader.height, reader.width), bool)
    for i, index in enumerate(reader.frame_indices(video_id)):
        if segmentations[index] is not None:
            dense = decode_rle(segmentations[index], video.height, video.width)
            masks[i] = dense[rows.astype(int)][:, columns.astype(int)]
    return masks


def write_sheet(path: Path, gallery: list[GalleryItem], rows: int = 5) -> None:
    """A still picture of the first items: query, three retrieved supports, what was segmented."""
    strips = []
    for item in gallery[:rows]:
        supports = item.supports.get("self_shot", [])[:3]
        truth = overlay(item.query_frames, item.truth_masks)
        results = {"truth": truth}
        for kind in ("random", "self_shot", "oracle"):
            if kind in item.predictions:
                masks, scores = item.predictions[kind]
                kept = np.flatnonzero(scores >= SHOWN_SCORE)
                kept = kept if len(kept) else np.array([scores.argmax()])
                results[kind.replace("_", "-")] = overlay(item.query_frames, masks[kept])
        sheet = contact_sheet(
            item.query_frames,
            [support.frames for support in supports],
            results,
            correct=[support.correct for support in supports],
        )
        strips.append(Image.open(io.BytesIO(sheet)))
    if not strips:
        return
    size = (max(s.width for s in strips), sum(s.height for s in strips))
    picture = Image.new("RGB", size, "white")
    top = 0
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height
    picture.save(path, optimize=True)
