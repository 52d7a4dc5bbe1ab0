"""The `sweep` section: what a study tries, and how its report looks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from selfshot.config.fields import Count, Section

PaperTable = Literal[
    "", "table01", "table02", "table03", "table03_ovis", "table04", "table04_classes", "table05",
    "table06", "table08", "table09", "table10", "table10_ovis", "table11", "table11_ovis",
    "table12", "table12_video", "table13", "figure02",
]  # fmt: skip
"""Tables and figures of the paper that a study's report may take the form of."""


class AshaConfig(Section):
    """Weak trials end early: Ray Tune's ASHA over whole, ever longer trainings of each trial."""

    setting: str = Field(
        "encoder.optimiser.steps", description="steps of a training; its value is ASHA's max_t"
    )
    grace_period: Count = Field(description="the least value of it that a trial is judged by")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="one in so many goes on, to so many times the value"
    )
    metric: str = Field(
        "supports:val.precision_at.5", description="what ranks trials: STAGE:name of a metric"
    )
    mode: Literal["max", "min"] = "max"


class SweepConfig(Section):
    """Many trials of one experiment; docs/guide/studies.md describes them."""

    over: dict[str, Any] = Field({}, description="setting → a list, or a distribution")
    cases: dict[str, dict[str, Any]] = Field({}, description="name → the settings it changes")
    samples: Count = Field(10, description="times that distributions are drawn from")
    repeat: Count = Field(1, description="times that each point is tried, each with other seeds")
    repeat_setting: str = Field("seed", description="the whole number that repeats count up")
    parallel: Count = Field(2, description="trials at one time")
    until: Literal["benchmark", "supports", "evaluation"] = Field(
        "evaluation", description="the last stage of a trial"
    )
    table: PaperTable = Field(
        "", description="the paper's table or figure whose form the report takes"
    )
    asha: AshaConfig | None = Field(None, description="none: every trial runs to its end")

    @property
    def is_study(self) -> bool:
        """Whether there is more than the experiment itself."""
        return bool(self.over or self.cases or self.repeat > 1 or self.table)
