"""Φ: it begins as its backbone, and its windows are means that loops can make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfshot.models.backbone import SmallBackbone
from selfshot.models.encoder_backbones import FrameBackbone
from selfshot.models.pretrained import packaged_network
from selfshot.models.video_encoder import VideoEncoder, update_momentum

BATCH, TIME, HEIGHT, WIDTH, DIM = 2, 3, 32, 40, 32
# Four times the backbone's width: what its backbone gives once it is pretrained.


def _encoder(layers: int = 2, *, dim: int = DIM, frozen: bool = True) -> VideoEncoder:
    torch.manual_seed(0)
    backbone = FrameBackbone(SmallBackbone(8, 14), frozen=frozen)
    if frozen:
        nn.init.normal_(backbone.foreground.weight)
    return VideoEncoder(backbone, dim, layers, 2).eval()


@pytest.fixture
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, TIME, HEIGHT, WIDTH, 3)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def _mean(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of tokens (N, d), of length 1."""
    total = sum(w * token for w, token in zip(weights, tokens, strict=True)) / weights.sum()
    return total / np.linalg.norm(total)


@torch.no_grad()
def test_it_begins_as_its_trunk(frames: Tensor, stir) -> None:
    encoder = _encoder()
    tokens, foreground, _ = encoder.backbone(frames)
    assert tokens.shape == (BATCH, TIME, 4, 5, DIM) and foreground.shape == (BATCH, TIME, 4, 5)
    embedded = encoder(frames)
    for i in range(BATCH):
        rows = tokens[i].reshape(-1, DIM).double().numpy()
        expected = _mean(rows, foreground[i].reshape(-1).double().numpy())
        np.testing.assert_allclose(embedded[i], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedded, _encoder(0)(frames))
    stir(encoder.blocks)
    assert not torch.allclose(embedded, encoder(frames), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("size", "places"), [(1, (4, 5)), (3, (2, 3)), (9, (1, 2))])
def test_windows_are_means_over_their_tokens(
    frames: Tensor, stir, size: int, places: tuple[int, int]
) -> None:
    encoder = _encoder()
    stir(encoder.blocks)
    vectors, mass = encoder.windows(frames, size)
    assert vectors.shape == (BATCH, TIME * places[0] * places[1], DIM)
    assert mass.shape == vectors.shape[:2]
    tokens, foreground, _ = encoder.backbone(frames)
    tokens = encoder.contextualise(tokens)
    side = min(size, 4)
    for i in range(BATCH):
        window = 0
        for time in range(TIME):
            for top in range(places[0]):
                for left in range(places[1]):
                    area = (i, time, slice(top, top + side), slice(left, left + side))
                    weights = foreground[area].reshape(-1).double().numpy()
                    rows = tokens[area].reshape(-1, DIM).double().numpy()
                    expected = _mean(rows, weights)
                    np.testing.assert_allclose(vectors[i, window], expected, rtol=1e-3, atol=1e-4)
                    assert mass[i, window].item() == pytest.approx(weights.mean(), rel=1e-4)
                    window += 1


@torch.no_grad()
def test_one_window_of_the_whole_frame_is_the_vector(frames: Tensor) -> None:
    encoder = _encoder()
    square = frames[:, :1, :, :HEIGHT]
    torch.testing.assert_close(encoder.windows(square, 99)[0][:, 0], encoder(square))


@torch.no_grad()
def test_tokens_of_other_channels_are_projected(frames: Tensor) -> None:
    encoder = _encoder(dim=10)
    assert encoder(frames).shape == (BATCH, 10)
    torch.testing.assert_close(encoder(frames).norm(dim=-1), torch.ones(BATCH))


@torch.no_grad()
def test_an_adapter_corrects_clips_and_windows(frames: Tensor, stir) -> None:
    plain = _encoder(0)
    torch.manual_seed(0)
    backbone = plain.backbone
    adapted = VideoEncoder(backbone, DIM, 0, 2, adapter="linear").eval()
    torch.testing.assert_close(adapted(frames), plain(frames))
    stir(adapted.adapter)
    weight, bias = (p.double().numpy() for p in adapted.adapter.change.parameters())
    ours, (windows, mass) = adapted(frames), adapted.windows(frames, 3)
    for got, given in ((ours, plain(frames)), (windows, plain.windows(frames, 3)[0])):
        for vector, before in zip(got.flatten(0, -2), given.flatten(0, -2), strict=True):
            x = before.double().numpy()
            changed = x + weight @ x + bias
            expected = changed / np.linalg.norm(changed)
            np.testing.assert_allclose(vector, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mass, plain.windows(frames, 3)[1])


