"""EfficientNet-Lite for inference on a CPU: each convolution with its norm, clamp and sum in one.

The network as it is written reads and writes its activations four times a layer: convolution,
norm, ReLU6, residual. Here the norm is folded into the weights, and oneDNN clamps and adds while
it writes the convolution's result, all in channels-last order. The numbers are those of the
network up to float32 rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

ImageBatch = Float[Tensor, "frames 3 height width"]


def can_fuse() -> bool:
    """Whether this build of torch has oneDNN's fused convolutions."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise"
    )


class FusedConvolution:
    """A convolution with its folded norm, and ReLU6 or a sum after it."""

    def __init__(self, convolution: Any, norm: nn.BatchNorm2d, *, clamp: bool) -> None:
        # Imported here: timm takes seconds, and who builds this has loaded it.
        from timm.layers.conv2d_same import Conv2dSame
        from timm.layers.padding import pad_same

        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            None,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        self.weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = bias.detach()
        self.stride = list(convolution.stride)
        self.groups = convolution.groups
        # Where the stride is 2, TensorFlow's padding depends on the size (timm's Conv2dSame).
        same = isinstance(convolution, Conv2dSame)
        self.padding = [0, 0] if same else list(convolution.padding)
        self.outer = (
            functools.partial(
                pad_same, kernel_size=list(convolution.kernel_size), stride=self.stride
            )
            if same
            else None
        )
        self.activation = ("hardtanh", [0.0, 6.0]) if clamp else ("none", [])

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, H, W) to (N, D, H', W'), with the residual added if there is one."""
        if self.outer is not None:
            x = self.outer(x)
        shape = (self.padding, self.stride, [1, 1], self.groups)
        operators = torch.ops.mkldnn
        if residual is not None:
            return operators._convolution_pointwise.binary(
                x, residual, self.weight, self.bias, *shape, "add", 1.0, None, [], ""
            )
        name, limits = self.activation
        return operators._convolution_pointwise(x, self.weight, self.bias, *shape, name, limits, "")


class FusedEfficientNet:
    """What `forward_features` of timm's EfficientNet-Lite does, without gradients."""

    def __init__(self, network: Any) -> None:
        """Take the weights of a network in evaluation mode; it stays as it is."""
        self.stem = FusedConvolution(network.conv_stem, network.bn1, clamp=True)
        self.blocks = [self._block(block) for stage in network.blocks for block in stage]
        self.head = FusedConvolution(network.conv_head, network.bn2, clamp=True)

    @staticmethod
    def _block(block: Any) -> tuple[list[FusedConvolution], FusedConvolution, bool]:
        """The convolutions that widen and filter, the one that narrows, and whether it adds."""
        pairs = [(block.conv_dw, block.bn1), (block.conv_pw, block.bn2)]
        if hasattr(block, "conv_pwl"):
            pairs = [(block.conv_pw, block.bn1), (block.conv_dw, block.bn2)]
            pairs.append((block.conv_pwl, block.bn3))
        first = [FusedConvolution(one, norm, clamp=True) for one, norm in pairs[:-1]]
        return first, FusedConvolution(*pairs[-1], clamp=False), bool(block.has_skip)

    def forward_features(self, images: ImageBatch) -> Float[Tensor, "frames dim h w"]:
        """The last feature map."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        for first, last, adds in self.blocks:
            inside = x
            for convolution in first:
                inside = convolution(inside)
            x = last(inside, x) if adds else last(inside)
        return self.head(x)
