"""Spatial augmentation of a temporal crop: one draw, applied to each of its frames alike.

What moves in a clip must go on moving in the same way, so nothing is drawn by frame. All draws come
from a NumPy generator: torchvision's own transforms draw from torch's global one, which another
thread is using for dropout.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

LEAST_RATIO, MOST_RATIO = 3 / 4, 4 / 3
BLUR_SIGMA = (0.1, 2.0)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Probabilities and strengths; zeros, and a `crop_scale` of 1, change nothing.

    Attributes:
        flip: probability of a mirror image.
        crop_scale: least share of the frame's area that is cropped, then resized to the frame.
        brightness, contrast, saturation: largest change of a factor around 1.
        hue: largest turn of the colour circle, at most 0.5.
        jitter: probability that the four above change anything.
        grey: probability of no colour.
        blur: probability of a Gaussian blur, of up to 2 pixels at 224 pixels of height.
    """

    flip: float = 0.5
    crop_scale: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    grey: float = 0.0
    blur: float = 0.0

    def __call__(
        self, frames: UInt8[np.ndarray, "time height width 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "time height width 3"]:
        """A changed copy of a crop, or a view of it where only mirrored."""
        if rng.random() < self.flip:
            frames = frames[:, :, ::-1]
        if self.crop_scale == 1 and not (self._recolours or self.grey or self.blur):
            return frames
        images = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)
        if self.crop_scale < 1:
            images = self._cropped(images, rng)
        if self._recolours and rng.random() < self.jitter:
            images = self._recoloured(images, rng)
        if self.grey and rng.random() < self.grey:
            images = v2.rgb_to_grayscale(images, num_output_channels=3)
        if self.blur and rng.random() < self.blur:
            sigma = float(rng.uniform(*BLUR_SIGMA)) * images.shape[-2] / 224
            reach = 2 * math.ceil(2 * sigma) + 1
            images = v2.gaussian_blur(images, [reach, reach], [sigma, sigma])
        return images.movedim(1, -1).contiguous().numpy()

    @property
    def _recolours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def _cropped(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """A random resized crop; ten tries, then the whole frame."""
        height, width = images.shape[-2:]
        for _ in range(10):
            area = height * width * rng.uniform(self.crop_scale, 1.0)
            ratio = math.exp(rng.uniform(math.log(LEAST_RATIO), math.log(MOST_RATIO)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(height - h + 1))
                left = int(rng.integers(width - w + 1))
                return v2.resized_crop(
                    images, top, left, h, w, [height, width], antialias=True
                )
        return images

    def _recoloured(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Brightness, contrast, saturation and hue in a random order."""
        changes = [
            (v2.adjust_brightness, self.brightness),
            (v2.adjust_contrast, self.contrast),
            (v2.adjust_saturation, self.saturation),
        ]
        for index in rng.permutation(len(changes) + 1):
            if index == len(changes):
                if self.hue:
                    images = v2.adjust_hue(images, float(rng.uniform(-self.hue, self.hue)))
            elif strength := changes[index][1]:
                factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
                images = changes[index][0](images, float(factor))
        return images


RECIPES = {
    "flip": Augmentation(),
    # MoCo v3's, without solarisation; one draw for all frames of a crop.
    "moco": Augmentation(
        crop_scale=0.2, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grey=0.2, blur=0.5
    ),
}
