"""The `encoder` section: Φ, what teaches it, and how its training is watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfshot.config.fields import (
    Count,
    NonNegative,
    PathText,
    Positive,
    Section,
    Share,
)
from selfshot.config.optimiser import Optimiser

Trunk = Literal["backbone", "efficientnet_lite0", "scratch", "inception", "video_vit"]

TRUNK_CHANNELS = {"efficientnet_lite0": 1280, "inception": 2048}
"""Channels of trunks that have one size."""

VIT_CHANNELS = {"tiny": 192, "small": 384, "base": 768}


class AugmentationConfig(Section):
    """How a temporal crop is changed: the same change for each of its frames."""

    flip: Share = Field(0.5, description="probability of a mirror image")
    crop_scale: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="least share of the frame that is cropped and resized; 1: no crop"
    )
    brightness: NonNegative = Field(0.0, description="largest change, as a share; 0: none")
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = Field(0.0, description="largest turn")
    jitter: Share = Field(0.8, description="probability that colours change at all")
    grey: Share = Field(0.0, description="probability of no colour")
    blur: Share = Field(0.0, description="probability of a Gaussian blur")


class HeadConfig(Section):
    """MoCo v3's projection: what the loss compares."""

    kind: Literal["none", "mlp"] = "none"
    hidden: Count = 4096
    dim: Count = 256
    norm: Literal["batch", "layer"] = Field("batch", description="layer: for small batches")
    retrieve: bool = Field(False, description="retrieval uses the head's vector, too")


class CompanionConfig(Section):
    """A second frozen network, whose vectors are joined to Φ's; Φ is trained without it.

    efficientnet_lite0 has seen ImageNet's labels (its package's weights, Apache-2.0).
    """

    trunk: Literal["none", "efficientnet_lite0"] = "none"
    share: Share = Field(0.3, description="of the cosine; Φ has the rest")
    frame_side: Annotated[int, Field(ge=128)] = Field(
        160, description="frames are enlarged to this side"
    )
    num_frames: Count = Field(4, description="of a clip that it looks at")


class ProbeConfig(Section):
    """Nearest neighbours of unseen-class videos while Φ trains; labels only measure."""

    every: Annotated[int, Field(ge=0)] = Field(0, description="steps between two; 0: none")
    queries: Count = Field(120, description="val queries, at most")
    clips: Count = Field(1000, description="labelled clips of the corpus, at most")
    num_frames: Count = Field(4, description="frames of each")


class WhiteningConfig(Section):
    """How the map of `adapter: whitened` is fitted: on crops of clips, without a label."""

    clips: Count = Field(1000, description="of the corpus, at most")
    shrinkage: Positive = Field(
        1.0, description="share of the mean variance that is added to every direction's"
    )


