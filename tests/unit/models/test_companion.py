"""The companion: cosines are shared out as its share says, and it looks where Φ looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selfshot.models.backbone import SmallBackbone
from selfshot.models.companion import Companion
from selfshot.models.trained_encoder import FrozenEncoder, load_encoder
from selfshot.models.trunks import BackboneTrunk
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.weights import save_weights
from selfshot.models.windows import window_vectors

SHARE, TIME, HEIGHT, WIDTH, DIM = 0.3, 5, 32, 40, 32
SETTINGS = {"trunk": "efficientnet_lite0", "share": SHARE, "frame_side": 128, "num_frames": 2}


@pytest.fixture(scope="module")
def companion() -> Companion:
    return Companion(**SETTINGS).eval()


@pytest.fixture(scope="module")
def phi() -> VideoEncoder:
    torch.manual_seed(0)
    trunk = BackboneTrunk(SmallBackbone(8, 14), frozen=True)
    nn.init.normal_(trunk.foreground.weight)
    return VideoEncoder(trunk, DIM, 0, 2).eval()


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, TIME, HEIGHT, WIDTH, 3), np.uint8)


def _own(companion: Companion, phi: VideoEncoder, frames: np.ndarray) -> np.ndarray:
    """The companion's vectors of clips, by its definition."""
    clips = torch.from_numpy(frames[:, [0, 2]])
    with torch.no_grad():
        _, foreground = phi.trunk_tokens(clips)
        features, _ = companion.trunk(clips.flatten(0, 1))
        roots = nn.functional.interpolate(features.sqrt(), size=(4, 5), mode="bilinear")
    roots = roots.unflatten(0, (3, 2)).double().numpy()
    weights = foreground.double().numpy()
    total = np.einsum("btdhw,bthw->bd", roots, weights)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def test_the_cosine_is_shared_out(
    companion: Companion, phi: VideoEncoder, frames: np.ndarray
) -> None:
    alone = FrozenEncoder(phi).embed(frames)
    joined = FrozenEncoder(phi, companion=companion).embed(frames)
    assert joined.shape == (3, DIM + 1280)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-5)
    own = _own(companion, phi, frames)
    expected = (1 - SHARE) * alone @ alone.T + SHARE * own @ own.T
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-4)


@pytest.mark.parametrize("joined", [False, True])
def test_peak_windows_stand_for_their_frames(
    companion: Companion, phi: VideoEncoder, frames: np.ndarray, joined: bool
) -> None:
    """v = u / |u| with u = Σ_t w_t, w_t the window of frame t that has the most foreground."""
    encoder = FrozenEncoder(phi, companion=companion if joined else None, peak_window=3)
    windows, mass = encoder.windows(frames, 3)
    seen = 2 if joined else TIME
    assert windows.shape[1] == seen * 2 * 3
    expected = []
    for vectors, weights in zip(windows, mass, strict=True):
        of_frames = zip(vectors.reshape(seen, 6, -1), weights.reshape(seen, 6), strict=True)
        total = sum(some[weight.argmax()] for some, weight in of_frames)
        expected.append(total / np.linalg.norm(total))
    np.testing.assert_allclose(encoder.embed(frames), np.stack(expected), atol=1e-5)
    np.testing.assert_allclose(encoder.embed(frames[1:2]), np.stack(expected)[1:2], atol=1e-4)


def test_windows_are_those_of_the_frames_it_looks_at(
    companion: Companion, phi: VideoEncoder, frames: np.ndarray
) -> None:
    assert companion.frames_of(TIME) == [0, 2] and companion.frames_of(1) == [0]
    alone, mass = FrozenEncoder(phi).windows(frames[:, [0, 2]].copy(), 3)
    joined, joined_mass = FrozenEncoder(phi, companion=companion).windows(frames, 3)
    np.testing.assert_array_equal(joined_mass, mass)
    np.testing.assert_allclose(joined[..., :DIM], (1 - SHARE) ** 0.5 * alone, atol=1e-5)
    clips = torch.from_numpy(frames[:, [0, 2]])
    with torch.no_grad():
        foreground = phi.trunk_tokens(clips)[1]
        own, _ = window_vectors(companion.tokens(clips, (4, 5)), foreground, 3)
    np.testing.assert_allclose(joined[..., DIM:], SHARE**0.5 * own.numpy(), atol=1e-5)


def test_an_exported_encoder_brings_its_companion(
    phi: VideoEncoder, frames: np.ndarray, tmp_path: Path
) -> None:
    settings = {
        "trunk": "backbone", "backbone_settings": {"width": 8, "dim": 14},
        "dim": DIM, "layers": 0, "heads": 2,
    }  # fmt: skip
    alone, with_it = tmp_path / "alone", tmp_path / "with"
    for folder, more in ((alone, {}), (with_it, {"companion": SETTINGS})):
        folder.mkdir()
        save_weights(folder, "encoder", phi.state_dict(), settings | more)
    assert load_encoder(alone).embed(frames).shape == (3, DIM)
    encoder = load_encoder(with_it)
    np.testing.assert_allclose(
        encoder.embed(frames), FrozenEncoder(phi, companion=Companion(**SETTINGS)).embed(frames),
        atol=1e-5,
    )  # fmt: skip
    before = encoder.embed(frames)
    encoder.prepare("cpu")
    np.testing.assert_allclose(encoder.embed(frames), before, atol=1e-3)
