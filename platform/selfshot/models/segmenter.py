"""The instance segmenter of A.3: attention maps, a 2-D convolution, three 3-D convolutions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d

from selfshot.models.precision import convolution_autocast


class MaskConvolution(nn.Module):
    """The 3×3 convolution of mask features: deformable (torchvision's) or plain.

    The deformable one learns where to look; on CPU the head is then tens of
    times slower (docs/performance.md), so small machines take the plain one.
    """

    def __init__(self, inputs: int, outputs: int, *, deformable: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.offsets = nn.Conv2d(inputs, 2 * 3 * 3, 3, padding=1) if deformable else None
        if self.offsets is not None:
            nn.init.zeros_(self.offsets.weight)
            assert self.offsets.bias is not None
            nn.init.zeros_(self.offsets.bias)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        if self.offsets is None:
            return self.convolution(x)
        offsets = self.offsets(x)
        weight, bias = self.convolution.weight, self.convolution.bias
        # torchvision's kernel knows no bfloat16 on CPU.
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(x.float(), offsets.float(), weight, bias, padding=1)


class InstanceSegmenter(nn.Module):
    """Instance features 𝓓, E_q and 𝓕 to a mask sequence for each instance.

    The attention maps are the scaled scores of each instance feature against every pixel of
    its own frame. By default they are left before the softmax: a softmax over hundreds of pixels
    makes values that hardly move the convolutions that follow, and masks then learn slowly.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        fine_channels: int,
        *,
        channels: int = 16,
        deformable: bool,
        common: bool = True,
        variant: bool = True,
    ) -> None:
        """Build it.

        Args:
            dim: channels d of 𝓓, E_q and 𝓕.
            heads: attention maps of an instance in a frame.
            fine_channels: channels of the backbone's finer features.
            channels: a, channels of a mask feature; a multiple of 4.
            deformable: see `MaskConvolution`.
            common: the map of the common class is read as well.
            variant: two resolutions, attention maps before their softmax, each pixel's place in
                the box, and a 1×1 convolution before the mask features; without it A.3's own.
        """
        super().__init__()
        self.heads, self.variant = heads, variant
        self.instance_projection = nn.Linear(dim, dim)
        self.pixel_projection = nn.Conv2d(dim, dim, 1)
        pixels = 2 * dim + common
        shared = 2 * channels if variant else pixels
        self.context = (
            nn.Conv2d(pixels, shared, 1) if variant else nn.Identity()
        )
        if variant:
            self.fine = nn.Conv2d(fine_channels, shared, 1)
            self.fine_pixels = nn.Conv2d(shared, dim, 3, padding=1)
        maps = (2 if variant else 1) * heads + 2 * variant
        self.mask_convolution = MaskConvolution(maps + shared, channels, deformable=deformable)
        self.norm = nn.GroupNorm(4, channels)
        self.volume = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU(True),
            nn.Conv3d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU(True),
        )  # fmt: skip
        if variant:
            self.volume.append(nn.Conv3d(channels, 1, 3, padding=1))
        else:
            self.volume.extend(
                [
                    nn.Conv3d(channels, channels, 3, padding=1),
                    nn.GroupNorm(4, channels),
                    nn.ReLU(True),
                    nn.Conv3d(channels, 1, 1),
                ]
            )

    def attention_scores(
        self,
        queries: Float[Tensor, "batch num_instances time heads channels"],
        pixels: Float[Tensor, "frames dim height width"],
    ) -> Float[Tensor, "frames_and_instances heads height width"]:
        """Scaled scores of every instance against the projected pixels of its own frame."""
        batch, _, time, heads, channels = queries.shape
        keys = pixels.unflatten(0, (batch, time)).unflatten(2, (heads, channels))
        scores = torch.einsum("bnthc,bthcyx->btnhyx", queries, keys)
        return scores.flatten(0, 2) * channels**-0.5

    def forward(
        self,
        instances: Float[Tensor, "batch num_instances time dim"],
        boxes_cxcywh: Float[Tensor, "batch num_instances time 4"],
        encoded: Float[Tensor, "batch time dim height width"],
        fused: Float[Tensor, "batch time dim height width"],
        located: Float[Tensor, "batch time dim height width"],
        common: Float[Tensor, "batch time height width"] | None,
        fine: Float[Tensor, "batch time fine_channels fine_height fine_width"],
    ) -> Float[Tensor, "batch num_instances time mask_height mask_width"]:
        """Mask logits for all instances at once, at the finer features' resolution or 𝓕's.

        Args:
            instances: 𝓓.
            boxes_cxcywh: the predicted boxes; each pixel is told where it lies in them.
            encoded: E_q.
            fused: 𝓕.
            located: 𝓕 with its positions, against which the attention maps are taken.
            common: logits of the common class; none without that head.
            fine: the backbone's finer features.
        """
        batch, num_instances, time, _ = instances.shape
        parts = [encoded.flatten(0, 1), fused.flatten(0, 1)]
        if common is not None:
            parts.append(common.flatten(0, 1)[:, None])
        context = self.context(torch.cat(parts, 1))
        size = context.shape[-2:]
        if self.variant:
            fine_frames = fine.flatten(0, 1)
            size = fine_frames.shape[-2:]
            context = functional.interpolate(
                context, size=size, mode="bilinear", align_corners=False
            )
            context = functional.relu(context + self.fine(fine_frames))
        queries = self.instance_projection(instances).unflatten(-1, (self.heads, -1))
        pixels = [self.pixel_projection(located.flatten(0, 1))]
        if self.variant:
            pixels.append(self.fine_pixels(context))
        maps = [self._map(self.attention_scores(queries, x), size) for x in pixels]
        if self.variant:
            maps.append(_box_coordinates(boxes_cxcywh, *size))
        shared = context[:, None].expand(-1, num_instances, -1, -1, -1).flatten(0, 1)
        features = torch.cat([*maps, shared], 1)
        with convolution_autocast(features.device, training=self.training):
            features = functional.relu(self.norm(self.mask_convolution(features)))
            volumes = features.unflatten(0, (batch, time, num_instances)).permute(0, 2, 3, 1, 4, 5)
            logits = self.volume(volumes.flatten(0, 1))
        return logits.float().squeeze(1).unflatten(0, (batch, num_instances))

    def _map(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.variant:
            scores = scores.flatten(2).softmax(-1).view_as(scores)
        if scores.shape[-2:] == size:
            return scores
        return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def _box_coordinates(
    boxes_cxcywh: Float[Tensor, "batch num_instances time 4"], height: int, width: int
) -> Float[Tensor, "frames_and_instances 2 height width"]:
    """Each pixel's place in a box: 0 at its centre, ±1 at its borders, cut at ±3."""
    boxes = boxes_cxcywh.transpose(1, 2).flatten(0, 2)
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    half = boxes[:, 2:].clamp_min(0.02) / 2
    across = ((x - boxes[:, :1]) / half[:, :1]).clamp(-3, 3)
    down = ((y - boxes[:, 1:2]) / half[:, 1:]).clamp(-3, 3)
    grid = (-1, height, width)
    return torch.stack([across[:, None].expand(grid), down[..., None].expand(grid)], 1)
