"""Settings of Φ that depend on each other, and what of them is in the key of its stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusals import refused
from selfshot.config.load import parse_experiment
from selfshot.config.paths import check_inputs
from selfshot.config.schema import Experiment
from selfshot.errors import UserError
from selfshot.studies.settings import training_settings


def _parse(text: str) -> Experiment:
    return parse_experiment(f"name: a\n{text}", "a.yaml")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{backbone: video_vit, dim: 384}", "dim: 384 is not for backbone: video_vit"),
        ("{backbone: timm/resnet18, layers: 0, dim: 96}", "which projects nothing"),
        ("{backbone: hf/a/b, weights: a.pt}", "weights: backbone: hf/a/b takes none"),
        ("{backbone: efficientnet_lite0, weights: a.pt}", "takes none"),
        ("revision: main", "revision: main is not for backbone: pretrained"),
        ("{backbone: timm/resnet18, pooling: network}", "with layers: 1"),
        ("pooling: network", "pooling: network is not for backbone: pretrained"),
        ("{backbone: hf/a/b, layers: 0, pooling: network}", "set supports.vectors: global"),
        ("dim: 128", "dim: 128 is not for backbone: pretrained with layers: 1"),
        ("heads: 5", "encoder.heads: 5 does not divide 128 channels"),
        ("{backbone: scratch, weights: a.pt}", "weights: backbone: scratch takes none"),
        ("weights: a.pt", "weights: backbone: pretrained takes none"),
        ("train_backbone: true", "true is not allowed with backbone: pretrained"),
        ("{backbone: scratch, train_backbone: false}", "which then knows nothing"),
        ("queue_length: 100", "videos_per_batch × crops_per_video = 128"),
        (
            "{backbone: video_vit, vit_size: tiny, adapter: whitened}",
            "adapter: whitened is not for backbone: video_vit",
        ),
        ("{backbone: video_vit, auxiliary: efficientnet_lite0}", "leave auxiliary out"),
        ("{loss: sum}", "encoder.loss: 'sum' is not allowed"),
        ("{augmentation: crop}", "encoder.augmentation: 'crop' is not allowed"),
    ],
)
def test_wrong_settings(section: str, message: str) -> None:
    text = section if section.startswith("{") else f"{{{section}}}"
    with pytest.raises(UserError) as caught:
        _parse(f"encoder: {text}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ("{num_workers: 3}", "videos_per_batch: 32 is no multiple of compute.num_workers: 3"),
        ("{accumulate: 5}", "12 is no multiple of compute.num_workers: 1 × compute.accumulate: 5"),
        ("{num_workers: 2, min_workers: 4}", "min_workers: 4 is more than num_workers: 2"),
        ("{num_workers: 2, min_workers: 1, zero_stage: 2}", "min_workers: 1 needs zero_stage: 0"),
    ],
)
def test_workers_that_do_not_fit(compute: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse(f"compute: {compute}\nvis: {{episodes_per_batch: 12}}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("section", "trained", "nothing"),
    [
        ("{}", False, False),
        ("{layers: 0}", False, True),
        ("{layers: 0, adapter: linear}", False, False),
        ("{layers: 0, adapter: whitened}", False, True),
        ("{layers: 0, adapter: whitened_linear}", False, False),
        ("{backbone: scratch, layers: 0}", True, False),
        ("{backbone: timm/resnet18, layers: 0}", False, True),
        ("{backbone: timm/resnet18, layers: 0, train_backbone: true}", True, False),
        ("{backbone: efficientnet_lite0}", False, False),
        ("{backbone: video_vit}", True, False),
        ("{backbone: video_vit, train_backbone: false}", False, True),
    ],
)
def test_what_is_trained(section: str, trained: bool, nothing: bool) -> None:
    encoder = _parse(f"encoder: {section}").encoder
    assert (encoder.trains_backbone, encoder.trains_nothing) == (trained, nothing)


def test_weights_must_be_there(tmp_path: Path) -> None:
    wanted = tmp_path / "vit.safetensors"
    text = f"encoder: {{backbone: video_vit, weights: {wanted}}}\noutput: {tmp_path}"
    with refused("encoder.weights"):
        check_inputs(_parse(text))
    wanted.write_bytes(b"x")
    check_inputs(_parse(text))
    check_inputs(_parse(text.replace(str(wanted), "s3://bucket/vit.safetensors")))


def test_what_is_in_the_key_of_a_training(tmp_path: Path) -> None:
    settings = training_settings("encoder")
    plain = settings(_parse(""))
    for change in (
        "encoder: {probe_every: 5}",
        "compute: {activation_checkpointing: true, log_every: 1, checkpoint_every: 7}",
        "compute: {loader_workers: 2}",
    ):
        assert settings(_parse(change)) == plain
    for change in (
        "encoder: {augmentation: moco}",
        "encoder: {head: mlp}",
        "encoder: {adapter: linear}",
        "encoder: {positives: farthest}",
        "encoder: {positive_cosine: 0.9}",
        "compute: {accumulate: 4}",
        "compute: {num_workers: 2}",
    ):
        assert settings(_parse(change)) != plain
    weights = tmp_path / "w.pt"
    text = f"encoder: {{backbone: video_vit, weights: {weights}}}"
    digests = []
    for content in (b"a", b"b"):
        weights.write_bytes(content)
        digests.append(settings(_parse(text))["weights"])
    assert digests[0] != digests[1] and str(weights) not in digests
