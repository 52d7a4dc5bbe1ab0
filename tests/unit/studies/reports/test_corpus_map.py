"""The map of the corpus: PCA, and a picture of any corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfshot.studies.reports.figures import draw_corpus, main_axes


def test_main_axes_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(53, 7)) * np.array([1, 5, 0.1, 2, 1, 0.5, 3]) + 4
    points, shares = main_axes(vectors)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    for axis in range(2):
        expected = u[:, axis] * s[axis]
        assert abs(points[:, axis] @ expected) == pytest.approx(s[axis] ** 2, rel=1e-9)
        assert shares[axis] == pytest.approx(s[axis] ** 2 / (s**2).sum())
    turned = main_axes(-vectors)[0]
    np.testing.assert_allclose(turned, -points, atol=1e-9)


@pytest.mark.parametrize("known", ["none", "some", "many"])
def test_pictures(known: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ids = [f"clip{i}" for i in range(61)]
    labels = {
        "none": {},
        "some": dict.fromkeys(ids[:7], "sun"),
        "many": {i: f"class {n % 29}" for n, i in enumerate(ids)},
    }[known]
    draw_corpus(tmp_path / "map.png", ids, rng.normal(size=(61, 5)).astype(np.float32), labels)
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    colourful = (pixels.max(2).astype(int) - pixels.min(2) > 60).any()
    assert colourful == (known != "none")


def test_a_corpus_of_one_point(tmp_path: Path) -> None:
    draw_corpus(tmp_path / "map.png", ["a", "b"], np.ones((2, 3), np.float32), {})
    assert (tmp_path / "map.png").stat().st_size > 1000
