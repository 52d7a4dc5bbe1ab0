"""The `backbone` section: the network that turns frames into tokens, and its pretraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from selfshot.config.fields import Count, PathText, Positive, Section
from selfshot.config.optimiser import Optimiser


class BackboneConfig(Section):
    """The network that turns frames into tokens, pretrained on the seen classes' masks."""

    kind: str = Field("small", description="small, efficientnet_lite0, or timm/NAME")
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        32, description="first channels of the small one"
    )
    dim: Annotated[int, Field(ge=6, multiple_of=6)] = Field(
        72, description="channels of a token, and of the VIS transformer"
    )
    output_stride: Literal[8, 16, 32] = Field(16, description="of timm: pixels to a token")
    context: bool = Field(
        False, description="of timm: tokens have the deepest stage's features too, enlarged"
    )
    dilation: Count = Field(1, description="of timm: of the convolutions of the tokens' stage")
    weights: PathText | None = Field(
        None, description="of timm: random, or path or address of weights, .safetensors or torch"
    )
    revision: str | None = Field(None, description="of timm: branch, tag or commit of the weights")
    allow_download: bool = Field(False, description="of timm: fetch weights from the hub")
    pretrain: bool = Field(True, description="false: the weights are taken as they are")
    network_learning_rate: Positive | None = Field(
        None, description="of timm: of the network's own weights; none: the optimiser's"
    )
    classes_per_batch: Annotated[int, Field(ge=2)] = 48
    optimiser: Optimiser = Optimiser(steps=640, learning_rate=4e-3, warmup_steps=20)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in ("small", "efficientnet_lite0") and not kind.startswith("timm/"):
            raise ValueError(f"{kind!r} is not allowed (small, efficientnet_lite0 or timm/NAME)")
        return kind

    @model_validator(mode="after")
    def _of_timm_alone(self) -> BackboneConfig:
        fields = type(self).model_fields
        for name in ("output_stride", "dilation", "weights", "revision", "allow_download",
                     "context", "network_learning_rate"):
            if self.kind == "small" and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is not for kind small (timm/NAME); leave it "
                    "out, or choose another kind"
                )
        return self
