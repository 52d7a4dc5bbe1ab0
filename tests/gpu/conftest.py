"""Each test here runs twice: on a real GPU, and on a second device that is only pretended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selfshot.models import precision

sys.path.insert(0, str(Path(__file__).parent))
from second_device import SecondDevice


@pytest.fixture(params=["second device", pytest.param("GPU", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """`cuda`: of the machine, or of `second_device`."""
    if request.param == "second device":
        with SecondDevice():
            yield "cuda"
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("this machine has no GPU: torch.cuda.is_available() is False")


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's side of each comparison in float32, whatever its processor can."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
