"""The `backbone` section: the network that turns frames into tokens, and its pretraining."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfshot.config.fields import FilePath, Section
from selfshot.config.optimiser import Optimiser


class BackboneConfig(Section):
    """The network that turns frames into tokens, pretrained on the seen classes' masks."""

    kind: Literal["small", "resnet18", "resnet50_dilated", "efficientnet_lite0"] = "small"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        32, description="first channels of the small one"
    )
    dim: Annotated[int, Field(ge=6, multiple_of=6)] = Field(
        72, description="channels of a token, and of the VIS transformer"
    )
    output_stride: Literal[16, 32] = Field(
        16, description="of resnet50_dilated: pixels to a token"
    )
    weights: FilePath | None = Field(
        None, description="safetensors or PyTorch file of weights to start from"
    )
    pretrain: bool = Field(True, description="false: the weights are taken as they are")
    classes_per_batch: Annotated[int, Field(ge=2)] = 48
    optimiser: Optimiser = Optimiser(steps=640, learning_rate=4e-3, warmup_steps=20)

    @property
    def deep_channels(self) -> int:
        """Channels of the features below the tokens' projection."""
        wide = {"resnet18": 256, "resnet50_dilated": 1024, "efficientnet_lite0": 112}
        return wide.get(self.kind, 4 * self.width)

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of `build_backbone`."""
        if self.kind == "small":
            return {"width": self.width, "dim": self.dim}
        return {"kind": self.kind, "dim": self.dim, "output_stride": self.output_stride}

    @model_validator(mode="after")
    def _kinds(self) -> BackboneConfig:
        if self.output_stride == 32 and self.kind != "resnet50_dilated":
            raise ValueError(f"output_stride: 32 is not for kind {self.kind} (resnet50_dilated)")
        if self.weights is not None and not self.kind.startswith("resnet"):
            raise ValueError(
                f"weights: {self.weights} is not for kind {self.kind} (resnet18, "
                "resnet50_dilated); leave weights out, or choose another kind"
            )
        return self
