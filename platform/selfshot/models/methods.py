"""Methods of video instance segmentation by name."""

from __future__ import annotations

from selfshot.config.vis import VisConfig
from selfshot.models.backbone import Backbone
from selfshot.models.baselines.few_shot_transformer import FewShotTransformer
from selfshot.models.baselines.siamese_mask_rcnn import SiameseMaskRcnn
from selfshot.models.vis import SelfShotVIS
from selfshot.models.vis_model import VisModel


def build_vis(
    backbone: Backbone,
    section: VisConfig,
    *,
    fuser: bool = True,
    clip_frames: int | None = None,
    checkpointing: bool = False,
) -> VisModel:
    """The method that `section` names around a backbone, its other weights drawn at random.

    For the other arguments see `SelfShotVIS`.
    """
    if section.method == "siamese_mask_rcnn":
        return SiameseMaskRcnn(backbone, section.num_instances, checkpointing=checkpointing)
    method = FewShotTransformer if section.method == "few_shot_transformer" else SelfShotVIS
    return method(
        backbone, section, fuser=fuser, clip_frames=clip_frames, checkpointing=checkpointing
    )
