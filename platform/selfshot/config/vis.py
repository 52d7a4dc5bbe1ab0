"""The `vis` section: the VIS transformer and its training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfshot.config.fields import Count, FilePath, NonNegative, Positive, Section
from selfshot.config.optimiser import Optimiser


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


class LossWeights(Section):
    """Weights of Eq. 5, 8, 9 and 10."""

    foreground: NonNegative = 1.0
    l1: NonNegative = 5.0
    giou: NonNegative = 2.0
    dice: NonNegative = 4.0
    focal: NonNegative = 40.0
    common: NonNegative = Field(2.0, description="auxiliary: does a token belong to the class")
    no_object: NonNegative = Field(0.1, description="weight of the no-object class")


class VisConfig(Section):
    """The VIS transformer of section 5, or another method in its place, and its training."""

    method: Literal["self_shot", "few_shot_transformer", "siamese_mask_rcnn"] = Field(
        "self_shot", description="Table 11: what segments the query"
    )
    heads: Count = 4
    encoder_layers: Annotated[int, Field(ge=0)] = 1
    fuser_layers: Annotated[int, Field(ge=1)] = 1
    decoder_layers: Count = 2
    ffn_dim: Count = 288
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    num_instances: Count = Field(5, description="n instance queries a frame")
    deformable: bool = Field(False, description="deformable convolution in the segmenter")
    variants: VariantsConfig = VariantsConfig()
    query_positions: bool = True
    support_positions: bool = True
    episodes_per_batch: Count = 4
    train_shots: Count = 1
    initial: FilePath | None = Field(
        None, description="vis.safetensors of an earlier training, which this one goes on from"
    )
    support_frames: Count | None = Field(
        None,
        description="frames of a support, in training and of any row of the table; none: "
        "benchmark.num_frames; 1: its middle frame (Table 12)",
    )
    backbone_learning_rate: Positive = 2e-4
    weights: LossWeights = LossWeights()
    validate_every: Annotated[int, Field(ge=0)] = Field(
        0,
        description="steps between two scores of val queries, whose best network is kept; 0: never",
    )
    optimiser: Optimiser = Optimiser(steps=600, learning_rate=8e-4)
