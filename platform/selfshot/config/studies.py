"""The `sweep` section: what a study tries, and how its report looks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfshot.config.fields import Count, Section

PaperTable = Literal[
    "", "table01", "table02", "table03", "table03_ovis", "table04", "table04_classes", "table05",
    "table06", "table08", "table09", "table10", "table10_ovis", "table11", "table11_ovis",
    "table12", "table12_video", "table13", "figure02",
]  # fmt: skip
"""Tables and figures of the paper that a study's report may take the form of."""


class StoppingConfig(Section):
    """Stops weak trials early: ASHA over whole, ever longer trainings of each trial."""

    setting: str = Field(
        "vis.optimiser.steps", description="the number of steps that the budgets stand for"
    )
    budgets: tuple[Count, ...] = Field((), description="rising; none: every trial runs to its end")
    metric: str = Field(
        "supports:val.precision_at.5", description="what ranks trials: STAGE:name of a metric"
    )
    mode: Literal["max", "min"] = "max"
    reduction: Annotated[float, Field(gt=1.0)] = Field(
        3.0, description="one in so many goes on to the next budget"
    )

    @model_validator(mode="after")
    def _rising(self) -> StoppingConfig:
        if list(self.budgets) != sorted(set(self.budgets)) or len(self.budgets) == 1:
            raise ValueError(f"budgets: {list(self.budgets)} is not at least two rising numbers")
        return self


class SweepConfig(Section):
    """Many trials of one experiment; docs/guide/studies.md describes them."""

    over: dict[str, Any] = Field({}, description="setting → a list, or a range of numbers")
    cases: dict[str, dict[str, Any]] = Field({}, description="name → the settings it changes")
    method: Literal["grid", "random"] = Field(
        "grid", description="every combination, or `samples` that are drawn"
    )
    samples: Count = Field(10, description="points that `random` draws for each case")
    repeat: Count = Field(1, description="times that each point is tried, each with other seeds")
    repeat_setting: str = Field("seed", description="the whole number that repeats count up")
    parallel: Count = Field(2, description="trials at one time")
    until: Literal["benchmark", "supports", "evaluation"] = Field(
        "evaluation", description="the last stage of a trial"
    )
    table: PaperTable = Field(
        "", description="the paper's table or figure whose form the report takes"
    )
    stopping: StoppingConfig = StoppingConfig()

    @property
    def is_study(self) -> bool:
        """Whether there is more than the experiment itself."""
        return bool(self.over or self.cases or self.repeat > 1 or self.table)
