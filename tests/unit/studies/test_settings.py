"""What stages are keyed by."""

from __future__ import annotations

from pathlib import Path

import torch

from refusals import refused
from selfshot.config.load import load_experiment
from selfshot.models.backbones import build_backbone
from selfshot.models.methods import build_vis
from selfshot.models.vis import SelfShotVIS
from selfshot.studies.settings import (
    training_settings,
)

PAPER = Path(__file__).parents[3] / "experiments" / "paper_model.yaml"


def test_the_papers_model_is_what_the_paper_says() -> None:
    """Section 5 and A.3, with every variant off; on tensors without contents."""
    experiment = load_experiment(PAPER)
    assert (experiment.benchmark.width, experiment.benchmark.height) == (320, 280)
    assert not any(experiment.vis.variants.model_dump().values())
    with torch.device("meta"):
        backbone = build_backbone(**experiment.backbone.network)
        model = SelfShotVIS(backbone, experiment.vis, clip_frames=experiment.benchmark.num_frames)
    assert (backbone.dim, backbone.token_stride) == (288, 16)
    depths = [len(stage.layers) for stage in (model.encoder, model.fuser, model.decoder) if stage]
    assert depths == [6, 3, 6]
    assert model.instance_queries.shape == (10, 32, 288), "n·T = 320 instance sequences"
    assert model.encoder.layers[0].attention.heads == 8
    assert model.encoder.layers[0].feed_forward.layers[0].out_features == 2048
    assert model.segmenter.mask_convolution.offsets is not None
    convolutions = [m for m in model.segmenter.volume if isinstance(m, torch.nn.Conv3d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3, 3)] * 3 + [(1, 1, 1)]
    assert 36e6 < sum(p.numel() for p in model.parameters()) < 37e6


QUICKSTART = PAPER.with_name("quickstart.yaml")
NO_FUSER = PAPER.with_name("no_fuser.yaml")


def test_methods_have_their_own_keys_and_arguments() -> None:
    of_vis = training_settings("vis")
    ours = load_experiment(QUICKSTART)
    table = ["evaluation.supports=[oracle]"]
    siamese = load_experiment(QUICKSTART, ["vis.method=siamese_mask_rcnn", *table])
    fst = load_experiment(QUICKSTART, ["vis.method=few_shot_transformer", *table])
    assert len({str(of_vis(one)) for one in (ours, siamese, fst)}) == 3
    backbone = build_backbone(width=8, dim=12)
    for experiment in (siamese, fst):
        assert build_vis(backbone, experiment.vis).num_instances == 5


def test_a_method_without_a_row() -> None:
    with refused("vis.method"):
        load_experiment(NO_FUSER, ["vis.method=few_shot_transformer"])
