"""The section `supports`, and the kinds of supports that are rows of the table.

A new kind is a line in `SUPPORT_KINDS` and, if it is chosen, a function in `retrieval/select.py`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from selfshot.config.fields import Count, NonNegative, Section, Share


@dataclasses.dataclass(frozen=True)
class SupportKind:
    """A row of the table: the supports of a query.

    Attributes:
        label: in the report.
        meaning: one line below it.
        shots: numbers of supports: `none`, so that the model gets the query alone; `one`;
            `all`, those of `supports.shots` and `supports.extra`; `pairs`, those of
            `supports.semi_shot`.
        on_demand: chosen only where the table has the row.
        reads: the kind whose supports it reads; none: its own.
    """

    label: str
    meaning: str
    shots: Literal["none", "one", "all", "pairs"] = "all"
    on_demand: bool = False
    reads: str | None = None


SUPPORT_KINDS = {
    "none": SupportKind("No supports", "the model is given the query alone", "none"),
    "no_fuser": SupportKind(
        "No fuser", "the model without the part that reads supports", "none"
    ),
    "zero_shot_motion": SupportKind(
        "Whatever moves", "no model and no support: whatever differs from the background", "none"
    ),
    "query_itself": SupportKind(
        "The query itself", "the query video stands in for its own support", "one"
    ),
    "temporal_crops": SupportKind(
        "Parts of the query in time",
        "random stretches of the query video stand in for supports",
        on_demand=True,
    ),
    "spatial_crops": SupportKind(
        "Parts of the query's frames",
        "random cut-outs of the query's frames stand in for supports",
        on_demand=True,
    ),
    "random": SupportKind("Random", "clips drawn blindly from the unlabelled corpus"),
    "self_shot": SupportKind("Self-shot", "clips retrieved from the unlabelled corpus"),
    "seen_penalty": SupportKind(
        "Self-shot, seen-class penalty",
        "the same, by windows that labelled clips of seen classes do not explain",
        on_demand=True,
    ),
    "semi_shot": SupportKind(
        "Semi-shot",
        "labelled clips, and unlabelled ones (+n) retrieved with their help",
        "pairs",
        on_demand=True,
    ),
    "oracle": SupportKind(
        "Oracle", "clips picked by their class label: what few-shot learning assumes"
    ),
    "proposals_similarity": SupportKind(
        "Proposals by similarity",
        "class-agnostic tracks, ranked by their similarity to the self-shot supports",
        reads="self_shot",
    ),
    "prompted": SupportKind(
        "Prompted SAM 2",
        "SAM 2 is shown the oracle supports with the masks of their objects",
        reads="oracle",
    ),
}

BASELINES = tuple(name for name, kind in SUPPORT_KINDS.items() if kind.reads)
"""Rows that other methods fill, not the experiment's network with its supports."""

if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(SUPPORT_KINDS)]


class SupportsConfig(Section):
    """Which clips support a query (Eq. 3)."""

    shots: tuple[Count, ...] = Field((1, 5), min_length=1)
    extra: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), description="Table 1's 5+(n): supports added at inference"
    )
    vectors: Literal["global", "windows"] = Field(
        "windows", description="one vector a query (the paper), or its foreground windows"
    )
    window_size: Count = Field(3, description="side of a window in tokens")
    duplicate_cosine: Share = Field(0.995, description="above it a clip is a near duplicate")
    expand_by: Annotated[int, Field(ge=0)] = Field(
        0, description="clips found first, with which the query is searched again; 0: once"
    )
    corpus_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the corpus that is searched; a smaller share is part of a larger"
    )
    corpus_seed: Annotated[int, Field(ge=0)] = Field(0, description="another one, another subset")
    semi_shot: tuple[tuple[Count, Count], ...] = Field(
        ((1, 4),), description="Table 5: labelled supports, and clips found with their help"
    )
    seen_penalty: NonNegative = Field(
        0.75,
        description="of the row seen_penalty: what nearness to labelled clips of seen classes "
        "takes off a window's cosine",
    )

    @property
    def most(self) -> int:
        """Supports of a query at most, but for the row semi_shot."""
        return max(self.shots) + max(self.extra)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Rows of the table of a kind: its number of supports, and of extra ones."""
        counts = {
            "none": [(0, 0)],
            "one": [(1, 0)],
            "pairs": self.semi_shot,
            "all": [
                (shots, n)
                for shots in self.shots
                for n in (self.extra if shots == max(self.shots) else (0,))
            ],
        }[SUPPORT_KINDS[kind].shots]
        return [{"supports": kind, "shots": shots, "extra": n} for shots, n in counts]

    def chosen(self, table: tuple[str, ...]) -> dict[str, tuple[str, int, int]]:
        """What is chosen for each query: its name in supports.json → kind, shots and extra ones.

        Args:
            table: kinds that have a row.
        """
        wanted = {}
        for kind, facts in SUPPORT_KINDS.items():
            if facts.shots == "none" or facts.reads or (facts.on_demand and kind not in table):
                continue
            for row in self.rows(kind):
                shots, extra = row["shots"], row["extra"]
                if facts.shots == "all":
                    shots, extra = self.most, 0
                wanted[chosen_as(row)] = (kind, shots, extra)
        return wanted


def chosen_as(row: dict[str, Any]) -> str:
    """The name in supports.json of what a row of the table reads."""
    facts = SUPPORT_KINDS[row["supports"]]
    name: str = facts.reads or row["supports"]
    return f"{name}_{row['shots']}" if facts.shots == "pairs" else name


def reads_supports(row: dict[str, Any]) -> bool:
    """Whether the model is given any supports in a row of the table."""
    return SUPPORT_KINDS[row["supports"]].shots != "none"
