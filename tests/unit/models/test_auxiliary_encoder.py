"""The auxiliary encoder: cosines are shared out as its share says, and it looks where Φ looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selfshot.config.encoder import EncoderConfig
from selfshot.models.auxiliary_encoder import AuxiliaryEncoder
from selfshot.models.backbone import SmallBackbone
from selfshot.models.encoder_backbones import FrameBackbone
from selfshot.models.pretrained import packaged_network
from selfshot.models.trained_encoder import FrozenEncoder, load_encoder, save_encoder
from selfshot.models.video_encoder import VideoEncoder, window_vectors

SHARE, TIME, HEIGHT, WIDTH, DIM = 0.3, 5, 32, 40, 32


@pytest.fixture(scope="module")
def auxiliary() -> AuxiliaryEncoder:
    return AuxiliaryEncoder(packaged_network(side=128), SHARE, num_frames=2).eval()


@pytest.fixture(scope="module")
def phi() -> VideoEncoder:
    torch.manual_seed(0)
    backbone = FrameBackbone(SmallBackbone(8, 14), frozen=True)
    nn.init.normal_(backbone.foreground.weight)
    return VideoEncoder(backbone, DIM, 0, 2).eval()


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, TIME, HEIGHT, WIDTH, 3), np.uint8)


def _own(auxiliary: AuxiliaryEncoder, phi: VideoEncoder, frames: np.ndarray) -> np.ndarray:
    """Its vectors of clips, by its definition."""
    clips = torch.from_numpy(frames[:, [0, 2]])
    with torch.no_grad():
        foreground = phi.backbone(clips).foreground
        features = auxiliary.backbone(clips).tokens.flatten(0, 1).permute(0, 3, 1, 2)
        roots = nn.functional.interpolate(features.abs().sqrt() * features.sign(), size=(4, 5),
                                          mode="bilinear")  # fmt: skip
    roots = roots.unflatten(0, (3, 2)).double().numpy()
    weights = foreground.double().numpy()
    total = np.einsum("btdhw,bthw->bd", roots, weights)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def test_the_cosine_is_shared_out(
    auxiliary: AuxiliaryEncoder, phi: VideoEncoder, frames: np.ndarray
) -> None:
    alone = FrozenEncoder(phi).embed(frames)
    joined = FrozenEncoder(phi, auxiliary=auxiliary).embed(frames)
    assert joined.shape == (3, DIM + 1280)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-5)
    own = _own(auxiliary, phi, frames)
    expected = (1 - SHARE) * alone @ alone.T + SHARE * own @ own.T
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-4)


def test_windows_are_those_of_the_frames_it_looks_at(
    auxiliary: AuxiliaryEncoder, phi: VideoEncoder, frames: np.ndarray
) -> None:
    assert auxiliary.frames_of(TIME) == [0, 2] and auxiliary.frames_of(1) == [0]
    alone, mass = FrozenEncoder(phi).windows(frames[:, [0, 2]].copy(), 3)
    joined, joined_mass = FrozenEncoder(phi, auxiliary=auxiliary).windows(frames, 3)
    np.testing.assert_array_equal(joined_mass, mass)
    np.testing.assert_allclose(joined[..., :DIM], (1 - SHARE) ** 0.5 * alone, atol=1e-5)
    clips = torch.from_numpy(frames[:, [0, 2]])
    with torch.no_grad():
        foreground = phi.backbone(clips).foreground
        own, _ = window_vectors(auxiliary.tokens(clips, (4, 5)), foreground, 3)
    np.testing.assert_allclose(joined[..., DIM:], SHARE**0.5 * own.numpy(), atol=1e-5)


def test_an_exported_encoder_brings_it(
    phi: VideoEncoder, frames: np.ndarray, tmp_path: Path
) -> None:
    network, size = {"width": 8, "dim": 14}, (HEIGHT, WIDTH)
    alone, with_it = tmp_path / "alone", tmp_path / "with"
    for folder, name in ((alone, "none"), (with_it, "efficientnet_lite0")):
        folder.mkdir()
        section = EncoderConfig(layers=0, heads=2, auxiliary=name)
        save_encoder(folder, phi, section, network, size)
    assert load_encoder(alone).embed(frames).shape == (3, DIM)
    encoder = load_encoder(with_it)
    beside = AuxiliaryEncoder(packaged_network(side=160))
    expected = FrozenEncoder(phi, beside).embed(frames)
    np.testing.assert_allclose(encoder.embed(frames), expected, atol=1e-5)
    before = encoder.embed(frames)
    encoder.prepare("cpu")
    np.testing.assert_allclose(encoder.embed(frames), before, atol=1e-3)
