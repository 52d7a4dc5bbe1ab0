"""The optimiser of every training stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from selfshot.config.fields import Count, NonNegative, Positive, Section


class Optimiser(Section):
    """AdamW with warm-up and a cosine to zero, the same for every training stage."""

    steps: Count
    learning_rate: Positive
    weight_decay: NonNegative = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    clip_norm: Positive = 1.0
    checkpoint_every: Count = Field(100, description="steps between two checkpoints")
    log_every: Count = Field(20, description="steps between two logged points")

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> Optimiser:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} is not below steps: {self.steps}")
        return self
