"""What runs on a GPU against the same on the CPU, at toy size and without Ray.

Floats are compared within 1e-3 relative and 1e-4 absolute, as sums are taken in another order;
what `FrozenEncoder` computes in bfloat16 on a GPU within 0.03.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from second_device import SECOND, OtherDeviceError

from selfshot.benchmarks.manifest import load_benchmark, query_key
from selfshot.data.frames import FrameReader
from selfshot.data.ytvis import load_results
from selfshot.evaluation import episodes
from selfshot.evaluation.prediction import SupportCache, Windows, predict_video
from selfshot.evaluation.validation import Validation
from selfshot.models.attention_maps import attention_maps
from selfshot.models.encoders import open_encoder
from selfshot.models.trained_encoder import FrozenEncoder, load_encoder
from selfshot.models.vis import masks_at
from selfshot.models.weights import load_vis
from selfshot.retrieval.describe import QueryEncoder
from selfshot.retrieval.exact import ExactSearch
from selfshot.training.backbone import BackboneTask
from selfshot.training.batches import to_device
from selfshot.training.encoder import EncoderTask
from selfshot.training.loop import Schedule, parts_of, run_plain
from selfshot.training.vis import VisTask
from tiny_sam2 import save_tiny_sam2

FLOAT: dict[str, float] = {"rtol": 1e-3, "atol": 1e-4}
HALF: dict[str, float] = {"rtol": 3e-2, "atol": 3e-2}
LOOP: dict[str, Any] = {"warmup_steps": 1, "weight_decay": 1e-4, "clip_norm": 1.0, "log_every": 1}
MASK_RCNN: dict[str, Any] = {"method": "siamese_mask_rcnn"}


def _same_history(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for name in one.keys() - {"time", "clips_per_s"}:
            assert other[name] == pytest.approx(one[name], rel=2e-2, abs=1e-3), (one["step"], name)


def test_tensors_of_two_devices_do_not_meet(device: str) -> None:
    """What makes the other tests tests: on both kinds of device, mixing is an error."""
    layer = torch.nn.Linear(3, 2).to(device)
    assert layer.weight.device == SECOND and layer(torch.ones(1, 3, device=device)).is_cuda
    with pytest.raises(RuntimeError, match="device"):
        layer(torch.ones(1, 3))
    with pytest.raises((TypeError, OtherDeviceError), match=r"NumPy|numpy"):
        layer.weight.detach().numpy()
    with pytest.raises(RuntimeError):
        torch.ones(2)[torch.zeros(1, dtype=torch.long, device=device)]


@pytest.mark.parametrize("task", ["vis", "mask_rcnn", "backbone", "encoder", "whitened"])
def test_a_step_of_training(
    task: str,
    device: str,
    vis_settings: dict[str, Any],
    encoder_settings: dict[str, Any],
    backbone_settings: dict[str, Any],
    change: Any,
) -> None:
    """Forward, backward, AdamW and what follows a step, with the losses of the CPU."""

    def build() -> Any:
        if task == "backbone":
            return BackboneTask(**backbone_settings)
        if task in ("vis", "mask_rcnn"):
            more = MASK_RCNN if task == "mask_rcnn" else {}
            return VisTask(**change(vis_settings, "vis", **more))
        more = {"adapter": "whitened_linear", "layers": 0} if task == "whitened" else {}
        settings = change(encoder_settings, "encoder", steps=2, probe_every=2, **more)
        return EncoderTask(**settings)

    ours, theirs = build(), build()
    theirs.module.to(device)
    two = Schedule(steps=2, **LOOP)
    _same_history(run_plain(ours, two), run_plain(theirs, two))


def test_gradients_of_the_transformer(device: str, vis_settings: dict[str, Any]) -> None:
    found = []
    for place in ("cpu", device):
        task = VisTask(**vis_settings)
        task.module.train().to(place)
        (part,) = parts_of(task, task.batch(0, 0, 1))
        task.module(to_device(part, torch.device(place)))["loss"].backward()
        found.append({n: p.grad for n, p in task.module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 50
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name].cpu(), gradient, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("more", [{}, MASK_RCNN], ids=["vis", "mask_rcnn"])
def test_validation(
    device: str, vis_settings: dict[str, Any], more: dict[str, Any], change: Any
) -> None:
    task = VisTask(**change(vis_settings, "vis", **more))
    task.module.eval()
    validation = Validation(vis_settings["benchmark"], 1, 1)
    assert validation(task.module) == pytest.approx(validation(task.module.to(device)), abs=1.0)


@pytest.fixture(scope="module")
def vis_export(
    vis_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A network after a few steps, which finds something."""
    task = VisTask(**vis_settings)
    run_plain(task, Schedule(steps=3, **LOOP))
    folder = tmp_path_factory.mktemp("vis")
    task.export(folder)
    return folder


