"""What sections are made of: their base, and the numbers that several of them allow."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Later:
    """Marks a setting that came when results were already stored.

    While it has its default it is in no stage's key, as the results are those of before it came:
    `x: Annotated[bool, LATER] = False`. Such a default never changes.
    """


LATER = Later()


class Section(BaseModel):
    """A frozen part of an experiment that accepts no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
