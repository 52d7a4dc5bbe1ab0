"""What the model does otherwise than the paper, each with a switch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Departures:
    """Ways in which the model may leave the paper's section 5 and A.3; all are on by default.

    With all of them off it is the paper's own model. docs/paper.md says why each is there.

    Attributes:
        likeness: query tokens are told their cosines with the supports' prototypes.
        sinks: the fuser's attentions have a learned source that a token without a counterpart
            can attend to.
        identity_start: the fuser's Q and K start as a multiple of the identity.
        common_class: a head tells which tokens of 𝓕 belong to the common class; it has a loss
            of its own, and decoder and segmenter read it.
        guide: the decoder's cross-attention starts at reference tracks on that map.
        box_corrections: the box head corrects the boxes that the guide alone would give.
        framed_queries: n learned instance queries, with a code of the frame, instead of n·T.
        queries_start: the decoder starts from the instance queries instead of from zeros.
        located_values: positions are in the values of the decoder's attention, and in the
            pixels that the segmenter's attention maps are taken from, not in keys alone.
        score_maps: the segmenter's attention maps are left before their softmax.
        fine_masks: the segmenter works at the resolution of the backbone's finer features, which
            are merged in, instead of at that of 𝓕.
        box_places: each pixel is told its place in the predicted box.
        short_context: E_q and 𝓕 are reduced by a 1×1 convolution before the mask features.
        short_volume: the third 3-D convolution gives the logits, instead of a fourth one after
            a norm and ReLU.
    """

    likeness: bool = True
    sinks: bool = True
    identity_start: bool = True
    common_class: bool = True
    guide: bool = True
    box_corrections: bool = True
    framed_queries: bool = True
    queries_start: bool = True
    located_values: bool = True
    score_maps: bool = True
    fine_masks: bool = True
    box_places: bool = True
    short_context: bool = True
    short_volume: bool = True
