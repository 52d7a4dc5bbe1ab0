"""Published weights in the networks of Φ: an image ViT's, and torchvision's Inception."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from selfshot.errors import UserError
from selfshot.models.foreign_weights import WeightsReport, fit_foreign_weights
from selfshot.models.video_vit import SIZES, VideoViT, inflate_positions


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


class TestAnotherNetwork:
    """Files of networks that differ from the ViT in a part: their features need that part."""

    @pytest.fixture
    def vit(self, monkeypatch: pytest.MonkeyPatch) -> VideoViT:
        monkeypatch.setitem(SIZES, "toy", (12, 2, 3))
        torch.manual_seed(0)
        return VideoViT(size="toy", patch=2, grid=(2, 3, 3))

    def _image_state(self, vit: VideoViT) -> dict[str, torch.Tensor]:
        state = {name: torch.randn(value.shape) for name, value in vit.state_dict().items()}
        return {**state, "pos_embed": torch.randn(1, 10, 12)}

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("blocks.0.ls1.gamma", "blocks.1.ls2.gamma"), "LayerScale"),
            (("blocks.0.gamma_1", "blocks.0.gamma_2"), "LayerScale"),
            (("register_tokens",), "register tokens"),
            (("reg_token",), "register tokens"),
            (("dist_token", "head_dist.weight"), "a distillation token"),
            (("blocks.1.attn.q_norm.weight", "blocks.1.attn.k_norm.weight"), "queries and keys"),
            (("blocks.0.attn.relative_position_bias_table",), "relative positions"),
            (("blocks.2.norm1.weight",), "more layers"),
            (("blocks.0.mlp.norm.weight",), "a part named norm"),
            (("norm_pre.weight",), "another norm"),
            (("patch_embed.norm.weight",), "a part named norm"),
            (("adapter.down.weight",), "a part named adapter"),
        ],
    )
    @pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
    def test_a_part_that_the_network_lacks_is_an_error(
        self, vit: VideoViT, tmp_path: Path, more: tuple[str, ...], said: str, prefix: str
    ) -> None:
        state = self._image_state(vit) | {name: torch.ones(12) for name in more}
        save_file({prefix + n: v for n, v in state.items()}, tmp_path / "w.safetensors")
        before = {name: value.clone() for name, value in vit.state_dict().items()}
        with pytest.raises(UserError, match=rf"encoder\.weights: .*{said}") as caught:
            _fit(vit, tmp_path / "w.safetensors")
        assert prefix + more[0] in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())

    def test_swiglu_is_named_beside_what_is_missing(self, vit: VideoViT, tmp_path: Path) -> None:
        state = self._image_state(vit)
        for block in range(2):
            for layer, part in (("fc1", "w12"), ("fc2", "w3")):
                for kind in ("weight", "bias"):
                    value = state.pop(f"blocks.{block}.mlp.{layer}.{kind}")
                    state[f"blocks.{block}.mlp.{part}.{kind}"] = value
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"lacks 8 of .*mlp\.fc1\.weight.*8 others \(SwiGLU\)"):
            _fit(vit, tmp_path / "w.safetensors")

    def test_names_of_transformers_are_refused(self, vit: VideoViT, tmp_path: Path) -> None:
        layer = "vit.encoder.layer.0.attention.attention.query.weight"
        state = {"vit.embeddings.cls_token": torch.ones(1, 1, 12), layer: torch.ones(12, 12)}
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"lacks \d+ of \d+ weights"):
            _fit(vit, tmp_path / "w.safetensors")

    def test_heads_and_what_only_training_used_may_be_left(
        self, vit: VideoViT, tmp_path: Path
    ) -> None:
        left = {
            "mask_token", "head.weight", "head_dist.weight", "fc.weight", "classifier.0.weight",
            "decoder_embed.weight", "decoder_blocks.0.norm1.weight", "decoder_pos_embed",
            "projector.0.weight", "predictor.3.bias", "dino_head.last_layer.weight_g",
            "prototypes.weight", "queue", "queue_ptr",
        }  # fmt: skip
        state = self._image_state(vit) | {name: torch.ones(3) for name in left}
        state |= {"projector.1.num_batches_tracked": torch.tensor(7)}
        save_file(state, tmp_path / "w.safetensors")
        assert set(_fit(vit, tmp_path / "w.safetensors").unexpected) == left

    def test_a_second_network_in_the_file_is_left(self, vit: VideoViT, tmp_path: Path) -> None:
        state = self._image_state(vit)
        both = {f"base_encoder.{n}": v for n, v in state.items()}
        both |= {f"momentum_encoder.{n}": v + 1 for n, v in state.items()}
        save_file(both, tmp_path / "w.safetensors")
        assert "under base_encoder" in str(_fit(vit, tmp_path / "w.safetensors"))
        assert torch.equal(vit.norm.weight, state["norm.weight"])

    @pytest.mark.parametrize("positions", [12, 19])
    def test_positions_of_no_square_are_refused(
        self, vit: VideoViT, tmp_path: Path, positions: int
    ) -> None:
        state = self._image_state(vit) | {"pos_embed": torch.randn(1, positions, 12)}
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=rf"pos_embed has {positions} positions"):
            _fit(vit, tmp_path / "w.safetensors")

    @pytest.mark.parametrize("value", [torch.full((12,), torch.nan), torch.ones(12).to(torch.int8)])
    def test_values_that_are_no_numbers_of_a_network(
        self, vit: VideoViT, tmp_path: Path, value: torch.Tensor
    ) -> None:
        save_file(self._image_state(vit) | {"norm.bias": value}, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"norm\.bias holds"):
            _fit(vit, tmp_path / "w.safetensors")