def test_an_episode_is_evaluated(
    device: str,
    vis_export: Path,
    encoder_settings: dict[str, Any],
    tiny_sprites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models: list[Any] = []
    (tmp_path / "encoder").mkdir()
    EncoderTask(**encoder_settings).export(tmp_path / "encoder")
    baselines = {
        "encoder": str(tmp_path / "encoder"), "prompted": str(save_tiny_sam2(tmp_path / "sam2")),
    }  # fmt: skip

    def load(path: Path) -> Any:
        models.append(load_vis(path))
        return models[-1]

    monkeypatch.setattr(episodes, "load_vis", load)
    benchmark = load_benchmark(tiny_sprites)
    clips = list(benchmark.pairs["test"].values())
    chosen = {
        query_key(video, name): {
            "oracle": list(clips[0][:1]), "query_itself": [video], "self_shot": list(clips[0][:1]),
        }
        for video, name in benchmark.queries["test"]
    }  # fmt: skip
    (tmp_path / "supports.json").write_text(json.dumps(chosen))
    shots = {"none": 0, "zero_shot_motion": 0, "query_itself": 1, "oracle": 1,
             "proposals_similarity": 1, "prompted": 1}  # fmt: skip
    rows = [{"supports": kind, "shots": count, "extra": 0} for kind, count in shots.items()]
    found = []
    for place in ("cpu", device):
        config = {
            "benchmark": str(tiny_sprites), "rows": rows,
            "models": dict.fromkeys(("vis", "no_fuser"), str(vis_export)),
            "supports": str(tmp_path / "supports.json"), "split": "test", "fold": 0, "folds": 1,
            "max_queries": None, "predictions": str(tmp_path / place), "device": place,
            "baselines": baselines | {"keys": dict.fromkeys(shots)},
        }  # fmt: skip
        found.append(episodes.evaluate_fold(config)["rows"])
    assert [model.device.type for model in models] == ["cpu", "cpu", "cuda", "cuda"]
    for one, other in zip(*found, strict=True):
        assert other["AP50"] == pytest.approx(one["AP50"], abs=1.0)
    annotations = benchmark.reader(tiny_sprites).annotations
    for path in sorted((tmp_path / "cpu").iterdir()):
        ours, theirs = (
            [one.score for one in load_results(tmp_path / place / path.name, annotations)]
            for place in ("cpu", device)
        )
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)


def test_a_video_is_predicted(
    device: str, vis_export: Path, tiny_sprites: Path, tmp_path: Path
) -> None:
    benchmark = load_benchmark(tiny_sprites)
    reader = benchmark.reader(tiny_sprites)
    video, _ = benchmark.queries["test"][0]
    frames: FrameReader = reader.frame_reader
    found = []
    for place in ("cpu", device):
        model = load_vis(vis_export).to(place)
        features = SupportCache(model).features(["one"], lambda _: reader.frames(video))
        count = predict_video(
            model, reader.annotations.videos[video], frames, features, tmp_path / f"{place}.json",
            Windows((32, 32), 2, 1, min_score=0.0),
        )  # fmt: skip
        with torch.inference_mode():
            pixels = torch.from_numpy(reader.frames(video))[None]
            heat = attention_maps(model, model.encode(pixels, is_support=False), features)
        found.append((count, [one.cpu() for one in heat]))
    assert found[0][0] == found[1][0] > 0
    torch.testing.assert_close(found[1][1], found[0][1], **FLOAT)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"auxiliary": "efficientnet_lite0"},
        {"backbone": "video_vit", "vit_size": "tiny", "vit_patch": 8},
        {"backbone": "timm/test_vit", "weights": "random", "layers": 0, "adapter": "linear"},
    ],
    ids=["windows", "auxiliary", "vit", "named"],
)
@pytest.mark.parametrize("how", ["to", "prepare"])
def test_clips_are_described(
    device: str,
    encoder_settings: dict[str, Any],
    tmp_path: Path,
    more: dict[str, Any],
    how: str,
    change: Any,
) -> None:
    task = EncoderTask(**change(encoder_settings, "encoder", **more))
    task.export(tmp_path)
    frames = task.batch(0, 0, 1)["frames"][:, 0].numpy()
    task.decoder.close()
    encoder: FrozenEncoder = load_encoder(tmp_path)
    ours = QueryEncoder(encoder, 2)(frames)
    getattr(encoder, how)(device)
    assert all(p.device == SECOND for p in encoder.encoder.parameters())
    theirs = QueryEncoder(encoder, 2)(frames)
    for one, other in zip(ours, theirs, strict=True):
        for way, described in one.items():
            np.testing.assert_allclose(other[way].vectors, described.vectors, **HALF)


def test_a_named_encoder_embeds(device: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 48, 3), np.uint8)
    encoder = open_encoder("efficientnet_lite0").encoder
    ours = encoder.embed(frames)
    encoder.prepare(device)
    np.testing.assert_allclose(encoder.embed(frames), ours, **HALF)


def test_masks_are_enlarged(device: str) -> None:
    logits = torch.randn(3, 4, 7, 5, generator=torch.Generator().manual_seed(0))
    ours = masks_at(logits, 61, 43)
    for instance, mask in zip(logits.to(device), ours, strict=True):
        differ = masks_at(instance, 61, 43).cpu() != mask
        # A pixel on the very edge may round to either side.
        assert differ.float().mean() < 1e-3


def test_all_vectors_are_compared(device: str) -> None:
    pytest.importorskip("faiss", reason="FAISS, with which the CPU compares, is not installed")
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(5000, 64)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = []
    for place in ("cpu", device):
        exact = ExactSearch(unit[:50], 9, place)
        for first in range(0, 5000, 1300):
            exact.add(first, unit[first : first + 1300])
        found.append(exact)
    np.testing.assert_allclose(found[1].scores, found[0].scores, rtol=1e-5, atol=1e-5)
    assert (found[1].rows == found[0].rows).mean() > 0.99
