"""Switches of the VIS transformer: what it does otherwise than the paper."""

from __future__ import annotations

from pydantic import Field, model_validator

from selfshot.config.fields import Section


class DeparturesConfig(Section):
    """Departures of the VIS transformer from the paper; with all of them off it is the paper's."""

    likeness: bool = Field(True, description="query tokens are told their likeness to supports")
    sinks: bool = Field(True, description="the fuser's attentions have a learned sink")
    identity_start: bool = Field(True, description="the fuser's Q and K start as the identity")
    common_class: bool = Field(True, description="a head for the common class, with its loss")
    guide: bool = Field(True, description="the decoder starts at reference tracks on its map")
    box_corrections: bool = Field(True, description="boxes correct those of the guide")
    framed_queries: bool = Field(True, description="n instance queries with a code of the frame")
    queries_start: bool = Field(True, description="the decoder starts from them, not from zeros")
    located_values: bool = Field(True, description="positions are in the decoder's values too")
    score_maps: bool = Field(True, description="attention maps are left before their softmax")
    fine_masks: bool = Field(True, description="masks at the finer features' resolution")
    box_places: bool = Field(True, description="pixels are told their place in the box")
    short_context: bool = Field(True, description="E_q and 𝓕 are reduced before mask features")
    short_volume: bool = Field(True, description="the third 3-D convolution gives the logits")

    @model_validator(mode="after")
    def _what_needs_what(self) -> DeparturesConfig:
        for one, other in (("guide", "common_class"), ("box_corrections", "guide")):
            if getattr(self, one) and not getattr(self, other):
                raise ValueError(f"{one}: true needs {other}: true; turn {one} off too")
        return self
