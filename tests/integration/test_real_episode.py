"""The small model can learn one real episode by heart: AP50 of 1.0, with a clip as its support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfshot.benchmarks.manifest import query_key
from selfshot.config.vis import VisConfig
from selfshot.data.clips import ClipReader
from selfshot.data.episodes import episode_batch
from selfshot.data.ytvis import load_annotations
from selfshot.evaluation.episodes import episode_truth, predict_rows, row_name
from selfshot.evaluation.video_ap import episode_scores
from selfshot.models.backbone import SmallBackbone
from selfshot.models.methods import build_vis
from selfshot.training.loop import Schedule, run_plain
from selfshot.training.vis import training_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Two dogs beside a person, helped by a dog of another source.
EPISODES = {"dogs_jump": ("dog", "dog")}
SECTION = VisConfig(ffn_dim=144, backbone_learning_rate=2e-3)
ROW = {"supports": "oracle", "shots": 1, "extra": 0}


class OneEpisode:
    """A task of one batch, the same at every step."""

    def __init__(self, reader: ClipReader, query: int, support: int, category: int) -> None:
        torch.manual_seed(0)
        model = build_vis(SmallBackbone(24, 48), SECTION)
        model.backbone.freeze_norms = True
        self.module = training_of(model, SECTION.weights)
        self.episode = episode_batch(
            reader, [query], [[support]], [category],
            token_stride=8, mask_stride=model.mask_stride // 2,
        )  # fmt: skip

    def parameter_groups(self) -> list[dict[str, Any]]:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return [{"name": "all", "params": parameters, "lr": 2e-3}]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        return self.episode

    def after_step(self, step: int) -> None:
        """Nothing."""

    def export(self, folder: Path) -> None:
        raise NotImplementedError


class FromVideos:
    """Supports by the id of their video."""

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader

    def clip(self, support: int) -> np.ndarray:
        return self.reader.frames(support)[self.reader.valid_frames(support)]


@pytest.mark.parametrize("source", EPISODES)
def test_one_real_episode_is_learned_by_heart(shared: Path, source: str) -> None:
    folder = shared / "data" / "vis_real"
    annotations = load_annotations(folder / "instances.json")
    by_source = {video.source_id: video.id for video in annotations.videos.values()}
    name, helper = EPISODES[source]
    category = {name: i for i, name in annotations.categories.items()}[name]
    query, support = by_source[source], by_source[helper]
    # Every second frame: frames between take the nearest one's mask, and with fewer of them even
    # perfect masks would miss dogs that jump.
    reader = ClipReader(annotations, folder / "frames", num_frames=11, height=72, width=128)
    task = OneEpisode(reader, query, support, category)

    def ap50() -> float:
        model = task.module.model.eval()
        fold = [(query, name)]
        chosen = {query_key(query, name): {"oracle": [support]}}
        supports: Any = FromVideos(reader)
        with torch.inference_mode():
            found = predict_rows({"vis": model}, fold, [ROW], chosen, reader, supports)
        scores = episode_scores(episode_truth(annotations, fold), found[row_name(ROW)])
        return float(scores["AP50"])

    before = ap50()
    run_plain(task, Schedule(steps=240, warmup_steps=10, weight_decay=1e-4, clip_norm=1.0))
    assert before < 0.5
    assert ap50() == pytest.approx(1.0)
