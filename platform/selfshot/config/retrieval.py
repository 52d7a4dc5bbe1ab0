"""The section `index`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfshot.config.fields import Count, Positive, Section, Share


class IndexConfig(Section):
    """FAISS: compare a query with every clip, or look where its neighbours are likely to be."""

    kind: Literal["flat", "ivf_flat", "ivf_pq", "hnsw", "auto"] = Field(
        "flat", description="`auto` chooses by the corpus's size, the memory and the wished recall"
    )
    memory_gb: Positive = Field(8.0, description="what the index may take, in 10⁹ bytes")
    wished_recall: Share = Field(0.95, description="share of the true nearest clips to be found")
    recall_at: Count = Field(5, description="how many nearest clips that share is of")
    lists: Count | None = Field(
        None, description="of ivf_flat, ivf_pq; none: 4 × the root of the clips"
    )
    code_bytes: Count | None = Field(
        None, description="of a vector in ivf_pq; none: half a byte a dimension, at most 64"
    )
    rotation: bool = Field(False, description="turn vectors before coding them (OPQ)")
    rerank: Annotated[int, Field(ge=0)] = Field(
        4, description="of ivf_pq: candidates a wanted clip that are compared anew, exactly"
    )
    links: Annotated[int, Field(ge=4)] = Field(32, description="neighbours of a vector in hnsw")
    construction: Count = Field(80, description="candidates for them while hnsw is built")
    effort: Count | None = Field(
        None,
        description="lists looked into, or candidates of hnsw; none: as few as reach wished_recall",
    )
    training_sample: Count = Field(262_144, description="vectors that lists and codes are fit to")
    held_queries: Annotated[int, Field(ge=2)] = Field(
        400, description="clips whose true neighbours measure the recall"
    )
    part_rows: Count = Field(262_144, description="vectors added at a time, and in one resume")
