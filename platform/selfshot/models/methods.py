"""Methods of video instance segmentation by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfshot.models.backbone import Backbone
from selfshot.models.baselines.few_shot_transformer import FewShotTransformer
from selfshot.models.baselines.siamese_mask_rcnn import SiameseMaskRcnn
from selfshot.models.vis import SelfShotVIS
from selfshot.models.vis_model import VisModel

METHODS: dict[str, Callable[..., VisModel]] = {
    "self_shot": SelfShotVIS,
    "few_shot_transformer": FewShotTransformer,
    "siamese_mask_rcnn": SiameseMaskRcnn,
}


def build_vis(backbone: Backbone, method: str = "self_shot", **arguments: Any) -> VisModel:
    """A method around a backbone, with its other weights drawn at random.

    Args:
        backbone: of any kind.
        method: a key of `METHODS`.
        arguments: of the method's class.
    """
    return METHODS[method](backbone, **arguments)
