"""The VIS transformer and the methods beside it on the real engine, at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfshot.benchmarks.sprites.build import build_sprites
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.config.load import load_experiment
from selfshot.distributed.training import TrainingResult, train
from selfshot.distributed.worker import Fleet
from selfshot.evaluation.validation import Validation
from selfshot.models.weights import load_vis
from selfshot.studies.run import plan_experiment, run_experiment
from selfshot.training.backbone import BackboneTask
from selfshot.training.loop import Schedule, TaskSpec
from selfshot.training.vis import VisTask

pytestmark = [pytest.mark.usefixtures("ray_running"), pytest.mark.slow]

TOY = Path(__file__).parent / "toy.yaml"
VIS = "selfshot.training.vis:VisTask"
STEPS = 6
LOOP = (
    Schedule(
        steps=STEPS, warmup_steps=2, weight_decay=1e-4, clip_norm=1.0, checkpoint_every=2,
        log_every=1, seed=3,
    ),
    Fleet(threads_per_worker=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of `VisTask` on a benchmark of a few clips and a backbone of no training."""
    root = tmp_path_factory.mktemp("vis_engine")
    benchmark, backbone = root / "benchmark", root / "backbone"
    benchmark.mkdir()
    backbone.mkdir()
    sizes = SpritesBenchmark(
        height=32, width=32, num_frames=3, train_classes=3, val_classes=2,
        test_classes=1, train_queries=4, train_supports=3, eval_queries=3,
        eval_supports=2, corpus_clips=13, corpus_seen_classes=1,
    )  # fmt: skip
    build_sprites(benchmark, root / "scratch", map, sizes, seed=0)
    network = {"width": 8, "dim": 12, "classes_per_batch": 3}
    BackboneTask(benchmark=str(benchmark), seed=1, backbone=network).export(backbone)
    section = {
        "heads": 2, "ffn_dim": 24, "num_instances": 3, "weights": {"dice": 2.0},
        "optimiser": {"steps": 100, "learning_rate": 2e-3},
    }  # fmt: skip
    return {"benchmark": str(benchmark), "backbone": str(backbone), "seed": 1, "vis": section}


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return load_file(result.export / "vis.safetensors")


def test_a_batch_is_the_same_in_parts(parts: dict[str, Any], tmp_path: Path) -> None:
    """Four episodes at once, and one after another with accumulation, on DeepSpeed."""
    tasks = {count: TaskSpec("vis", VIS, parts | {"accumulate": count}) for count in (1, 4)}
    whole, divided = (
        train(task, *LOOP, work_dir=tmp_path / str(count)) for count, task in tasks.items()
    )
    for one, other in zip(whole.history, divided.history, strict=True):
        for name in ("loss", "foreground", "dice", "common", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=2e-2), (one["step"], name)
    ours, theirs = weights(divided), weights(whole)
    start = VisTask(**parts).module.model.state_dict()

    def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return sum(float((one[n].double() - other[n].double()).square().sum()) for n in one) ** 0.5

    # Rounding is all that differs, so that what they learned is far more than what parts them.
    assert distance(ours, theirs) < 0.1 * distance(theirs, start)


def test_the_best_network_is_exported(parts: dict[str, Any], tmp_path: Path) -> None:
    validation = {
        "path": "selfshot.evaluation.validation:Validation",
        "kwargs": {"benchmark": parts["benchmark"], "queries": 4, "shots": 1},
        "by": "val_AP50",
        "every": 2,
    }
    task = TaskSpec("vis", VIS, parts)
    plain = train(task, *LOOP, work_dir=tmp_path / "plain")
    judged = train(task, *LOOP, work_dir=tmp_path / "judged", validation=validation)
    # Being judged changes nothing of what is learned.
    assert [point["loss"] for point in judged.history] == [p["loss"] for p in plain.history]
    last = load_file(tmp_path / "judged" / "last" / "vis.safetensors")
    assert all(torch.equal(last[name], value) for name, value in weights(plain).items())
    scores = {p["step"]: p["val_AP50"] for p in judged.history if "val_AP50" in p}
    assert list(scores) == [2, 4, 6]
    best = max(scores, key=lambda step: (scores[step], -step))
    said = judged.chosen
    assert said["best_step"] == best and said["last_step"] == STEPS
    assert said["best_val_AP50"] == scores[best] and said["last_val_AP50"] == scores[STEPS]

    class Module:
        model = load_vis(judged.export)

    again = Validation(**validation["kwargs"])(Module)
    assert again["val_AP50"] == pytest.approx(scores[best])
    if best != STEPS:
        assert any(not torch.equal(last[n], value) for n, value in weights(judged).items())


@pytest.mark.parametrize("method", ["siamese_mask_rcnn", "few_shot_transformer"])
def test_another_method_as_a_stage(method: str, tmp_path: Path) -> None:
    experiment = load_experiment(
        TOY,
        [
            f"output={tmp_path}", f"vis.method={method}", "compute.num_workers=2",
            "evaluation.supports=[none,random,self_shot,oracle]",
        ],
    )  # fmt: skip
    report = run_experiment(experiment)
    assert report is not None
    rows = json.loads((report / "results.json").read_text())
    assert [(row["supports"], row["shots"]) for row in rows] == [
        ("none", 0),
        *[(kind, shots) for kind in ("random", "self_shot", "oracle") for shots in (1, 2)],
    ]
    folders = {plan.stage: plan.path for plan in plan_experiment(experiment)}
    points = [json.loads(line) for line in (folders["vis"] / "history.jsonl").open()]
    assert len(points) == 2 and all(point["loss"] > 0 for point in points)
    written = json.loads((folders["vis"] / "export" / "vis.json").read_text())
    assert written["vis"]["method"] == method