@pytest.mark.parametrize("kind", ["whitened", "whitened_linear"])
@torch.no_grad()
def test_a_whitening_comes_before_the_correction(frames: Tensor, kind: str, stir) -> None:
    torch.manual_seed(0)
    backbone = _encoder(0).backbone
    plain, adapted = (
        VideoEncoder(backbone, DIM, 0, 2, adapter=name).eval() for name in ("none", kind)
    )
    before = plain(frames)
    torch.testing.assert_close(adapted(frames), before)
    matrix = torch.randn(DIM, DIM)
    adapted.set_whitening(matrix)
    expected = before @ matrix
    torch.testing.assert_close(adapted(frames), expected / expected.norm(dim=1, keepdim=True))
    windows = adapted.windows(frames, 3)[0]
    torch.testing.assert_close(windows.norm(dim=-1), torch.ones(windows.shape[:2]))
    assert len(list(adapted.adapter.parameters())) == (2 if kind == "whitened_linear" else 0)
    twin = VideoEncoder(backbone, DIM, 0, 2, adapter=kind)
    twin.load_state_dict(adapted.state_dict())
    torch.testing.assert_close(twin.eval()(frames), adapted(frames))


def test_a_frozen_trunk_stays_as_it_is(frames: Tensor) -> None:
    encoder = _encoder().train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    encoder(frames).sum().backward()
    after = encoder.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert encoder.blocks[0].attention.out.weight.grad is not None


def test_a_trunk_from_scratch_learns_and_weighs_all_tokens_alike(frames: Tensor) -> None:
    encoder = _encoder(frozen=False).train()
    foreground = encoder.backbone(frames).foreground
    assert torch.equal(foreground, torch.full_like(foreground, 0.5))
    (encoder(frames) * torch.arange(DIM)).sum().backward()
    weight = encoder.backbone.backbone.stem[0].weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert encoder.backbone.foreground.weight.grad is None


def test_update_momentum() -> None:
    slow, fast = (
        nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).requires_grad_(i == 1) for i in range(2)
    )
    fast[1].running_mean.fill_(7.0)
    before = slow[0].weight.clone()
    update_momentum(slow, fast, 0.9)
    torch.testing.assert_close(slow[0].weight, 0.9 * before + 0.1 * fast[0].weight)
    assert torch.equal(slow[1].running_mean, fast[1].running_mean)
    kept = slow[0].weight.clone()
    update_momentum(slow, fast, 1.0)
    assert torch.equal(slow[0].weight, kept)
    update_momentum(slow, fast, 0.0)
    torch.testing.assert_close(slow[0].weight, fast[0].weight)


def test_efficientnet_embeds() -> None:
    encoder = VideoEncoder(packaged_network(), 12, 1, 2).train()
    assert not any(module.training for module in encoder.backbone.modules())
    assert not any(parameter.requires_grad for parameter in encoder.backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, 2, 32, 48, 3), generator=generator).to(torch.uint8)
    tokens, foreground, _ = encoder.backbone(clips)
    assert tokens.shape == (2, 2, 4, 6, 1280) and foreground.eq(1).all()
    vectors = encoder(clips)
    assert vectors.shape == (2, 12) and vectors.isfinite().all()
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(encoder(clips[1:]), vectors[1:], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_tokens_are_signed_roots_of_what_lies_below_the_projection(frames: Tensor) -> None:
    class Signed(SmallBackbone):
        """Its deep features have both signs, as those of a network without a last ReLU."""

        def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            tokens, fine, deep = super().maps(images)
            return tokens, fine, deep - deep.mean()

    torch.manual_seed(0)
    backbone = Signed(8, 14).eval()
    deep = backbone.features(backbone.normalise(frames.flatten(0, 1)))[2].numpy()
    assert deep.min() < 0 < deep.max()
    found = FrameBackbone(backbone, frozen=True)(frames).tokens
    expected = np.sign(deep) * np.sqrt(np.abs(deep))
    expected = expected.transpose(0, 2, 3, 1).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
