"""Networks of timm and transformers, tiny ones with random weights that the libraries make.

Their vectors are those of the library called directly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.refusals import refused
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    IJepaConfig,
    SiglipConfig,
    SwinConfig,
    VideoMAEConfig,
    ViTConfig,
    ViTMAEConfig,
    VivitConfig,
    VJEPA2Config,
)

from selfshot.errors import UserError
from selfshot.models.pretrained import PretrainedNetwork, grid_of, open_network, packaged_network
from selfshot.models.pretrained_files import anywhere, find_network, licence_warning

NAME = "encoder.backbone"
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
DINO = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
TOWER = {"vision_config": {**SIZES, "image_size": 48, "patch_size": 16}, "text_config": SIZES}
CONVOLUTIONS: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]

IMAGE_NETWORKS = {
    # kind: (config, side, side of the grid, tokens before it, supervision)
    "dinov2": (Dinov2Config(**DINO, patch_size=14, image_size=42), 42, 3, 1, "none"),
    "registers": (
        Dinov2WithRegistersConfig(**DINO, patch_size=14, image_size=42), 42, 3, 5, "none",
    ),
    "dinov3": (DINOv3ViTConfig(**SIZES, num_register_tokens=4), 48, 3, 5, "none"),
    "dinov3_convnext": (DINOv3ConvNextConfig(**CONVOLUTIONS), 96, 3, 1, "none"),
    "siglip": (SiglipConfig(**TOWER), 48, 3, 0, "captions"),
    "clip": (CLIPConfig(**TOWER), 48, 3, 1, "captions"),
    "vit": (ViTConfig(**SIZES, image_size=48, patch_size=16), 48, 3, 1, None),
    "convnext": (ConvNextV2Config(**CONVOLUTIONS), 96, 3, 0, None),
    "swin": (
        SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=48, window_size=3),
        48, 6, 0, None,
    ),
    "ijepa": (IJepaConfig(**SIZES, image_size=48, patch_size=16), 48, 3, 0, "none"),
}  # fmt: skip
CLIP_NETWORKS = {
    "videomae": VideoMAEConfig(**SIZES, image_size=48, patch_size=16, num_frames=4),
    "vivit": VivitConfig(**SIZES, image_size=48, num_frames=4, tubelet_size=[2, 16, 16]),
    "vjepa2": VJEPA2Config(
        **DINO, crop_size=48, patch_size=16, frames_per_clip=4, pred_hidden_size=16,
        pred_num_hidden_layers=1, pred_num_attention_heads=2,
    ),
}  # fmt: skip
TIMM_NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    # kind: (architecture, arguments, side of the grid)
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}, 14),
    "dinov3": ("vit_small_patch16_dinov3", {"depth": 1, "embed_dim": 32, "num_heads": 2}, 16),
    "siglip": ("vit_base_patch16_siglip_224", {"depth": 1, "embed_dim": 32, "num_heads": 2}, 14),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 7),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16}, 28,
    ),
    "resnet": ("resnet10t", {"channels": (8, 16, 24, 32)}, 6),
}  # fmt: skip


def write_hf(folder: Path, config: Any, side: int, **said: Any) -> Any:
    """A folder as save_pretrained leaves it; returns the network."""
    torch.manual_seed(0)
    network = AutoModel.from_config(config).eval()
    network.save_pretrained(folder)
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **said}))
    return network


def frames_of(side: int, count: int = 3, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (2, count, side, width or side, 3)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def images_of(frames: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    images = frames.flatten(0, 1).float() / 255
    return ((images - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def opened(name: str) -> PretrainedNetwork:
    return open_network(find_network(name, setting=NAME), setting=NAME)


@torch.no_grad()
@pytest.mark.parametrize("kind", IMAGE_NETWORKS)
def test_an_image_network_of_transformers(kind: str, tmp_path: Path) -> None:
    config, side, grid, prefix, supervision = IMAGE_NETWORKS[kind]
    network = write_hf(tmp_path, config, side)
    module = opened(f"hf/{tmp_path}")
    assert find_network(f"hf/{tmp_path}", setting=NAME).supervision == supervision
    frames = frames_of(side)
    found = module(frames)
    assert found.tokens.shape == (2, 3, grid, grid, module.dim)
    assert (found.foreground == 1).all() and found.foreground.shape == (2, 3, grid, grid)

    module.prepare("cpu", fuse=True)
    torch.testing.assert_close(module(frames), found, rtol=1e-5, atol=1e-5)

    out = getattr(network, "vision_model", network)(pixel_values=images_of(frames))
    tokens = out.last_hidden_state
    pooled = out.get("pooler_output")
    if tokens.dim() == 4:
        tokens = tokens.flatten(2).permute(0, 2, 1)
    assert tokens.shape[1] == grid * grid + prefix
    expected = tokens[:, prefix:].unflatten(1, (grid, grid)).unflatten(0, (2, 3))
    torch.testing.assert_close(found.tokens, expected, rtol=1e-5, atol=1e-5)
    pooled = tokens.mean(1) if pooled is None else pooled.flatten(1)
    expected = pooled.unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(found.pooled, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", CLIP_NETWORKS)
def test_a_video_network_of_transformers(kind: str, tmp_path: Path) -> None:
    network = write_hf(tmp_path, CLIP_NETWORKS[kind], 48)
    module = opened(f"hf/{tmp_path}")
    frames = frames_of(48, 7)
    found = module(frames)
    # Seven frames as four: the middles of quarters; two tubes of two frames, given back to seven.
    images = images_of(frames[:, [0, 2, 4, 6]]).unflatten(0, (2, 4))
    if kind == "vjepa2":
        tokens = network(pixel_values_videos=images).last_hidden_state
    else:
        tokens = network(pixel_values=images).last_hidden_state
    prefix = int(kind == "vivit")
    assert tokens.shape[1] == 2 * 3 * 3 + prefix
    tubes = tokens[:, prefix:].unflatten(1, (2, 3, 3))
    expected = tubes[:, [0, 0, 0, 1, 1, 1, 1]]
    torch.testing.assert_close(found.tokens, expected, rtol=1e-5, atol=1e-5)
    pooled = tokens[:, 0] if prefix else tokens.mean(1)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    module.prepare("cpu", fuse=True)
    torch.testing.assert_close(module(frames).tokens, expected, rtol=1e-5, atol=1e-5)
    # Another size becomes the only one that it takes.
    assert module(frames_of(32, 2, 40)).tokens.shape == (2, 2, 3, 3, module.dim)


def write_timm(folder: Path, name: str, arguments: dict[str, Any]) -> Any:
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model(name, **arguments).eval()
    save_for_hf(network, str(folder), safe_serialization=True)
    return network


@torch.no_grad()
@pytest.mark.parametrize("kind", TIMM_NETWORKS)
def test_a_network_of_timm(kind: str, tmp_path: Path) -> None:
    name, arguments, grid = TIMM_NETWORKS[kind]
    network = write_timm(tmp_path, name, arguments)
    module = opened(f"timm/local-dir:{tmp_path}")
    assert module.preprocessing.interpolation == "bicubic"
    frames = frames_of(module.preprocessing.height, 1)
    found = module(frames)
    assert found.tokens.shape == (2, 1, grid, grid, module.dim)
    cfg = network.pretrained_cfg
    whole = network.forward_features(images_of(frames, cfg["mean"], cfg["std"]))
    if whole.dim() == 3:
        expected = whole[:, getattr(network, "num_prefix_tokens", 0) :]
    else:
        expected = (whole if kind == "swin" else whole.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(found.tokens[:, 0].flatten(1, 2), expected, rtol=1e-5, atol=1e-5)
    pooled = network.forward_head(whole, pre_logits=True)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_frames_are_enlarged_to_whole_patches(tmp_path: Path) -> None:
    write_hf(tmp_path, IMAGE_NETWORKS["dinov2"][0], 42, resample=3)
    module = opened(f"hf/{tmp_path}")
    assert module.preprocessing.size_for(21, 30, 0) == (42, 56)  # 60 is no multiple of 14
    assert module.preprocessing.size_for(100, 70, 0) == (98, 70)
    assert module.preprocessing.size_for(21, 30, 70) == (70, 98)
    assert module(frames_of(21, 1, 30)).tokens.shape == (2, 1, 3, 4, 32)


@torch.no_grad()
def test_it_is_built_again_from_its_spec(tmp_path: Path) -> None:
    write_hf(tmp_path, IMAGE_NETWORKS["clip"][0], 48)
    module = opened(f"hf/{tmp_path}")
    again = PretrainedNetwork(json.loads(json.dumps(module.spec)))
    again.load_state_dict(module.state_dict())
    frames = frames_of(48, 1)
    assert torch.equal(again.eval()(frames).tokens, module(frames).tokens)


def test_a_shift_before_the_normalisation(tmp_path: Path) -> None:
    """ViViT's processor: (x / 127.5 − 1 − 0.5) / 0.5."""
    said = {"rescale_factor": 1 / 127.5, "offset": True, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3}  # fmt: skip
    write_hf(tmp_path, CLIP_NETWORKS["vivit"], 48, **said)
    prepare = opened(f"hf/{tmp_path}").preprocessing
    frames = frames_of(48, 1).flatten(0, 1)
    expected = ((frames.float() / 127.5 - 1) - 0.5) / 0.5
    torch.testing.assert_close(prepare(frames), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_a_digest_covers_weights_and_configs(tmp_path: Path) -> None:
    write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
    digest = find_network(f"hf/{tmp_path}", setting=NAME).digest()
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A network\n")
    files = find_network(f"hf/{tmp_path}", setting=NAME)
    assert files.digest() == digest and files.licence == "cc-by-nc-4.0"
    assert "commercial" in str(licence_warning(files.facts))
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert find_network(f"hf/{tmp_path}", setting=NAME).digest() != digest


@pytest.mark.parametrize(("count", "size", "found"), [
    (197, (224, 224), (1, 14, 14)), (7 * 11 + 5, (112, 176), (5, 7, 11)),
    (49, (224, 224), (0, 7, 7)),
])  # fmt: skip
def test_the_grid_of_tokens(count: int, size: tuple[int, int], found: tuple[int, int, int]) -> None:
    assert grid_of(count, size, 16) == found


def test_norms_keep_what_pretraining_gave_them_and_learn_otherwise(tmp_path: Path) -> None:
    name, arguments, _ = TIMM_NETWORKS["resnet"]
    write_timm(tmp_path, name, arguments)
    for named, weights in ((f"timm/local-dir:{tmp_path}", None), (f"timm/{name}", "random")):
        files = find_network(named, setting=NAME, weights=weights)
        for frozen in (True, False):
            module = open_network(files, setting=NAME, weights=weights, frozen=frozen).train()
            norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            learns = weights == "random" and not frozen
            assert norms and all(norm.training == learns for norm in norms)
            assert all(p.requires_grad != frozen for p in module.parameters())


def test_weights_in_half_precision_are_computed_with_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AutoModel.from_config(IMAGE_NETWORKS["dinov2"][0]).to(torch.bfloat16)
    write_hf(tmp_path, IMAGE_NETWORKS["dinov2"][0], 42)
    network.save_pretrained(tmp_path)
    module = opened(f"hf/{tmp_path}")
    again = PretrainedNetwork(json.loads(json.dumps(module.spec))).eval()
    again.load_state_dict(module.state_dict())
    assert {p.dtype for p in [*module.parameters(), *again.parameters()]} == {torch.float32}
    frames = frames_of(42, 1)
    with torch.no_grad():
        assert torch.equal(module(frames).tokens, again(frames).tokens)


def test_a_folder_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert anywhere("hf/nets") == f"hf/{tmp_path / 'nets'}"
    assert anywhere("timm/local-dir:nets") == f"timm/local-dir:{tmp_path / 'nets'}"
    for name in ("hf/owner/name", "timm/resnet18", "pretrained", "timm/hf-hub:a/b"):
        assert anywhere(name) == name


def say_otherwise(folder: Path, **changes: Any) -> None:
    """Change what a folder's config says."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestWrongNetworks:
    """One message each."""

    @pytest.mark.parametrize("name", [
        "timm/resnet5", "timm/resnet18.none_such", "timm/nowhere:x/y", "timm/mixer_s16_224",
        "hf/a b/c", "hf/no-such/repository", "timm/hf-hub:no-such/repository", "hf//no/such/folder",
        "timm/local-dir:/no/such/folder",
    ])  # fmt: skip
    def test_names(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with refused(NAME):
            find_network(name, setting=NAME)

    def test_what_is_not_here_names_the_command_that_fetches_it(self) -> None:
        with pytest.raises(UserError, match=r"hf download no-such/one --revision abc"):
            find_network("hf/no-such/one", setting=NAME, revision="abc")

    def test_a_revision_of_a_folder(self, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        with refused(NAME):
            find_network(f"hf/{tmp_path}", setting=NAME, revision="main")

    @pytest.mark.parametrize("missing", [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ])  # fmt: skip
    def test_a_folder_that_is_not_whole(self, missing: str, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        (tmp_path / missing).unlink()
        with refused(NAME):
            opened(f"hf/{tmp_path}")

    def test_a_folder_of_the_other_library(self, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        with refused(NAME):
            find_network(f"timm/local-dir:{tmp_path}", setting=NAME)

    def test_code_of_a_repository_is_not_run(self, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        say_otherwise(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Own"})
        (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with refused(NAME):
            opened(f"hf/{tmp_path}")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["pit_ti_224", "levit_128s", "crossvit_9_240"])
    def test_timms_networks_without_a_grid(self, name: str) -> None:
        files = find_network(f"timm/{name}", setting=NAME, weights="random")
        with refused(NAME):
            open_network(files, setting=NAME, weights="random")

    @pytest.mark.parametrize("config", [
        BertConfig(**SIZES), ViTMAEConfig(**SIZES, image_size=48, patch_size=16),
    ])  # fmt: skip
    def test_kinds_without_a_map(self, config: Any, tmp_path: Path) -> None:
        write_hf(tmp_path, config, 48)
        with refused(NAME):
            opened(f"hf/{tmp_path}")

    def test_weights_of_another_shape(self, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        say_otherwise(tmp_path, intermediate_size=96)
        with refused(NAME):
            opened(f"hf/{tmp_path}")

    @pytest.mark.parametrize("kind", ["hf", "timm"])
    @pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02cos\nsystem\n."])
    def test_files_that_hold_no_weights(self, kind: str, content: bytes, tmp_path: Path) -> None:
        """The last one is a pickle that would run a program."""
        if kind == "hf":
            write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        else:
            write_timm(tmp_path, *TIMM_NETWORKS["resnet"][:2])
        name = f"hf/{tmp_path}" if kind == "hf" else f"timm/local-dir:{tmp_path}"
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError) as caught:
            opened(name)
        assert caught.value.setting == NAME
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError) as caught:
            opened(name)
        assert caught.value.setting == NAME

    def test_timms_weights_of_another_network(self, tmp_path: Path) -> None:
        write_timm(tmp_path, *TIMM_NETWORKS["resnet"][:2])
        say_otherwise(tmp_path, model_args={"channels": [8, 16, 24, 40]})
        with refused(NAME):
            opened(f"timm/local-dir:{tmp_path}")

    def test_no_memory_is_free(self, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        # A matrix of 275 GB, which no machine here gives.
        say_otherwise(tmp_path, hidden_size=1 << 18, num_hidden_layers=1)
        with refused(NAME):
            opened(f"hf/{tmp_path}")

    def test_weights_that_are_missing(self, tmp_path: Path) -> None:
        write_hf(tmp_path, IMAGE_NETWORKS["vit"][0], 48)
        say_otherwise(tmp_path, num_hidden_layers=3)
        with refused(NAME):
            opened(f"hf/{tmp_path}")


@torch.no_grad()
def test_the_packaged_weights_are_those_of_the_network_that_they_were_written_for() -> None:
    """The network is that of efficientnet-lite-pytorch 0.1.0, which gave these values.

    `pooled` are means over the last map of four frames, `tokens` every 16th channel of the first
    frame's map. It pads for the size that it was built for, 224.
    """
    known = np.load(Path(__file__).with_name("efficientnet_lite0.npz"))
    module = packaged_network()
    frames = frames_of(224, 2)
    found = module(frames)
    expected = torch.from_numpy(known["tokens"])
    torch.testing.assert_close(found.tokens[0, 0, ..., ::16], expected, rtol=1e-4, atol=1e-4)
    pooled = torch.from_numpy(known["pooled"]).unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-4)
    expected = found.tokens
    module.prepare("cpu", fuse=True)
    assert module._fused is not None
    torch.testing.assert_close(module(frames).tokens, expected, rtol=1e-3, atol=1e-3)
    odd = frames_of(131, 1, 149)
    fused = module(odd).tokens
    module._fused = None
    torch.testing.assert_close(fused, module(odd).tokens, rtol=1e-3, atol=1e-3)
