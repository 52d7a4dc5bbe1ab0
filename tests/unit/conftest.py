"""What all unit tests share."""

from __future__ import annotations

import pytest

from selfshot.models import precision


@pytest.fixture(autouse=True)
def float32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equations are compared in float32, whatever the processor can; test_precision rounds."""
    if not request.module.__name__.endswith("test_precision"):
        monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
