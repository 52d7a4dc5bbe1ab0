"""examples/pipeline.py runs from the videos to the scores."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PIPELINE = Path(__file__).resolve().parents[2] / "examples" / "pipeline.py"


def test_the_pipeline_in_library_calls(tmp_path: Path) -> None:
    scores = runpy.run_path(str(PIPELINE))["main"](tmp_path, quick=True)
    assert set(scores) == {"random", "self_shot", "oracle"}
    assert all(0 <= score <= 100 for score in scores.values())
    weights = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.safetensors")}
    assert weights == {
        "backbone/backbone.safetensors", "encoder/encoder.safetensors", "vis/vis.safetensors",
    }  # fmt: skip
