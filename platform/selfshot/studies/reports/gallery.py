"""The report's gallery: what was segmented with which supports, in the page and as files."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from selfshot.benchmarks.manifest import (
    Benchmark,
    first_of_each_class,
    query_key,
    read_corpus_labels,
)
from selfshot.config.schema import Experiment
from selfshot.data.clips import ClipReader
from selfshot.data.video import VideoError
from selfshot.data.ytvis import Annotations, Prediction, Track, load_results
from selfshot.evaluation.episodes import row_name
from selfshot.evaluation.rendering.animations import Animation
from selfshot.evaluation.rendering.heatmaps import draw_attention
from selfshot.evaluation.rendering.painting import (
    Instance,
    colour_of,
    paint_clip,
    prediction_colours,
)
from selfshot.evaluation.rendering.sheets import (
    SupportClip,
    SupportRow,
    captioned,
    contact_sheet,
    framed,
    still,
)
from selfshot.evaluation.rendering.videos import Pictures, Selection, file_stem, show_videos
from selfshot.evaluation.track_iou import track_iou
from selfshot.models.features import stack_supports
from selfshot.models.vis import SelfShotVIS
from selfshot.models.weights import load_vis
from selfshot.studies.reports import findings

FPS = 6.0
SHOWN_SCORE = 0.5  # weaker predictions are left out, but for the strongest when none reaches it
SHOWN = ("none", "query_itself", "random", "self_shot", "oracle")
"""Rows whose predictions are drawn, each at its fewest shots."""
SUPPORTS = ("self_shot", "random", "oracle")
KIND = "self_shot"  # the row of which there are files
_QUERY_WIDTH = 208  # pixels that pictures are enlarged towards, by a whole factor
_SUPPORT_WIDTH = 112
_MOST_SUPPORTS = 6
_SHEET_HEIGHT = 160  # of a picture on the sheet

Frames = NDArray[np.uint8]  # (T, H, W, 3)
Tracked = TypeVar("Tracked", Track, Prediction)


@dataclass(frozen=True)
class Support:
    """A clip that helped a query.

    `class_name` and `correct` come from labels that the method never sees; None where unknown.
    `score` is the cosine with the query, None where nothing was retrieved.
    """

    frames: Frames
    class_name: str | None
    score: float | None
    correct: bool | None
    clip_id: str


@dataclass(frozen=True)
class GalleryItem:
    """A query with its truth, its supports and what each row of the table predicts on it.

    Attributes:
        video, fold: of the query.
        title: of its video.
        query_class: of the query.
        frames: of the clip.
        mask_size: height and width of all masks, in pixels.
        truth: tracks of the class, with a mask for each frame of the clip. They have ids from 1,
            as the first colours are the clearest.
        supports: by their kind, best first.
        predictions: by the kind of supports, with a mask for each frame of the clip.
        attention: moments before and after the fuser, side by side; None: not drawn.
    """

    video: int
    fold: int
    title: str
    query_class: str
    frames: Frames
    mask_size: tuple[int, int]
    truth: Sequence[Track]
    supports: dict[str, list[Support]] = field(default_factory=dict)
    predictions: dict[str, Sequence[Prediction]] = field(default_factory=dict)
    attention: Frames | None = None

    def drawn(self, instances: Sequence[Instance], scale: int) -> Frames:
        """The clip, enlarged, with instances."""
        return paint_clip(self.frames, instances, self.mask_size, scale)

    def true_instances(self) -> list[Instance]:
        """The truth as it is drawn."""
        return [Instance(track.segmentations, colour_of(track.id)) for track in self.truth]

    def shown(self, kind: str) -> list[tuple[Prediction, Instance]]:
        """The predictions of a row that are shown, and as they are drawn: fainter is weaker."""
        predictions = self.predictions[kind]
        colours = prediction_colours(predictions, self.truth)
        pairs = [
            (one, Instance(one.segmentations, colour, strength=0.4 + 0.6 * min(one.score, 1.0)))
            for one, colour in zip(predictions, colours, strict=True)
        ]
        strong = [pair for pair in pairs if pair[0].score >= SHOWN_SCORE]
        return strong or sorted(pairs, key=lambda pair: -pair[0].score)[:1]


def fewest_shots(rows: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The row of a kind of supports with the fewest of them."""
    of_kind = [row for row in rows if row["supports"] == kind]
    return min(of_kind, key=lambda row: (row["shots"], row["extra"])) if of_kind else None


def read_predictions(
    evaluation: Path, row: Mapping[str, Any], fold: int, annotations: Annotations
) -> list[Prediction]:
    """What a row of the table predicts on the queries of a fold."""
    return load_results(
        evaluation / "predictions" / f"{row_name(dict(row))}.fold{fold}.json", annotations
    )


