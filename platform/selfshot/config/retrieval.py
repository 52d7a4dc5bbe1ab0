"""The section `index`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from selfshot.config.fields import Count, Positive, Section, Share


class IndexConfig(Section):
    """FAISS: compare a query with every clip, or look where its neighbours are likely to be."""

    kind: Literal["flat", "ivf_pq", "ivf_rabitq", "auto"] = Field(
        "flat", description="`auto`: flat while the corpus is small, then ivf_rabitq"
    )
    factory: str | None = Field(
        None, description="in place of kind: FAISS' own string, as OPQ64,IVF4096,PQ64"
    )
    memory_gb: Positive = Field(8.0, description="what the index may take, in 10⁹ bytes")
    target_recall: Share = Field(
        0.95, description="share of the five true nearest clips to be found"
    )
    nprobe: Count | None = Field(
        None, description="lists that a search looks into; none: as few as reach target_recall"
    )
    refine_factor: Count = Field(
        4, description="candidates of each wanted clip that are compared exactly"
    )
