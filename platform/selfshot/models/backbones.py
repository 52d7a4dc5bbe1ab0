"""Backbones by name: the small one, and any network of timm that gives maps of a frame.

A network of timm is described by a `spec` of plain JSON values, from which it can be built again
without the folder that it came from: an exported backbone holds its spec and its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.config.backbone import BackboneConfig
from selfshot.errors import UserError
from selfshot.models.backbone import Backbone, SmallBackbone
from selfshot.models.foreign_weights import WeightsReport, fit_foreign_weights
from selfshot.models.pretrained import (
    PACKAGED,
    build_timm,
    packaged_efficientnet_lite0,
    timm_names,
    timm_without_contents,
)
from selfshot.models.pretrained_files import NetworkFiles, find_network, weights_files

FINE = 4
"""Pixels to one of the finer features."""

_ODD_SIZES = (69, 107), (176, 80)
"""Frames that a network is tried on, in pixels: no multiples of 16, or of 32."""


def build_backbone(*, dim: int, width: int = 32, spec: Mapping[str, Any] | None = None) -> Backbone:
    """A backbone with weights drawn at random.

    Args:
        dim: channels d of a token.
        width: of the small one.
        spec: of a network of timm; None: the small one.
    """
    return SmallBackbone(width, dim) if spec is None else TimmBackbone(spec, dim)


def backbone_settings(section: BackboneConfig) -> dict[str, Any]:
    """Arguments of `build_backbone`, in JSON values.

    Raises:
        UserError: see `find_network`; or the network gives no maps at the strides.
    """
    if section.kind == "small":
        return {"width": section.width, "dim": section.dim}
    return {"dim": section.dim, "spec": _describe(section, backbone_files(section))}


def backbone_files(section: BackboneConfig) -> NetworkFiles:
    """The files of a network of timm; see `find_network`."""
    packaged = section.kind == PACKAGED
    # What a package ships is not looked for in the hub's cache.
    weights = section.weights or ("random" if packaged else None)
    return find_network(
        "timm/tf_efficientnet_lite0" if packaged else section.kind,
        setting="backbone.kind",
        revision=section.revision,
        allow_download=section.allow_download,
        weights=weights,
    )


def open_backbone(section: BackboneConfig) -> tuple[Backbone, WeightsReport | None]:
    """The backbone with the weights that it starts from, and what became of a file of them.

    With weights its norms are frozen: their statistics are of many more frames than a batch here
    has.

    Raises:
        UserError: see `backbone_settings`; or the weights are not the network's.
    """
    if section.kind == "small":
        return SmallBackbone(section.width, section.dim), None
    files = backbone_files(section)
    backbone = TimmBackbone(_describe(section, files), section.dim)
    if section.weights == "random":
        return backbone, None
    backbone.freeze_norms = True
    # Filled whole, as files hold it; what the tokens do not need is left out then.
    whole, kept = build_timm(backbone.spec), backbone.network.state_dict()
    report = None
    if section.weights is None and section.kind == PACKAGED:
        whole.load_state_dict(packaged_efficientnet_lite0(), strict=False)
    else:
        report = fit_foreign_weights(
            whole,
            section.weights or weights_files(files.folder)[0],  # type: ignore[arg-type]
            optional=[name for name in whole.state_dict() if name not in kept],
            setting="backbone.weights" if section.weights else "backbone.kind",
            rename=lambda state: timm_names(whole, state),
        )
    backbone.network.load_state_dict({name: whole.state_dict()[name] for name in kept})
    return backbone, report


class TimmBackbone(Backbone):
    """A network of timm up to the stage of its tokens, and a 1×1 convolution to d.

    The stages after it are left out, neither trained nor saved, but for the deepest one where the
    tokens have its features too. The finer features are those of
    the stage at stride 4. A plain ViT has its tokens alone; transposed convolutions make the finer
    features from them, as in ViTDet. BatchNorms are frozen with their scale and shift, as usual in
    detection.
    """

    fine_stride = FINE
    frozen_affine = True

    def __init__(self, spec: Mapping[str, Any], dim: int) -> None:
        """Build it with weights drawn at random; see `build_backbone`."""
        super().__init__()
        self.spec, self.dim, self.token_stride = dict(spec), dim, int(spec["stride"])
        self.fine_channels, self.deep_channels = spec["channels"]
        self.network = build_timm(spec)
        self.network.prune_intermediate_layers(spec["indices"], prune_norm=not spec["plain"])
        if spec["dilation"] > 1:
            _dilate(_stage(self.network, spec), spec["dilation"])
        if spec["plain"]:
            self.pyramid = _pyramid(self.deep_channels, self.token_stride)
        self.project = nn.Conv2d(self.deep_channels, dim, 1)
        nn.init.xavier_uniform_(self.project.weight)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Backbone`."""
        return {"dim": self.dim, "spec": self.spec}

    def normalise(
        self, frames: UInt8[Tensor, "*batch height width 3"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Pixels less the mean of the network's own training, over its deviation."""
        mean, std = (frames.new_tensor(self.spec[x], dtype=torch.float32) for x in ("mean", "std"))
        return ((frames.float() - mean) / std).movedim(-1, -3)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        size = images.shape[-2:]
        fine, deep = _maps(self.network, self.spec, images)
        if self.spec["plain"]:
            fine = self.pyramid(deep)
        fine, deep = _cut(fine, size, FINE), _cut(deep, size, self.token_stride)
        return self.project(deep), fine, deep


def _pyramid(channels: int, stride: int) -> nn.Sequential:
    """Tokens to finer features: each step doubles the map and halves its channels."""
    from timm.layers import LayerNorm2d  # type: ignore[attr-defined]

    layers: list[nn.Module] = []
    while stride > FINE:
        layers += [nn.ConvTranspose2d(channels, channels // 2, 2, 2)]
        stride, channels = stride // 2, channels // 2
        layers += [LayerNorm2d(channels), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _stage(network: Any, spec: Mapping[str, Any]) -> nn.Module:
    """The stage that gives the tokens."""
    index = spec["indices"][min(1, len(spec["indices"]) - 1)]
    stage: nn.Module = network.get_submodule(network.feature_info[index]["module"])
    return stage


def _dilate(stage: nn.Module, by: int) -> None:
    """Widen a stage's convolutions; its map keeps its size.

    timm's own `output_stride` dilates in place of a stride, and none of it in the first block; A.3
    dilates each block of a stage that keeps its stride.
    """
    for part in _wide_convolutions(stage):
        part.dilation = part.dilation[0] * by, part.dilation[1] * by
        if not isinstance(part.padding, str):
            part.padding = part.padding[0] * by, part.padding[1] * by


def _wide_convolutions(stage: nn.Module) -> list[nn.Conv2d]:
    """Those of more than one pixel, but for even ones, whose dilation would change the map."""
    every = [part for part in stage.modules() if isinstance(part, nn.Conv2d)]
    return [part for part in every if part.kernel_size[0] > 1 and part.kernel_size[0] % 2]


def _maps(network: Any, spec: Mapping[str, Any], images: Tensor) -> tuple[Tensor, Tensor]:
    """The finest map and the tokens', of frames that are padded as the network needs it."""
    height, width = images.shape[-2:]
    multiple = spec["multiple"]
    found = network.forward_intermediates(
        functional.pad(images, (0, -width % multiple, 0, -height % multiple)),
        indices=spec["indices"],
        norm=spec["plain"],
        output_fmt="NCHW",
        intermediates_only=True,
    )
    if len(found) < 3:
        return found[0], found[-1]
    # With the context: the deepest stage's map, enlarged to the tokens' grid.
    context = functional.interpolate(
        found[2], size=found[1].shape[-2:], mode="bilinear", align_corners=False
    )
    return found[0], torch.cat([found[1], context], 1)


def _cut(x: Tensor, size: torch.Size | tuple[int, int], stride: int) -> Tensor:
    """A map without what the padding of the frames added."""
    return x[..., : -(-size[0] // stride), : -(-size[1] // stride)]


def _describe(section: BackboneConfig, files: NetworkFiles) -> dict[str, Any]:
    """The spec of a network of timm.

    Raises:
        UserError: it gives no maps at the strides.
    """
    # Imported here: it takes seconds, and the small backbone needs none of it.
    from timm.layers import Conv2dSame  # type: ignore[attr-defined]

    stride, setting = section.output_stride, "backbone.kind"
    shape, arguments, said = timm_without_contents(files, setting=setting)
    strides = [int(info["reduction"]) for info in getattr(shape, "feature_info", ())]
    last = {of: index for index, of in enumerate(strides)}
    plain = len(last) == 1
    # A token of 8 pixels is of the stage at stride 16, dilated in place of its stride.
    wanted = (FINE, max(16, stride))
    if not plain and not last.keys() >= set(wanted):
        raise _refused(section, strides)
    more: dict[str, Any] = {}
    if plain:
        # Patches of another side: their weights are resampled when a file is read.
        more = {"patch_size": stride, "dynamic_img_size": True}
    elif stride == 8:
        more, setting = {"output_stride": 8}, "backbone.output_stride"
    elif getattr(getattr(shape, "patch_embed", None), "strict_img_size", False):
        more = {"strict_img_size": False}
    if more:
        shape, arguments, said = timm_without_contents(files, setting=setting, **more)
    spec = {
        "architecture": files.config["architecture"],
        "arguments": arguments,
        "indices": [len(strides) - 1] if plain else [last[one] for one in wanted],
        "plain": plain,
        "stride": stride,
        "dilation": section.dilation,
        "mean": [255 * x for x in said["mean"]],
        "std": [255 * x for x in said["std"]],
    }
    if section.kind == PACKAGED:
        spec |= {"mean": [127.0] * 3, "std": [128.0] * 3}
    if section.dilation > 1 and not _wide_convolutions(_stage(shape, spec)):
        raise UserError(
            f"backbone.dilation: {section.dilation} is not for {section.kind}, whose tokens' stage "
            "has no convolution to dilate; leave it out",
            setting="backbone.dilation",
        )
    if section.context:
        if plain or strides[-1] <= stride:
            raise UserError(
                f"backbone.context: the tokens of {section.kind} at backbone.output_stride: "
                f"{stride} are of its deepest stage already; leave it out, or set the stride to 16",
                setting="backbone.context",
            )
        spec["indices"] = [*spec["indices"], len(strides) - 1]
    # "Same" padding moves the grid with the size of a frame, if that is no multiple.
    moves = any(isinstance(part, Conv2dSame) for part in shape.modules())
    # So do maps that are enlarged to another's grid.
    for multiple in (32,) if section.context else (stride, 32) if moves else (1, stride, 32):
        spec["multiple"] = multiple
        channels = _channels(shape, spec)
        if channels is not None:
            return spec | {"channels": channels}
    raise _refused(section, strides)


def _channels(shape: Any, spec: Mapping[str, Any]) -> list[int] | None:
    """Channels of the finer and deeper features; None where the maps have not their strides."""
    channels: list[int] = []
    for size in _ODD_SIZES:
        try:
            fine, deep = _maps(shape, spec, torch.zeros(1, 3, *size, device="meta"))
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError):
            return None
        checked = {spec["stride"]: deep} if spec["plain"] else {FINE: fine, spec["stride"]: deep}
        for stride, x in checked.items():
            if list(_cut(x, size, stride).shape[-2:]) != [-(-side // stride) for side in size]:
                return None
        halved = spec["stride"] // FINE if spec["plain"] else 1
        channels = [fine.shape[1] // halved, deep.shape[1]]
    return channels


def _refused(section: BackboneConfig, strides: Sequence[int]) -> UserError:
    return UserError(
        f"backbone.kind: maps of frames of any size at the strides {FINE} and "
        f"{section.output_stride} are wanted, and {section.kind} has none (its strides: "
        f"{', '.join(map(str, strides)) or 'none'}); name another network, as timm/resnet50 or "
        "timm/convnext_tiny",
        setting="backbone.kind",
    )
