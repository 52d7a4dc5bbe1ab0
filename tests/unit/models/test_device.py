"""Where networks run."""

from __future__ import annotations

import pytest
import torch

from selfshot.models.device import device_for


@pytest.mark.parametrize(
    ("use_gpu", "there", "device"),
    [(False, True, "cpu"), (True, True, "cuda"), (True, False, "cpu")],
)
def test_a_gpu_that_is_wanted_and_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, use_gpu: bool, there: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    said: list[str] = []
    assert device_for(use_gpu, said.append) == device
    assert len(said) == (use_gpu and not there)
    assert all("compute.use_gpu: PyTorch sees no GPU" in line for line in said)
