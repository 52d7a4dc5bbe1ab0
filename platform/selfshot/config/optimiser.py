"""The optimiser of every training stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from selfshot.config.fields import Count, NonNegative, Positive, Section

Inside = Annotated[float, Field(gt=0.0, lt=1.0)]


class Optimiser(Section):
    """AdamW with warm-up and a falling rate, the same for every training stage."""

    steps: Count
    learning_rate: Positive
    weight_decay: NonNegative = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    drops: tuple[Inside, ...] = Field(
        (),
        description="shares of the steps after which the rate is a tenth of what it was; none: "
        "half a cosine to zero",
    )
    clip_norm: Positive = 1.0

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> Optimiser:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} is not below steps: {self.steps}")
        return self
