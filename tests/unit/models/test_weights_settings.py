"""Settings beside a network's weights that are of something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfshot.errors import UserError
from selfshot.models.trained_encoder import load_encoder
from selfshot.models.weights import load_vis, save_weights


@pytest.mark.parametrize(("name", "load"), [("encoder", load_encoder), ("vis", load_vis)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"encoder": {"trunk": "x"}, "vis": {"departures": {}}}, {"encoder": 3, "vis": None}],
)
def test_they_are_refused_by_their_file(
    name: str, load: Callable[[Path], Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    save_weights(tmp_path, name, {"x": torch.zeros(1)}, settings)
    with pytest.raises(UserError, match=rf"{name}\.json: .*another version"):
        load(tmp_path)
