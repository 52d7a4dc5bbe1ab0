"""The optimiser of every training stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfshot.config.fields import Count, NonNegative, Positive, Section

Inside = Annotated[float, Field(gt=0.0, lt=1.0)]


class Optimiser(Section):
    """AdamW with warm-up and a falling rate, the same for every training stage."""

    steps: Count
    learning_rate: Positive
    weight_decay: NonNegative = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    schedule: Literal["cosine", "steps"] = Field(
        "cosine", description="after the warm-up: half a cosine to zero, or drops"
    )
    drops: tuple[Inside, ...] = Field(
        (0.7,), description="of `steps`: after which shares of all steps the rate drops"
    )
    drop_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="and to how much of what it was"
    )
    clip_norm: Positive = 1.0
    checkpoint_every: Count = Field(100, description="steps between two checkpoints")
    log_every: Count = Field(20, description="steps between two logged points")

    @property
    def drop_shares(self) -> list[float] | None:
        """Where the rate drops; None: it follows the cosine."""
        return list(self.drops) if self.schedule == "steps" else None

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> Optimiser:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} is not below steps: {self.steps}")
        return self
