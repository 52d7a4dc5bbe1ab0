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
        ("trunk: video_vit", "dim: 128 differs from the 384 channels of video_vit of vit_size"),
        ("{trunk: inception, layers: 0}", "the 2048 channels of inception with layers: 0"),
        ("{trunk: scratch, weights: a.pt}", "weights: trunk: scratch takes none"),
        ("weights: a.pt", "weights: trunk: backbone takes none"),
        ("trunk_trained: true", "trunk_trained: true is not allowed with trunk: backbone"),
        ("{trunk: scratch, trunk_trained: false}", "which then knows nothing"),
        ("queue_length: 100", "videos_per_batch × crops_per_video = 128"),
        ("{accumulate: 3}", "32 is no multiple of compute.num_workers: 1 × encoder.accumulate: 3"),
        (
            "{trunk: video_vit, vit_size: tiny, dim: 192, heads: 3, adapter: whitened}",
            "adapter: whitened is not for trunk: video_vit",
        ),
        ("{whitening: {shrinkage: 0}}", "encoder.whitening.shrinkage: 0"),
        ("{loss: sum}", "encoder.loss: 'sum' is not allowed"),
        ("{augmentation: {crop_scale: 0}}", "encoder.augmentation.crop_scale: 0"),
        ("{head: {norm: group}}", "encoder.head.norm: 'group' is not allowed"),
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
        ("{num_workers: 2, min_workers: 4}", "min_workers: 4 is more than num_workers: 2"),
        ("{num_workers: 2, min_workers: 1, zero_stage: 2}", "min_workers: 1 needs zero_stage: 0"),
    ],
)
def test_workers_that_do_not_fit(compute: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse(f"compute: {compute}\nvis: {{episodes_per_batch: 12}}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("section", "trunk_trained", "nothing"),
    [
        ("{}", False, False),
        ("{layers: 0}", False, True),
        ("{layers: 0, adapter: linear}", False, False),
        ("{layers: 0, adapter: whitened}", False, True),
        ("{layers: 0, adapter: whitened_linear}", False, False),
        ("{trunk: scratch, layers: 0}", True, False),
        ("{trunk: inception, layers: 0, dim: 2048}", False, True),
        ("{trunk: inception, layers: 0, dim: 2048, trunk_trained: true}", True, False),
        ("{trunk: efficientnet_lite0}", False, False),
        ("{trunk: video_vit, dim: 384}", True, False),
        ("{trunk: video_vit, dim: 384, trunk_trained: false}", False, True),
    ],
)
def test_what_is_trained(section: str, trunk_trained: bool, nothing: bool) -> None:
    encoder = _parse(f"encoder: {section}").encoder
    assert (encoder.trains_trunk, encoder.trains_nothing) == (trunk_trained, nothing)


def test_a_layer_of_other_channels_is_trained() -> None:
    """Without layers the trunk's channels are Φ's: no projection is drawn at random."""
    with refused("encoder.dim"):
        _parse("encoder: {trunk: efficientnet_lite0, layers: 0, dim: 96}")


def test_weights_must_be_there(tmp_path: Path) -> None:
    wanted = tmp_path / "vit.safetensors"
    text = f"encoder: {{trunk: video_vit, dim: 384, weights: {wanted}}}\noutput: {tmp_path}"
    with refused("encoder.weights"):
        check_inputs(_parse(text))
    wanted.write_bytes(b"x")
    check_inputs(_parse(text))
    check_inputs(_parse(text.replace(str(wanted), "s3://bucket/vit.safetensors")))


def test_what_changes_no_weight_is_in_no_key(tmp_path: Path) -> None:
    settings = training_settings("encoder")
    plain = settings(_parse(""))
    watched = "{probe: {every: 5}, activation_checkpointing: true, optimiser: {log_every: 1}}"
    assert settings(_parse(f"encoder: {watched}")) == plain
    assert settings(_parse("compute: {loader_workers: 2}")) == plain
    for change in (
        "encoder: {augmentation: {blur: 0.5}}",
        "encoder: {head: {kind: mlp}}",
        "encoder: {accumulate: 4}",
        "encoder: {adapter: linear}",
        "encoder: {whitening: {clips: 99}}",
        "encoder: {positives: farthest}",
        "encoder: {positive_cosine: 0.9}",
        "compute: {compile: true}",
    ):
        assert settings(_parse(change)) != plain
    weights = tmp_path / "w.pt"
    text = f"encoder: {{trunk: video_vit, dim: 384, weights: {weights}}}"
    digests = []
    for content in (b"a", b"b"):
        weights.write_bytes(content)
        digests.append(settings(_parse(text))["weights"])
    assert digests[0] != digests[1] and str(weights) not in digests
    vis = training_settings("vis")(_parse(""))
    assert not {"checkpoint_every", "log_every"} & vis["optimiser"].keys() and "weights" in vis
