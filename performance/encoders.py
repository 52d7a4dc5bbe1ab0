"""What a clip costs with networks that people use: float32 against bfloat16, on this machine.

    python performance/encoders.py [NAME …]

A name is one of timm/NAME, hf/REPOSITORY or efficientnet_lite0. Networks whose weights are not on
this machine are drawn at random: their time is the same, their vectors mean nothing. Prints for
each the processor's milliseconds (one core, so that other programs count little) of one clip of 8
frames in float32 and in bfloat16, their ratio, and the cosine between both vectors: of real weights
it says whether bfloat16 may be taken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

NAMES = (
    "efficientnet_lite0",
    "timm/convnext_tiny",
    "timm/vit_small_patch14_dinov2",
    "timm/vit_small_patch16_dinov3",
    "timm/vit_base_patch16_siglip_224",
    "timm/vit_base_patch16_clip_224",
)
FRAMES, SIDE = 8, 224


def network_of(name: str):
    """The network at 224 pixels, and whether its weights are its own."""
    from selfshot.errors import UserError
    from selfshot.models.pretrained import PACKAGED, open_network, packaged_network
    from selfshot.models.pretrained_files import find_network

    if name == PACKAGED:
        return packaged_network(side=SIDE), True
    try:
        return open_network(find_network(name, setting="NAME"), setting="NAME", side=SIDE), True
    except UserError:
        files = find_network(name, setting="NAME", weights="random")
        return open_network(files, setting="NAME", weights="random", side=SIDE), False


def clips_of(folder: Path | None) -> np.ndarray:
    """Frames of a few clips: of a folder of videos, or drawn."""
    from selfshot.data.video import sample_frames

    size = {"num_frames": FRAMES, "height": SIDE, "width": SIDE}
    if folder is None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (3, FRAMES, 14, 14, 3), np.uint8)
        return coarse.repeat(16, axis=2).repeat(16, axis=3)
    return np.stack([sample_frames(path, **size) for path in sorted(folder.iterdir())[:60:20]])


def measure(name: str, clips: np.ndarray) -> None:
    """Print the line of one network."""
    from selfshot.models.trained_encoder import FrozenEncoder
    from selfshot.models.video_encoder import VideoEncoder

    network, real = network_of(name)
    whole = VideoEncoder(network, network.pooled_dim, 0, 1, pools_itself=True)
    vectors, spent = {}, {}
    for precision in ("float32", "bfloat16"):
        encoder = FrozenEncoder(whole, precision=precision)
        network._fused = None
        encoder.prepare("cpu")
        encoder.embed(clips[:1])
        times, made = [], []
        for clip in clips:
            began = time.process_time()
            made.append(encoder.embed(clip[None])[0])
            times.append(time.process_time() - began)
        vectors[precision], spent[precision] = np.stack(made), statistics.median(times)
    cosine = float((vectors["float32"] * vectors["bfloat16"]).sum(1).min())
    print(
        f"{name:36s} {1000 * spent['float32']:8.0f} {1000 * spent['bfloat16']:8.0f} "
        f"{spent['float32'] / spent['bfloat16']:6.2f} {cosine:9.5f}  "
        f"{'its own' if real else 'random'} weights",
        flush=True,
    )


def main() -> int:
    """Measure the named networks, one after another, on one core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--clips", type=Path, help="a folder of videos; else frames are drawn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clips = clips_of(given.clips)
    head = "one clip of 8 frames of 224 × 224"
    print(f"{head:36s} {'f32 ms':>8s} {'bf16 ms':>8s}  ratio    cosine")
    for name in given.names:
        measure(name, clips)
    return 0


if __name__ == "__main__":
    sys.exit(main())
