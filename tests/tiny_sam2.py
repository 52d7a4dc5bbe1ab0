"""A SAM 2 video model so small that it runs in milliseconds, with random weights."""

from __future__ import annotations

from pathlib import Path

SIDE = 64
DIM = 128
"""The library needs more channels than the 64 of a memory."""


def save_tiny_sam2(folder: Path) -> Path:
    """Write the model and its processor as `save_pretrained` does, and return the folder.

    Its weights are large, so that masks differ and are as sure as the library wants proposals to
    be, and objects are always there.
    """
    import torch
    from transformers import (
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoVideoProcessor,
    )

    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1,
        "image_size": [SIDE, SIDE], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1, 2, 3, 4],
        "window_size_per_stage": [4, 4, 4, 2], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [3, 3],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "fpn_hidden_size": DIM,
        "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": [[SIDE // stride] * 2 for stride in (4, 8, 16)],
    }  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": DIM, "image_size": SIDE},
        mask_decoder_config={
            "hidden_size": DIM, "mlp_dim": 16, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=SIDE,
        memory_attention_hidden_size=DIM,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_encoder_hidden_size=DIM,
        mask_downsampler_embed_dim=DIM,
        memory_fuser_embed_dim=DIM,
        memory_fuser_intermediate_dim=16,
        memory_fuser_num_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Sam2VideoModel(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.mul_(30)
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3.0)
        model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(9.0)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Sam2VideoProcessor(
        image_processor=Sam2ImageProcessor(
            size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4}
        ),
        video_processor=Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)
    return folder
