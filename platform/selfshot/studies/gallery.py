"""The report's gallery: what was segmented with which supports, as pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfshot.evaluation import pictures
from selfshot.studies import findings

FPS = 6.0
SHOWN_SCORE = 0.5  # weaker predictions are left out, but for the strongest when none reaches it
_QUERY_WIDTH = 208  # pixels that pictures are enlarged towards, by a whole factor
_SUPPORT_WIDTH = 112
_MOST_SUPPORTS = 6


@dataclass(frozen=True)
class Support:
    """A clip that helped a query.

    `class_name` and `correct` come from labels that the method never sees; None where unknown.
    `score` is the cosine with the query, None where nothing was retrieved.
    """

    frames: NDArray[np.uint8]  # (T, H, W, 3)
    class_name: str | None
    score: float | None
    correct: bool | None
    clip_id: str


@dataclass(frozen=True)
class GalleryItem:
    """A query with its truth, its supports and what each row of the table predicts on it."""

    title: str
    query_class: str
    query_frames: NDArray[np.uint8]  # (T, H, W, 3)
    truth_masks: NDArray[np.bool_]  # (m, T, H, W)
    supports: dict[str, list[Support]] = field(default_factory=dict)
    # supports → (masks (n, T, H, W), scores (n,))
    predictions: dict[str, tuple[NDArray[np.bool_], NDArray[np.floating]]] = field(
        default_factory=dict
    )
    # Moments of the attention before and after the fuser, side by side; None: not drawn.
    attention: NDArray[np.uint8] | None = None  # (T, h, w, 3)


def gallery_view(items: Sequence[GalleryItem]) -> list[dict[str, Any]]:
    """What the template shows of each item: captions, numbers, and pictures as data URIs."""
    return [_item_view(item) for item in items]


def moving(frames: NDArray[np.uint8]) -> dict[str, Any]:
    """A looping picture and its middle frame as data URIs, with the size to lay it out."""
    middle = frames[len(frames) // 2]
    return {
        "moving": _data_uri(pictures.animation(frames, FPS)),
        "still": _data_uri(pictures.still(middle)),
        "width": frames.shape[2],
        "height": frames.shape[1],
    }


def _item_view(item: GalleryItem) -> dict[str, Any]:
    truth = np.asarray(item.truth_masks, dtype=bool)
    scale = _scale(item.query_frames, _QUERY_WIDTH)
    return {
        "title": item.title,
        "query_class": item.query_class,
        "num_instances": len(truth),
        "query": moving(pictures.enlarge(item.query_frames, scale)),
        "truth": moving(pictures.overlay(item.query_frames, truth, scale=scale)),
        "predictions": [
            _prediction_view(item, kind, truth, scale) for kind in _known_first(item.predictions)
        ],
        "attention": None if item.attention is None else moving(item.attention),
        "supports": [
            {
                "kind": kind,
                "label": findings.LABELS.get(kind, kind),
                "clips": [_support_view(s) for s in item.supports[kind][:_MOST_SUPPORTS]],
                "left_out": max(len(item.supports[kind]) - _MOST_SUPPORTS, 0),
            }
            for kind in _known_first(item.supports, first="self_shot")
            if item.supports[kind]
        ],
    }


def _prediction_view(
    item: GalleryItem, kind: str, truth: NDArray[np.bool_], scale: int
) -> dict[str, Any]:
    all_masks, all_scores = item.predictions[kind]
    masks = np.asarray(all_masks, dtype=bool)
    scores = np.nan_to_num(np.asarray(all_scores, dtype=np.float64), nan=0.0)
    shown = _shown(scores)
    masks, scores = masks[shown], scores[shown]
    if not len(masks):
        masks = np.zeros((0, *item.query_frames.shape[:3]), dtype=bool)
    colours = pictures.colours_like(masks, truth)
    drawn = pictures.overlay(item.query_frames, masks, scores, colours, scale)
    return {
        "kind": kind,
        "label": findings.LABELS.get(kind, kind),
        "picture": moving(drawn),
        "scores": [f"{score:.2f}" for score in sorted(scores, reverse=True)],
        "iou": mean_best_iou(masks, truth),
    }


def mean_best_iou(masks: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    """Mean over true tracks of the best IoU that a shown mask has with it; None without truth."""
    if not len(truth):
        return None
    if not len(masks):
        return 0.0
    return float(pictures.track_ious(masks, truth).max(axis=0).mean())


def _shown(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    strong = np.flatnonzero(scores >= SHOWN_SCORE)
    return strong if len(strong) or not len(scores) else np.array([int(scores.argmax())])


def _support_view(support: Support) -> dict[str, Any]:
    scale = _scale(support.frames, _SUPPORT_WIDTH)
    score = support.score
    known_score = score is not None and np.isfinite(score)
    return {
        "picture": moving(pictures.enlarge(support.frames, scale)),
        "class_name": support.class_name,
        "score": f"{score:.2f}" if known_score else "–",
        "mark": {True: "right", False: "wrong", None: "unknown"}[support.correct],
        "clip_id": support.clip_id,
    }


def _known_first(kinds: dict[str, Any], first: str | None = None) -> list[str]:
    """Keys in the table's order, unknown ones last; `first` before all others."""
    order = list(findings.LABELS)
    rank = {kind: order.index(kind) if kind in order else len(order) for kind in kinds}
    return sorted(kinds, key=lambda kind: (kind != first, rank[kind]))


def _scale(frames: NDArray[np.uint8], width: int) -> int:
    return min(max(round(width / int(frames.shape[2])), 1), 4)


def _data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")