def build_gallery(
    folders: Mapping[str, Path],
    benchmark: Benchmark,
    rows: Sequence[Mapping[str, Any]],
    experiment: Experiment,
) -> list[GalleryItem]:
    """The first query of each class, then the second, until there are enough: nobody chose them.

    Args:
        folders: of the finished stages.
        benchmark: the benchmark.
        rows: of the table.
        experiment: how queries were scored, and how many are wanted.
    """
    folder = folders["benchmark"]
    reader = benchmark.reader(folder)
    annotations = reader.annotations
    support_reader = benchmark.support_reader(folder, reader, experiment.vis.support_frames)
    labels = read_corpus_labels(folder)
    chosen = json.loads((folders["supports"] / "supports.json").read_text())
    category_ids = {name: i for i, name in annotations.categories.items()}
    evaluation, count = experiment.evaluation, experiment.report.gallery_queries
    dealt = benchmark.folds("test", evaluation.folds, evaluation.max_queries_per_fold)
    queries = [(video, fold, name) for fold, some in enumerate(dealt) for video, name in some]
    order = first_of_each_class(queries, lambda query: query[2], count)
    shown = {kind: row for kind in SHOWN if (row := fewest_shots(rows, kind)) is not None}
    predictions = {
        (kind, fold): read_predictions(folders["evaluation"], row, fold, annotations)
        for kind, row in shown.items()
        for fold in {fold for _, fold, _ in order}
    }

    def supports_of(kind: str, video: int, name: str) -> list[Support]:
        found = []
        of_query = chosen[query_key(video, name)]
        for position, support in enumerate(of_query[kind]):
            label = labels.get(support) if isinstance(support, str) else name
            scores = of_query["self_shot_scores"]
            scored = kind == "self_shot" and position < len(scores)
            try:
                frames = support_reader.frames(support)
            except VideoError:
                continue
            right = None if label is None else label == name
            score = scores[position] if scored else None
            found.append(Support(frames, label, score, right, str(support)))
        return found

    def of_query(tracks: Sequence[Tracked], video: int, name: str) -> list[Tracked]:
        """Tracks of the class in the video, at the clip's frames."""
        wanted = (video, category_ids[name])
        indices = reader.frame_indices(video)
        return [
            dataclasses.replace(one, segmentations=tuple(one.segmentations[i] for i in indices))
            for one in tracks
            if (one.video_id, one.category_id) == wanted
        ]

    items = []
    for video, fold, name in order:
        facts = annotations.videos[video]
        real = [track for track in annotations.tracks_of(video) if not track.iscrowd]
        truth = of_query(real, video, name)
        predicted = {kind: of_query(predictions[kind, fold], video, name) for kind in shown}
        items.append(
            GalleryItem(
                video=video,
                fold=fold,
                title=facts.source_id or str(video),
                query_class=name,
                frames=reader.frames(video),
                mask_size=(facts.height, facts.width),
                truth=[dataclasses.replace(one, id=i) for i, one in enumerate(truth, start=1)],
                supports={k: supports_of(k, video, name) for k in SUPPORTS if k in shown},
                predictions={kind: some for kind, some in predicted.items() if some},
            )
        )
    return items


def gallery_view(items: Sequence[GalleryItem]) -> list[dict[str, Any]]:
    """What the template shows of each item: captions, numbers, and pictures as data URIs."""
    return [_item_view(item) for item in items]


def _item_view(item: GalleryItem) -> dict[str, Any]:
    scale = _scale(item.frames, _QUERY_WIDTH)
    return {
        "title": item.title,
        "query_class": item.query_class,
        "num_instances": len(item.truth),
        "query": _moving(item.drawn([], scale)),
        "truth": _moving(item.drawn(item.true_instances(), scale)),
        "predictions": [
            _prediction_view(item, kind, scale) for kind in _known_first(item.predictions)
        ],
        "attention": None if item.attention is None else _moving(item.attention),
        "supports": [
            {
                "kind": kind,
                "label": findings.LABELS.get(kind, kind),
                "clips": [_support_view(s) for s in item.supports[kind][:_MOST_SUPPORTS]],
                "left_out": max(len(item.supports[kind]) - _MOST_SUPPORTS, 0),
            }
            for kind in _known_first(item.supports, first=KIND)
            if item.supports[kind]
        ],
    }


def _prediction_view(item: GalleryItem, kind: str, scale: int) -> dict[str, Any]:
    shown = item.shown(kind)
    scores = sorted((one.score for one, _ in shown), reverse=True)
    return {
        "kind": kind,
        "label": findings.LABELS.get(kind, kind),
        "picture": _moving(item.drawn([instance for _, instance in shown], scale)),
        "scores": [f"{score:.2f}" for score in scores],
        "iou": _mean_best_iou([one for one, _ in shown], item.truth),
    }


def _mean_best_iou(shown: Sequence[Prediction], truth: Sequence[Track]) -> float | None:
    """Mean over true tracks of the best IoU that a shown mask has with it; None without truth."""
    if not truth:
        return None
    if not shown:
        return 0.0
    ious = track_iou([one.segmentations for one in shown], [one.segmentations for one in truth])
    return float(ious.max(axis=0).mean())


