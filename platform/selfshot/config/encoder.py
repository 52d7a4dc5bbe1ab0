"""The `encoder` section: Φ, what teaches it, and how its training is watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from selfshot.config.fields import Count, PathText, Positive, Section, Share
from selfshot.config.optimiser import Optimiser

BACKBONES = ("pretrained", "efficientnet_lite0", "scratch", "video_vit")
AUXILIARIES = ("none", "efficientnet_lite0")


def _network(*own: str) -> AfterValidator:
    """One of our own names, or a network of timm or transformers."""

    def check(name: str) -> str:
        if name in own or (name.startswith(("timm/", "hf/")) and name.partition("/")[2]):
            return name
        raise ValueError(
            f"{name!r} is not allowed ({', '.join(own)}, timm/NAME, timm/hf-hub:REPOSITORY, "
            "timm/local-dir:FOLDER, hf/REPOSITORY or hf/FOLDER)"
        )

    return AfterValidator(check)


class EncoderConfig(Section):
    """Φ: a video transformer over frame tokens, trained without a label on the corpus."""

    backbone: Annotated[str, _network(*BACKBONES)] = Field(
        "pretrained",
        description="what turns frames into tokens: the pretrained backbone (frozen), "
        "EfficientNet-Lite0 with ImageNet weights, a small network from scratch, a ViT over the "
        "patches of all frames; or any network of timm (timm/NAME) or transformers (hf/NAME)",
    )
    revision: str | None = Field(None, description="branch, tag or commit of the repository")
    allow_download: bool = Field(
        False, description="fetch from the hub what is not on this machine"
    )
    train_backbone: bool | None = Field(
        None, description="none: scratch and video_vit are trained, the others are frozen"
    )
    weights: Annotated[Literal["random"] | PathText | None, Field(union_mode="left_to_right")] = (
        Field(
            None,
            description="path or address of video_vit's weights, or path of those of timm/NAME, "
            ".safetensors or torch; random: drawn at random; none: those that the name stands for",
        )
    )
    frame_side: Annotated[int, Field(ge=0)] = Field(
        0,
        description="a named network sees frames enlarged to this side; 0: to its own, and for "
        "efficientnet_lite0 to 128",
    )
    pooling: Literal["tokens", "network"] = Field(
        "tokens",
        description="a clip's vector: the mean of its tokens, weighted by foreground; or a named "
        "network's own vectors, such as its class token",
    )
    vit_size: Literal["tiny", "small", "base"] = "small"
    vit_patch: Count = Field(16, description="side of a patch in pixels")
    dim: Count | None = Field(
        None, description="channels that tokens are projected to; none: as many as they have"
    )
    layers: Annotated[int, Field(ge=0)] = 1
    heads: Count = 4
    adapter: Literal["none", "linear", "whitened", "whitened_linear"] = Field(
        "none",
        description="what corrects the pooled vectors: a trained linear map that starts at none, "
        "a map that is fitted before, or one after the other",
    )
    auxiliary: Annotated[str, _network(*AUXILIARIES)] = Field(
        "none",
        description="a second, frozen network whose vectors are joined to Φ's: "
        "efficientnet_lite0, or any as in backbone",
    )
    loss: Literal["rank", "nce", "moco"] = "rank"
    temperature: Positive = Field(0.05, description="of the loss; 2 is what Eq. 6 prints for rank")
    head: Literal["none", "mlp"] = Field(
        "none", description="MoCo v3's projection of what the loss compares"
    )
    num_frames: Count = Field(2, description="frames of one temporal crop")
    videos_per_batch: Annotated[int, Field(ge=2)] = 32
    crops_per_video: Annotated[int, Field(ge=2)] = 4
    augmentation: Literal["flip", "moco"] = Field(
        "flip",
        description="how a crop is changed, all its frames alike: mirrored or not, or also with "
        "crops, colours and blur as in MoCo v3",
    )
    positives: Literal["all", "farthest"] = Field(
        "all", description="which other crops of a clip an anchor should be near to"
    )
    positive_cosine: Share = Field(
        1.0, description="an anchor counts if its farthest positive is less near than this"
    )
    queue_length: Annotated[int, Field(ge=0)] = 1280
    momentum: Share = Field(0.99, description="of Φ̃; rises to 1 on a cosine")
    probe_every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between two measures of retrieval by val queries; 0: none"
    )
    optimiser: Optimiser = Optimiser(steps=60, learning_rate=1e-4, warmup_steps=20)

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone's own weights move."""
        if self.train_backbone is None:
            return self.backbone in ("scratch", "video_vit")
        return self.train_backbone

    @property
    def trains_nothing(self) -> bool:
        """Whether Φ is a fixed network, such as the paper's "Inception fixed"."""
        if self.backbone == "video_vit":
            return not self.trains_backbone
        return not (self.trains_backbone or self.layers or self.adapter.endswith("linear"))

    @property
    def named(self) -> bool:
        """Whether the backbone is a network of timm or transformers."""
        return self.backbone not in BACKBONES

    @model_validator(mode="after")
    def _batch(self) -> EncoderConfig:
        if self.queue_length % (self.videos_per_batch * self.crops_per_video):
            raise ValueError(
                f"queue_length: {self.queue_length} is no multiple of the batch, "
                f"videos_per_batch × crops_per_video = "
                f"{self.videos_per_batch * self.crops_per_video}"
            )
        return self

    @model_validator(mode="after")
    def _backbone(self) -> EncoderConfig:
        vit = self.backbone == "video_vit"
        if self.dim is not None and (vit or self.backbone == "pretrained" or not self.layers):
            raise ValueError(
                f"dim: {self.dim} is not for backbone: {self.backbone} with layers: "
                f"{self.layers}, which projects nothing; leave dim out"
            )
        if vit and self.adapter != "none":
            raise ValueError(
                f"adapter: {self.adapter} is not for backbone: video_vit, which is trained itself; "
                "leave it out"
            )
        if vit and self.auxiliary != "none":
            raise ValueError(
                f"auxiliary: {self.auxiliary} is not allowed with backbone: video_vit, "
                "which has no map of the foreground; leave auxiliary out"
            )
        of_timm = self.backbone.startswith("timm/") and ":" not in self.backbone
        if self.weights is not None and not (of_timm or vit):
            raise ValueError(
                f"weights: backbone: {self.backbone} takes none; leave weights out, or choose "
                "timm/NAME or video_vit"
            )
        for name, value in (("revision", self.revision), ("allow_download", self.allow_download)):
            if value and not (self.named or (name != "revision" and "/" in self.auxiliary)):
                raise ValueError(
                    f"{name}: {value} is not for backbone: {self.backbone}, which no hub holds; "
                    f"leave {name} out, or choose timm/… or hf/…"
                )
        if self.pooling == "network" and (self.layers or not self.named):
            raise ValueError(
                f"pooling: network is not for backbone: {self.backbone} with layers: "
                f"{self.layers} (allowed: timm/… or hf/… with layers: 0, whose own vectors are "
                "taken); leave pooling out"
            )
        if self.backbone == "pretrained" and self.train_backbone:
            raise ValueError(
                "train_backbone: true is not allowed with backbone: pretrained, whose weights the "
                "segmentation reads too; choose scratch, or leave it out"
            )
        if self.backbone == "scratch" and self.train_backbone is False:
            raise ValueError(
                "train_backbone: false is not allowed with backbone: scratch, which then knows "
                "nothing"
            )
        return self
