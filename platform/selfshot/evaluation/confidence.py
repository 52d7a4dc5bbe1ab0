"""How far a row's supports can be trusted, by how near they are to their query."""

from __future__ import annotations

from typing import Any

import numpy as np

from selfshot.benchmarks.manifest import query_key
from selfshot.errors import UserError

COMPARED = ("self_shot", "seen_penalty", "random")
"""Supports whose clips were compared with their query when they were chosen."""


def support_confidence(
    chosen: dict[str, Any], video: int, name: str, row: dict[str, Any]
) -> float:
    """How near a row's supports are to their query: the mean score by which they were found.

    In [0, 1]. Where nothing was compared, as with labelled supports, it is 1: tracks are ranked
    within a row, so only the differences between its queries count.

    Raises:
        UserError: the supports were chosen before scores were kept.
    """
    if row["supports"] not in COMPARED:
        return 1.0
    scores = chosen[query_key(video, name)].get(f"{row['supports']}_scores")
    if not scores:
        raise UserError(
            f"evaluation.confidence: the supports were chosen without scores of {row['supports']} "
            "clips, by an earlier version; remove that folder of store/supports and run again",
            setting="evaluation.confidence",
        )
    return float(np.clip(np.mean(scores[: row["shots"] + row["extra"]]), 0, 1))
