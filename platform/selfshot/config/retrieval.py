"""The sections of retrieval: `index` and `supports`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfshot.config.fields import Count, NonNegative, Positive, Section, Share


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


class SupportsConfig(Section):
    """Which clips help a query (Eq. 3)."""

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
        0, description="clips found first, with which the query asks again; 0: it asks once"
    )
    suspect_cosine: Share = Field(
        0.9, description="a clip that is kept and nearer than this may be of the same scene"
    )
    corpus_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the corpus that is searched; a smaller share is part of a larger"
    )
    corpus_seed: Annotated[int, Field(ge=0)] = Field(0, description="another one, another subset")
    semi_shot: tuple[tuple[Count, Count], ...] = Field(
        ((1, 4),), description="Table 5: labelled supports, and clips found with their help"
    )
    candidates: Count = Field(
        50, description="clips that each video of semi_shot, or search of expand_by, proposes"
    )
    seen_penalty: NonNegative = Field(
        0.75,
        description="of the row seen_penalty: what nearness to labelled clips of seen classes "
        "takes off a window's cosine",
    )
    seen_clips: Count = Field(12, description="labelled clips of each seen class, for it")
    crop_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="Table 13: share of the query's length, or of each side, in a crop"
    )
    judged_ranks: Count = Field(
        50, description="ranks that recall and mAP look at"
    )
    gallery_queries: Annotated[int, Field(ge=0)] = Field(
        12, description="queries drawn with what was found for them"
    )
