"""What stages are keyed by."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from refusals import refused
from selfshot.config.load import load_experiment
from selfshot.models.backbones import backbone_settings, build_backbone
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
    settings = backbone_settings(experiment.backbone)
    with torch.device("meta"):
        backbone = build_backbone(**settings)
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


def test_the_backbones_weights_are_keyed_by_what_they_hold(tmp_path: Path) -> None:
    def key(*said: str) -> str:
        settings = training_settings("backbone")(load_experiment(QUICKSTART, list(said)))
        return json.dumps(settings, sort_keys=True)

    def write(folder: Path, seed: int) -> str:
        torch.manual_seed(seed)
        network = timm.create_model("resnet10t", channels=(8, 8, 8, 8))
        save_for_hf(network, str(folder), safe_serialization=True)
        return f"backbone.kind=timm/local-dir:{folder}"

    first, same, other = (write(tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1)))
    assert key(first) == key(same) != key(other)
    assert str(tmp_path) not in key(first)
    assert key(first) == key(first, "backbone.allow_download=true")
    drawn = ["backbone.kind=timm/resnet18", "backbone.weights=random"]
    assert key(*drawn) == key(*drawn, "backbone.allow_download=true")
    assert key(*drawn) != key(*drawn, "backbone.dilation=2")
    with refused("backbone.kind"):
        key("backbone.kind=timm/resnet18")  # its weights are not on this machine
    file = tmp_path / "0" / "model.safetensors"
    assert key(drawn[0], f"backbone.weights={file}") == key(
        drawn[0], f"backbone.weights={file.rename(tmp_path / 'w.safetensors')}"
    )
