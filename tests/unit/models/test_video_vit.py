"""The video ViT against NumPy, its positions, and what reaches its vector."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from selfshot.errors import UserError
from selfshot.models.video_vit import PIXEL_MEAN, PIXEL_STD, SIZES, VideoViT

TIME, HEIGHT, WIDTH, PATCH = 3, 10, 14, 2
GRID = (TIME, HEIGHT // PATCH, WIDTH // PATCH)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size of two layers that NumPy loops can follow."""
    monkeypatch.setitem(SIZES, "toy", (12, 2, 3))


@pytest.fixture
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (2, TIME, HEIGHT, WIDTH, 3)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def _vit(stir, **more) -> VideoViT:
    torch.manual_seed(0)
    return stir(VideoViT(size="toy", patch=PATCH, grid=GRID, **more)).eval()


def _norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * weight + bias


def _linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return x @ weight.T + bias


def _by_hand(vit: VideoViT, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class token and patch tokens of one clip, patch by patch and head by head."""
    weight = vit.patch_embed.proj.weight.detach().double().numpy()
    bias = vit.patch_embed.proj.bias.detach().double().numpy()
    positions = vit.pos_embed.detach().double().numpy()
    tokens = [vit.cls_token.detach().double().numpy()[0, 0]]
    pixels = (clip - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
    for t in range(GRID[0]):
        for row in range(GRID[1]):
            for column in range(GRID[2]):
                top, left = row * PATCH, column * PATCH
                patch = pixels[t, top : top + PATCH, left : left + PATCH].transpose(2, 0, 1)
                value = (weight * patch).sum((1, 2, 3)) + bias
                tokens.append(value + positions[t, row, column])
    x = np.stack(tokens)
    for block in vit.blocks:
        normed = _norm(x, block.norm1)
        qkv = _linear(normed, block.attn.qkv).reshape(len(x), 3, 3, 4)
        mixed = np.zeros((len(x), 3, 4))
        for head in range(3):
            q, k, v = (qkv[:, part, head] for part in range(3))
            for token in range(len(x)):
                scores = np.exp(k @ q[token] / math.sqrt(4))
                mixed[token, head] = scores @ v / scores.sum()
        x = x + _linear(mixed.reshape(len(x), 12), block.attn.proj)
        hidden = _linear(_norm(x, block.norm2), block.mlp.fc1)
        erf = np.vectorize(math.erf)
        x = x + _linear(hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))), block.mlp.fc2)
    x = _norm(x, vit.norm)
    return x[0], x[1:].reshape(*GRID, 12)


@torch.no_grad()
def test_it_is_vit_over_the_patches_of_all_frames(tiny, stir, frames: Tensor) -> None:
    vit = _vit(stir)
    vectors = vit(frames)
    for i, clip in enumerate(frames.double().numpy()):
        class_token, tokens = _by_hand(vit, clip)
        expected = class_token / np.linalg.norm(class_token)
        np.testing.assert_allclose(vectors[i], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(vit.encode(frames)[1][i], tokens, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_positions_interpolate(tiny, stir, frames: Tensor) -> None:
    vit = _vit(stir)
    assert vit.positions(*GRID) is vit.pos_embed
    for grid in ((5, 5, 7), (3, 2, 11), (1, 1, 1)):
        assert vit.positions(*grid).shape == (*grid, 12)
    # A constant stays one, and a ramp over time a ramp, whatever the grid.
    vit.pos_embed.fill_(3.0)
    torch.testing.assert_close(vit.positions(7, 2, 3), torch.full((7, 2, 3, 12), 3.0))
    vit.pos_embed.copy_(torch.arange(3.0)[:, None, None, None].expand_as(vit.pos_embed))
    ramp = vit.positions(5, 5, 7)[:, 2, 3, 4]
    assert (ramp.diff() >= 0).all() and ramp[0] == 0 and ramp[-1] == 2
    longer = torch.cat([frames, frames[:, :2]], 1)
    assert vit(longer).shape == (2, 12) and vit(frames[:, :, :6, :9]).shape == (2, 12)


@torch.no_grad()
def test_the_order_of_frames_counts_and_of_clips_does_not(tiny, stir, frames: Tensor) -> None:
    vit = _vit(stir)
    vectors = vit(frames)
    torch.testing.assert_close(vit(frames.flip(0)), vectors.flip(0))
    assert not torch.allclose(vit(frames.flip(1)), vectors, atol=1e-3)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


@torch.no_grad()
def test_windows(tiny, stir, frames: Tensor) -> None:
    vit = _vit(stir)
    vectors, mass = vit.windows(frames, 2)
    assert vectors.shape == (2, TIME * 4 * 6, 12) and (mass == 1).all()
    tokens = vit.encode(frames)[1]
    expected = tokens[1, 2, 1:3, 4:6].mean((0, 1))
    torch.testing.assert_close(vectors[1, (2 * 4 + 1) * 6 + 4], expected / expected.norm())
    one = vit.windows(frames[:, :1, :, :HEIGHT], 99)[0][:, 0]
    mean = vit.encode(frames[:, :1, :, :HEIGHT])[1].mean((1, 2, 3))
    torch.testing.assert_close(one, mean / mean.norm(dim=-1, keepdim=True))


def test_checkpointing_changes_no_gradient(tiny, stir, frames: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        vit = _vit(stir, checkpointing=checkpointing)
        (vit(frames) * torch.arange(12)).sum().backward()
        gradients.append({name: p.grad for name, p in vit.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.7), ("small", 22.1), ("base", 86.6)])
def test_the_sizes_are_vits(size: str, millions: float) -> None:
    with torch.device("meta"):
        vit = VideoViT(size=size, patch=16, grid=(1, 14, 14))
    # The image model has a classifier of 1,000 classes besides, and a position for the class.
    classifier = 1000 * (vit.dim + 1) + vit.dim
    count = sum(p.numel() for p in vit.parameters()) + classifier
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_patch_larger_than_the_frame_is_an_error(tiny, frames: Tensor) -> None:
    vit = VideoViT(size="toy", patch=11, grid=(1, 1, 1))
    with pytest.raises(UserError, match=r"vit_patch: 11 is more than a frame's side .*10 × 14"):
        vit(frames)