class EncoderConfig(Section):
    """Φ: a video transformer over frame tokens, trained without a label on the corpus."""

    trunk: Trunk = Field(
        "backbone",
        description="what turns frames into tokens: the pretrained backbone (frozen), "
        "EfficientNet-Lite0 with ImageNet weights, a small network from scratch, Inception v3, or "
        "a ViT over the patches of all frames",
    )
    trunk_trained: bool | None = Field(
        None, description="none: scratch and video_vit are trained, the others are frozen"
    )
    weights: PathText | None = Field(
        None, description="path or address of the trunk's weights, .safetensors or torch"
    )
    frame_side: Annotated[int, Field(ge=0)] = Field(
        0, description="efficientnet_lite0 and inception see frames enlarged to this side"
    )
    vit_size: Literal["tiny", "small", "base"] = "small"
    vit_patch: Count = Field(16, description="side of a patch in pixels")
    vit_pooling: Literal["class", "mean"] = "class"
    dim: Annotated[int, Field(ge=6)] = 128
    layers: Annotated[int, Field(ge=0)] = 1
    heads: Count = 4
    adapter: Literal["none", "linear", "whitened", "whitened_linear"] = Field(
        "none",
        description="what corrects the pooled vectors: a trained linear map that starts at none, "
        "a map that is fitted before, or one after the other",
    )
    whitening: WhiteningConfig = WhiteningConfig()
    loss: Literal["rank", "nce", "moco"] = "rank"
    rank_temperature: Positive = Field(0.05, description="2 is what Eq. 6 prints")
    rank_form: Literal["ap", "paper"] = "ap"
    nce_temperature: Positive = Field(0.1, description="of nce and moco")
    num_frames: Count = Field(2, description="frames of one temporal crop")
    videos_per_batch: Annotated[int, Field(ge=2)] = 32
    crops_per_video: Annotated[int, Field(ge=2)] = 4
    accumulate: Count = Field(
        1, description="parts of a batch that are computed one after another, to save memory"
    )
    positives: Literal["all", "farthest"] = Field(
        "all", description="which other crops of a clip an anchor should be near to"
    )
    positive_cosine: Share = Field(
        1.0, description="an anchor counts if its farthest positive is less near than this"
    )
    queue_length: Annotated[int, Field(ge=0)] = 1280
    momentum: Share = Field(0.99, description="of Φ̃; rises to 1 on a cosine")
    augmentation: AugmentationConfig = AugmentationConfig()
    head: HeadConfig = HeadConfig()
    companion: CompanionConfig = CompanionConfig()
    peak_window: Annotated[int, Field(ge=0)] = Field(
        0,
        description="side in tokens of the window of most foreground that stands for a frame in a "
        "clip's vector; 0: the mean over the clip",
    )
    probe: ProbeConfig = ProbeConfig()
    activation_checkpointing: bool = Field(
        False, description="less memory in the layers, for the time of one more forward"
    )
    optimiser: Optimiser = Optimiser(steps=60, learning_rate=1e-4, warmup_steps=20)

    @property
    def trains_trunk(self) -> bool:
        """Whether the trunk's own weights move."""
        if self.trunk_trained is None:
            return self.trunk in ("scratch", "video_vit")
        return self.trunk_trained

    @property
    def trains_nothing(self) -> bool:
        """Whether Φ is a fixed network, such as the paper's "Inception fixed"."""
        if self.trunk == "video_vit":
            return not self.trains_trunk
        return not (self.trains_trunk or self.layers or self.adapter.endswith("linear"))

    @model_validator(mode="after")
    def _shapes(self) -> EncoderConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim: {self.dim} is not a multiple of heads: {self.heads}")
        if self.queue_length % (self.videos_per_batch * self.crops_per_video):
            raise ValueError(
                f"queue_length: {self.queue_length} is no multiple of the batch, "
                f"videos_per_batch × crops_per_video = "
                f"{self.videos_per_batch * self.crops_per_video}"
            )
        return self

    @model_validator(mode="after")
    def _trunk(self) -> EncoderConfig:
        if self.trunk == "video_vit":
            self._same_dim(VIT_CHANNELS[self.vit_size], f"video_vit of vit_size: {self.vit_size}")
        elif not self.layers and self.trunk in TRUNK_CHANNELS:
            self._same_dim(TRUNK_CHANNELS[self.trunk], f"{self.trunk} with layers: 0")
        if self.trunk == "video_vit" and self.adapter != "none":
            raise ValueError(
                f"adapter: {self.adapter} is not for trunk: video_vit, which is trained itself; "
                "leave it out, or set head: {kind: mlp, retrieve: true}"
            )
        if self.trunk == "video_vit" and self.companion.trunk != "none":
            raise ValueError(
                f"companion.trunk: {self.companion.trunk} is not allowed with trunk: video_vit, "
                "which has no map of the foreground; leave companion out"
            )
        if self.trunk != "backbone" and self.peak_window:
            raise ValueError(
                f"peak_window: {self.peak_window} is not for trunk: {self.trunk}, which has no map "
                "of the foreground; leave it out, or choose trunk: backbone"
            )
        if self.trunk in ("backbone", "scratch") and self.weights is not None:
            raise ValueError(
                f"weights: trunk: {self.trunk} takes none; leave weights out, or choose "
                "efficientnet_lite0, inception or video_vit"
            )
        if self.trunk == "backbone" and self.trunk_trained:
            raise ValueError(
                "trunk_trained: true is not allowed with trunk: backbone, whose weights the "
                "segmentation reads too; choose scratch, or leave it out"
            )
        if self.trunk == "scratch" and self.trunk_trained is False:
            raise ValueError(
                "trunk_trained: false is not allowed with trunk: scratch, which then knows nothing"
            )
        return self

    def _same_dim(self, channels: int, what: str) -> None:
        if self.dim != channels:
            raise ValueError(
                f"dim: {self.dim} differs from the {channels} channels of {what}; "
                f"set dim: {channels}"
            )
