"""Figures 3 and 5 as files: films of queries beside their supports, and of their attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from selfshot.data.clips import ClipReader
from selfshot.data.ytvis import Prediction
from selfshot.evaluation.heatmaps import draw_heatmaps, heat_moments
from selfshot.evaluation.layout import SupportClip, SupportRow
from selfshot.evaluation.showing import Selection, file_stem, show_videos
from selfshot.models.attention_maps import attention_maps
from selfshot.models.features import stack_supports
from selfshot.models.vis import SelfShotVIS
from selfshot.models.weights import load_vis
from selfshot.studies.gallery import FPS, SHOWN_SCORE, GalleryItem

KIND = "self_shot"
CAPTIONS = ("before the fuser", "after it")


def write_films(
    folder: Path,
    reader: ClipReader,
    videos: Sequence[int],
    gallery: Sequence[GalleryItem],
    predictions: Sequence[Prediction],
) -> int:
    """Write `films/`, a GIF and a sheet of each query with its self-shot supports beside it.

    Args:
        folder: of the report.
        reader: of the queries.
        videos: the query of each item.
        gallery: the items.
        predictions: with self-shot supports, of any queries.

    Returns:
        how many were drawn.
    """
    of_video = dict(zip(videos, gallery, strict=True))

    def supports(video: int) -> list[SupportRow]:
        clips = tuple(
            SupportClip(_caption(one.class_name, one.score), one.frames, one.correct)
            for one in of_video[video].supports.get(KIND, ())
        )
        return [SupportRow("self-shot supports", clips)] if clips else []

    drawn, _ = show_videos(
        reader.annotations,
        reader.frame_reader,
        folder / "films",
        videos=list(of_video),
        formats=("gif", "png"),
        fps=FPS,
        results=Selection(predictions, SHOWN_SCORE),
        supports=supports,
        title="Queries, what was found for them, and what was segmented",
    )
    return len(drawn)


def _caption(name: str | None, score: float | None) -> str:
    known = "class unknown" if name is None else name
    return known if score is None else f"{known} {score:.2f}"


@torch.inference_mode()
def write_attention(
    folder: Path,
    export: Path,
    reader: ClipReader,
    videos: Sequence[int],
    gallery: Sequence[GalleryItem],
    shots: int,
    device: str,
) -> list[GalleryItem]:
    """Write `attention/`, a GIF and a sheet of each query, and return the items with it.

    Args:
        folder: of the report.
        export: of the trained model; one without a fuser has nothing to draw.
        reader: of the queries.
        videos: the query of each item.
        gallery: the items; those without self-shot supports are left as they are.
        shots: supports that the model is given.
        device: where it runs.
    """
    model = load_vis(export).to(device)
    if not isinstance(model, SelfShotVIS):
        return list(gallery)
    target = folder / "attention"
    target.mkdir(exist_ok=True)
    drawn = []
    for video, item in zip(videos, gallery, strict=True):
        clips = [one.frames for one in item.supports.get(KIND, ())[:shots]]
        if not clips:
            drawn.append(item)
            continue
        frames = reader.frames(video)[reader.valid_frames(video)]
        query = model.encode(torch.from_numpy(frames)[None], is_support=False)
        encoded = [model.encode(torch.from_numpy(c)[None], is_support=True) for c in clips]
        heat = attention_maps(model, query, stack_supports([encoded]))
        maps = [(name, one[0].cpu().numpy()) for name, one in zip(CAPTIONS, heat, strict=True)]
        draw_heatmaps(frames, maps, target / file_stem(reader.annotations.videos[video]))
        moments = np.stack([np.asarray(moment) for moment in heat_moments(frames, maps)])
        drawn.append(dataclasses.replace(item, attention=moments))
    return drawn
