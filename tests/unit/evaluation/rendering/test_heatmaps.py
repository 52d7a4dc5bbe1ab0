"""Heat over frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfshot.evaluation.rendering.heatmaps import draw_heatmaps, heat_over


def test_heat_is_where_the_map_is() -> None:
    frame = np.full((20, 30, 3), 128, np.uint8)
    heat = np.zeros((2, 3))
    heat[0, 2] = 1
    picture = np.asarray(heat_over(frame, heat, (60, 40))).astype(int)
    assert picture.shape == (40, 60, 3)
    cold, hot = picture[35, 5], picture[5, 55]
    assert np.ptp(cold) <= 2, "grey where nothing is looked at"
    assert hot[0] > cold[0] + 30 and np.ptp(hot) > 30


def test_a_sheet_and_an_animation(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
    maps = [(name, np.random.default_rng(1).random((3, 2, 3))) for name in ("before", "after")]
    moments = draw_heatmaps(frames, maps, tmp_path / "attention")
    assert len(moments) == 3
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > 3 * 160 and picture.height > 3 * 100
    with Image.open(tmp_path / "attention.gif") as moving:
        assert moving.n_frames == 3 and moving.size == moments[0].size and moving.width > 3 * 160
