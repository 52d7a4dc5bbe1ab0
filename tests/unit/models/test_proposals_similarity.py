"""Proposals by similarity: Φ of regions and the score, as loops over tokens make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from selfshot.models.auxiliary_encoder import AuxiliaryEncoder
from selfshot.models.backbone import SmallBackbone
from selfshot.models.baselines.proposals_similarity import region_vectors, similarity_scores
from selfshot.models.encoder_backbones import FrameBackbone
from selfshot.models.pretrained import packaged_network
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.video_vit import VideoViT

# Tokens of 8 × 8 pixels: 4 × 5 of them a frame.
TIME, HEIGHT, WIDTH, REGIONS = 3, 32, 40, 5


def video_encoder(adapter: str = "none") -> VideoEncoder:
    torch.manual_seed(0)
    backbone = FrameBackbone(SmallBackbone(8, 14), frozen=True)
    nn.init.normal_(backbone.foreground.weight)
    encoder = VideoEncoder(backbone, backbone.dim, 2, 2, adapter=adapter)
    for parameter in (*encoder.blocks.parameters(), *encoder.adapter.parameters()):
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (TIME, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
def regions() -> np.ndarray:
    """On cells of 4 × 4 pixels; the last one is empty."""
    drawn = np.random.default_rng(1).random((REGIONS, TIME, 8, 10), np.float32)
    drawn[-1] = 0
    return drawn * (drawn > 0.6)


def test_regions_are_means_over_their_tokens(frames: np.ndarray, regions: np.ndarray) -> None:
    encoder = video_encoder()
    found = region_vectors(FrozenEncoder(encoder), frames, regions)
    with torch.no_grad():
        tokens = encoder.contextualise(encoder.backbone(torch.from_numpy(frames)[None]).tokens)[0]
    for region, vector in zip(regions[:-1], found, strict=False):
        total = np.zeros(tokens.shape[-1])
        for t in range(TIME):
            for row in range(4):
                for column in range(5):
                    cells = region[t, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    total += cells.mean() * tokens[t, row, column].double().numpy()
        np.testing.assert_allclose(vector, total / np.linalg.norm(total), rtol=1e-3, atol=1e-5)
    assert not found[-1].any()


@pytest.mark.parametrize("adapter", ["none", "linear", "whitened_linear"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_foreground_is_what_the_encoder_embeds(
    frames: np.ndarray, adapter: str, auxiliary: bool
) -> None:
    """A support's vector is Φ of it, which retrieval compared."""
    more = AuxiliaryEncoder(packaged_network(side=128)) if auxiliary else None
    encoder = FrozenEncoder(video_encoder(adapter), more)
    found = region_vectors(encoder, frames)
    np.testing.assert_allclose(found, encoder.embed(frames[None]), rtol=1e-4, atol=1e-6)
    given = encoder.encoder.backbone(torch.from_numpy(frames)[None]).foreground.detach().numpy()
    again = region_vectors(encoder, frames, given)
    np.testing.assert_allclose(again, found, rtol=1e-3, atol=1e-5)


def any_encoder(name: str) -> FrozenEncoder:
    torch.manual_seed(0)
    if name == "video_vit":
        return FrozenEncoder(VideoViT(size="tiny", patch=8, grid=(TIME, 4, 5)))
    more = AuxiliaryEncoder(packaged_network(side=128)) if name == "auxiliary" else None
    return FrozenEncoder(video_encoder("linear"), more)


@pytest.mark.parametrize("name", ["video_encoder", "auxiliary", "video_vit"])
def test_regions_do_not_know_each_other(name: str, frames: np.ndarray, regions: np.ndarray) -> None:
    encoder = any_encoder(name)
    order = np.array([3, 0, 4, 2, 1])
    whole = region_vectors(encoder, frames, regions)
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(
        region_vectors(encoder, frames, regions[order]), whole[order], **tolerance
    )
    np.testing.assert_allclose(
        region_vectors(encoder, frames, regions[1:2]), whole[1:2], **tolerance
    )
    lengths = np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0], atol=1e-5)
    # How much of it is covered is no matter, only where.
    np.testing.assert_allclose(
        region_vectors(encoder, frames, regions / 7), whole, rtol=1e-3, atol=1e-4
    )
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


@pytest.mark.parametrize(("tracks", "supports", "dim"), [(7, 3, 11), (2, 5, 13), (3, 1, 2)])
def test_scores_in_numpy(tracks: int, supports: int, dim: int) -> None:
    rng = np.random.default_rng(tracks)
    found, known = rng.normal(size=(tracks, dim)), rng.normal(size=(supports, dim))
    expected = []
    for track in found:
        cosines = [
            sum(a * b for a, b in zip(track, one, strict=True))
            / (sum(a * a for a in track) * sum(b * b for b in one)) ** 0.5
            for one in known
        ]
        expected.append((1 + sum(cosines) / len(cosines)) / 2)
    scores = similarity_scores(found, known)
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    order = rng.permutation(tracks)
    np.testing.assert_allclose(similarity_scores(found[order], known[::-1]), scores[order])
    np.testing.assert_allclose(similarity_scores(5 * found, 3 * known), scores)


def test_a_track_without_a_pixel_comes_last() -> None:
    scores = similarity_scores(np.array([[0.0, 0], [-1, 0], [1, 0]]), np.array([[1.0, 0]]))
    np.testing.assert_array_equal(scores, [0, 0, 1])
