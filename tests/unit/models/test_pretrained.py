"""Published weights in the networks of Φ: an image ViT's, and torchvision's Inception."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from selfshot.errors import UserError
from selfshot.models.foreign_weights import WeightsReport, fit_foreign_weights
from selfshot.models.inception import InceptionTrunk
from selfshot.models.pretrained import inflate_positions
from selfshot.models.video_vit import SIZES, VideoViT


def _fit(network: nn.Module, path: Path) -> WeightsReport:
    convert = None
    if isinstance(network, VideoViT):
        grid = tuple(network.pos_embed.shape[:3])

        def convert(state):
            return inflate_positions(state, grid)

    return fit_foreign_weights(network, path, setting="encoder.weights", convert=convert)


def test_an_image_vit_becomes_a_video_vit(tmp_path: Path, monkeypatch) -> None:
    """ViViT's start: the positions of one image, repeated over time."""
    monkeypatch.setitem(SIZES, "toy", (12, 2, 3))
    torch.manual_seed(0)
    image = VideoViT(size="toy", patch=2, grid=(1, 3, 3))
    state = {name: value.clone() for name, value in image.state_dict().items()}
    class_position = torch.randn(1, 1, 12)
    state["cls_token"] = state["cls_token"] - class_position
    state["pos_embed"] = torch.cat([class_position, image.pos_embed.reshape(1, 9, 12)], 1)
    save_file({**state, "head.weight": torch.ones(5, 12)}, tmp_path / "vit.safetensors")
    video = VideoViT(size="toy", patch=2, grid=(3, 3, 3))
    report = _fit(video, tmp_path / "vit.safetensors")
    assert report.unexpected == ("head.weight",)
    for t in range(3):
        torch.testing.assert_close(video.pos_embed[t], image.pos_embed[0])
    frame = torch.randint(0, 256, (2, 1, 6, 6, 3)).to(torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(video(frame), image(frame))
    other = VideoViT(size="toy", patch=2, grid=(2, 5, 7))
    _fit(other, tmp_path / "vit.safetensors")
    torch.testing.assert_close(other.pos_embed[0], other.pos_embed[1])
    larger = VideoViT(size="tiny", patch=2, grid=(1, 3, 3))
    with pytest.raises(UserError, match=r"lacks 120 of 150 weights, as blocks.2"):
        _fit(larger, tmp_path / "vit.safetensors")


class TestInception:
    """torchvision's network, with weights drawn at random."""

    def test_its_mean_is_torchvisions_pooled_feature(self, tmp_path: Path) -> None:
        from torchvision.models import inception_v3

        torch.manual_seed(0)
        whole = inception_v3(weights=None, aux_logits=True, init_weights=False).eval()
        torch.save(whole.state_dict(), tmp_path / "inception.pth")
        trunk = InceptionTrunk(frozen=True, pretrained=True, side=99)
        report = _fit(trunk.network, tmp_path / "inception.pth")
        beyond = {name.split(".")[0] for name in report.unexpected}
        assert beyond == {"AuxLogits", "fc"} and not report.missing
        trunk.train()
        assert not any(module.training for module in trunk.modules())
        frames = torch.randint(0, 256, (2, 99, 107, 3)).to(torch.uint8)
        whole.fc, whole.transform_input = nn.Identity(), False
        with torch.no_grad():
            expected = whole((frames.movedim(-1, 1).float() / 255 - 0.5) / 0.5)
            tokens, foreground = trunk(frames)
        torch.testing.assert_close(tokens.mean((2, 3)), expected, rtol=1e-3, atol=1e-4)
        assert tokens.shape[1] == InceptionTrunk.dim and (foreground == 1).all()

    def test_small_frames_are_enlarged_and_it_learns(self) -> None:
        trunk = InceptionTrunk(frozen=False, pretrained=True).train()
        frames = torch.randint(0, 256, (2, 32, 40, 3)).to(torch.uint8)
        tokens, _ = trunk(frames)
        assert tokens.shape[:2] == (2, 2048) and min(tokens.shape[2:]) >= 1
        tokens.sum().backward()
        assert all(p.grad is not None for p in trunk.parameters())
        assert not any(m.training for m in trunk.modules() if isinstance(m, nn.BatchNorm2d))
