"""How far a row's supports can be trusted, by how near they are to their query."""

from __future__ import annotations

from typing import Any

import numpy as np

from selfshot.benchmarks.manifest import query_key
from selfshot.config.supports import chosen_as


def support_confidence(
    chosen: dict[str, Any], video: int, name: str, row: dict[str, Any]
) -> float:
    """How near a row's supports are to their query: the mean score by which they were found.

    In [0, 1]. Where nothing was compared, as with labelled supports, it is 1: tracks are ranked
    within a row, so only the differences between its queries count.
    """
    scores = chosen.get(query_key(video, name), {}).get(f"{chosen_as(row)}_scores")
    if not scores:
        return 1.0
    return float(np.clip(np.mean(scores[: row["shots"] + row["extra"]]), 0, 1))