def _support_view(support: Support) -> dict[str, Any]:
    score = support.score
    known_score = score is not None and np.isfinite(score)
    enlarged = paint_clip(support.frames, [], (1, 1), _scale(support.frames, _SUPPORT_WIDTH))
    return {
        "picture": _moving(enlarged),
        "class_name": support.class_name,
        "score": f"{score:.2f}" if known_score else "–",
        "mark": {True: "right", False: "wrong", None: "unknown"}[support.correct],
        "clip_id": support.clip_id,
    }


def _known_first(kinds: Mapping[str, Any], first: str | None = None) -> list[str]:
    """Keys in the table's order, unknown ones last; `first` before all others."""
    order = list(findings.LABELS)
    rank = {kind: order.index(kind) if kind in order else len(order) for kind in kinds}
    return sorted(kinds, key=lambda kind: (kind != first, rank[kind]))


def _scale(frames: Frames, width: int) -> int:
    return min(max(round(width / int(frames.shape[2])), 1), 4)


def _moving(frames: Frames) -> dict[str, Any]:
    """A looping picture and its middle frame as data URIs, with the size to lay it out."""
    moving, middle = io.BytesIO(), io.BytesIO()
    with Animation(moving, "webp", FPS) as animation:
        for frame in frames:
            animation.add(Image.fromarray(frame))
    Image.fromarray(frames[len(frames) // 2]).save(middle, "WEBP", quality=75, method=2)
    return {
        "moving": data_uri("webp", moving.getvalue()),
        "still": data_uri("webp", middle.getvalue()),
        "width": frames.shape[2],
        "height": frames.shape[1],
    }


def data_uri(kind: str, content: bytes) -> str:
    """A picture inside a page."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def write_sheet(path: Path, gallery: Sequence[GalleryItem], rows: int = 5) -> None:
    """A still picture of the first items: query, three retrieved supports, what was segmented."""

    def middle(frames: Frames) -> Image.Image:
        return still(frames[len(frames) // 2], _SHEET_HEIGHT)

    lines = []
    for item in gallery[:rows]:
        tiles = {"query": middle(item.frames)}
        for number, support in enumerate(item.supports.get(KIND, [])[:3], start=1):
            tiles[f"support {number}"] = framed(middle(support.frames), support.correct)
        tiles["truth"] = middle(item.drawn(item.true_instances(), 3))
        for kind in ("random", "self_shot", "oracle"):
            if kind in item.predictions:
                instances = [instance for _, instance in item.shown(kind)]
                tiles[kind.replace("_", "-")] = middle(item.drawn(instances, 3))
        lines.append(("", [captioned(caption, tile) for caption, tile in tiles.items()]))
    if lines:
        contact_sheet(lines).save(path, optimize=True)


def write_videos(
    folder: Path,
    reader: ClipReader,
    gallery: Sequence[GalleryItem],
    predictions: Sequence[Prediction],
) -> None:
    """Figure 3: write a GIF and a sheet of each query with its self-shot supports beside it.

    Args:
        folder: of the GIFs and sheets.
        reader: of the queries.
        gallery: the items.
        predictions: with self-shot supports, of any queries.
    """
    of_video = {item.video: item for item in gallery}

    def supports(video: int) -> list[SupportRow]:
        clips = tuple(
            SupportClip(_caption(one.class_name, one.score), one.frames, one.correct)
            for one in of_video[video].supports.get(KIND, ())
        )
        return [SupportRow("self-shot supports", clips)] if clips else []

    show_videos(
        reader.annotations,
        reader.frame_reader,
        Pictures(
            folder,
            ("gif", "png"),
            FPS,
            title="Queries, what was found for them, and what was segmented",
        ),
        list(of_video),
        results=Selection(predictions, SHOWN_SCORE),
        supports=supports,
    )


def _caption(name: str | None, score: float | None) -> str:
    known = "class unknown" if name is None else name
    return known if score is None else f"{known} {score:.2f}"


@torch.inference_mode()
def write_attention(
    folder: Path,
    export: Path,
    reader: ClipReader,
    gallery: Sequence[GalleryItem],
    shots: int,
    device: str,
) -> list[GalleryItem]:
    """Figure 5: write a GIF and a sheet of each query's attention, and return the items with it.

    Args:
        folder: of the GIFs and sheets.
        export: of the trained model; one without a fuser has nothing to draw.
        reader: of the queries.
        gallery: the items; those without self-shot supports are left as they are.
        shots: supports that the model is given.
        device: where it runs.
    """
    model = load_vis(export).to(device)
    if not isinstance(model, SelfShotVIS):
        return list(gallery)
    folder.mkdir(exist_ok=True)
    drawn = []
    for item in gallery:
        clips = [one.frames for one in item.supports.get(KIND, ())[:shots]]
        if not clips:
            drawn.append(item)
            continue
        frames = item.frames[reader.valid_frames(item.video)]
        encoded = [model.encode(torch.from_numpy(c)[None], is_support=True) for c in clips]
        stem = folder / file_stem(reader.annotations.videos[item.video])
        moments = draw_attention(model, frames, stack_supports([encoded]), stem)
        attention = np.stack([np.asarray(moment) for moment in moments])
        drawn.append(dataclasses.replace(item, attention=attention))
    return drawn
