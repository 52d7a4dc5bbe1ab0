"""Switches of the VIS transformer, and the settings of the methods beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfshot.config.benchmarks import PAIRED_SUPPORTS
from selfshot.config.fields import Count, Positive, Section, Share


class VariantsConfig(Section):
    """What the transformer does otherwise than the paper; with all off it is the paper's own.

    docs/paper.md says of each part why it is there.
    """

    fuser: bool = Field(
        True,
        description="query tokens receive their similarity to the supports' prototypes; the "
        "fuser's attentions have a learned sink, and their Q and K start as the identity",
    )
    attention_prior: bool = Field(
        True,
        description="a head for the common class, with its loss; the decoder's attention starts "
        "at reference tracks on its map, and boxes correct those that this implies",
    )
    queries: bool = Field(
        True,
        description="n instance queries with a code of the frame in place of n·T; the decoder "
        "starts from them, and positions are in its values too",
    )
    segmenter: bool = Field(
        True,
        description="masks at the finer features' resolution, of attention scores before their "
        "softmax and of places in the box, by smaller convolutions",
    )


class MaskRcnnConfig(Section):
    """Siamese Mask R-CNN (`vis.method: siamese_mask_rcnn`)."""

    channels: Count = Field(64, description="of the pyramid and the mask head")
    hidden: Count = Field(128, description="channels of a detection's feature")
    mask_layers: Annotated[int, Field(ge=0)] = Field(2, description="convolutions of a mask")
    box_size: Count = Field(5, description="places a side at which a region is read for its box")
    mask_size: Count = Field(8, description="and for its mask, which is twice as fine")
    anchor_scales: tuple[Positive, ...] = Field(
        (2.0, 4.0, 7.0), min_length=1, description="sides of anchors, in strides of their level"
    )
    proposals: Count = Field(50, description="regions of a frame that go on to the heads")
    samples: Count = Field(32, description="of them that are learned from")
    min_score: Share = Field(0.05, description="of a detection in a frame")
    max_overlap: Share = Field(0.5, description="IoU above which the weaker detection is dropped")
    min_similarity: Annotated[float, Field(ge=-0.5, le=1.0)] = Field(
        0.5, description="of detections in two frames, to be one track"
    )


class ValidationConfig(Section):
    """Scores of queries of the validation classes, while the transformer is trained."""

    every: Annotated[int, Field(ge=0)] = Field(0, description="steps between two; 0: never")
    queries: Count = Field(24, description="at most, evenly over the classes")
    shots: Count = Field(1, le=PAIRED_SUPPORTS, description="labelled supports of each")
    export: Literal["best", "last"] = Field(
        "best", description="which network later stages take: the best by AP50, or the last"
    )
