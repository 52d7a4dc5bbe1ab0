"""The whole method in library calls: no store, no Ray, no MLflow.

    python examples/pipeline.py OUT [--quick]

It renders a small benchmark, trains the backbone, the encoder Φ and the transformer, embeds the
corpus, retrieves supports for queries of classes that no training saw, segments and tracks the
queries with their help, and scores that beside random and labelled supports. About ten minutes on
two cores; with --quick a minute, of which the scores mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from selfshot.benchmarks.manifest import load_benchmark, query_key
from selfshot.benchmarks.sprites.build import build_sprites
from selfshot.config.backbone import BackboneConfig
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.config.schema import Experiment
from selfshot.evaluation.episodes import episode_truth, predict_rows
from selfshot.evaluation.video_ap import episode_scores
from selfshot.models.backbones import backbone_settings
from selfshot.models.trained_encoder import load_encoder
from selfshot.models.weights import load_vis
from selfshot.retrieval.describe import QueryEncoder
from selfshot.retrieval.index import build_index
from selfshot.retrieval.search import CorpusSearch
from selfshot.training.backbone import BackboneTask
from selfshot.training.encoder import EncoderTask
from selfshot.training.loop import Schedule, TrainingTask, run_plain
from selfshot.training.vis import VisTask

SHOTS = 1
KINDS = ("random", "self_shot", "oracle")
QUICK = {"corpus_clips": 48, "train_queries": 3, "train_supports": 3, "eval_queries": 2,
         "eval_supports": 10, "train_classes": 6, "val_classes": 2, "test_classes": 2,
         "corpus_seen_classes": 2}  # fmt: skip
SMALL = {"corpus_clips": 600, "eval_queries": 6, "eval_supports": 10}


def trained(task: TrainingTask, steps: int, folder: Path) -> Path:
    """Train a task in this process and export its weights; returns their folder."""
    plan = Schedule(steps, warmup_steps=min(20, steps // 2), weight_decay=1e-2, clip_norm=1.0)
    run_plain(task, plan, on_log=lambda point: print(f"  {folder.name}: {point}", flush=True))
    folder.mkdir(parents=True, exist_ok=True)
    task.export(folder)
    return folder


def main(out: Path, *, quick: bool) -> dict[str, float]:
    """Run it in an empty folder; returns AP50, in percent, of each kind of supports."""
    experiment = Experiment(
        name="pipeline",
        benchmark=SpritesBenchmark(**(QUICK if quick else SMALL)),
        backbone=BackboneConfig(classes_per_batch=6 if quick else 48),
    )
    steps = {"backbone": 2, "encoder": 2, "vis": 2} if quick else {
        "backbone": 320, "encoder": 60, "vis": 300}  # fmt: skip

    # Videos of seen and unseen classes, and a corpus without labels.
    folder = out / "benchmark"
    folder.mkdir(parents=True)
    build_sprites(folder, out / "scratch", map, experiment.benchmark, seed=experiment.seed)
    benchmark = load_benchmark(folder)
    reader = benchmark.reader(folder)
    supports = benchmark.support_reader(folder, reader)

    # The backbone learns from the masks of seen classes.
    task = BackboneTask(
        benchmark=str(folder), seed=0, backbone=experiment.backbone.model_dump(mode="json")
    )
    backbone = trained(task, steps["backbone"], out / "backbone")

    # Φ learns from the corpus without a label, on top of the frozen backbone (Eq. 6).
    phi = EncoderTask(
        benchmark=str(folder), backbone=str(backbone), seed=0,
        backbone_network=backbone_settings(experiment.backbone),
        encoder=experiment.encoder.model_dump(mode="json"),
    )  # fmt: skip
    encoder = load_encoder(trained(phi, steps["encoder"], out / "encoder"))

    # The corpus becomes an index of one vector a clip.
    clips = list(supports.clips)
    vectors = [encoder.embed(supports.frames(clip)[None]) for clip in clips]
    search = CorpusSearch(build_index(np.concatenate(vectors), clips), duplicate_cosine=0.995)

    # A query's supports are its nearest clips, by its best window (Eq. 3).
    queries = list(benchmark.queries["test"])
    describe = QueryEncoder(encoder, experiment.supports.window_size)
    described = describe.videos([video for video, _ in queries], reader.frames)
    rng = np.random.default_rng(0)
    chosen = {}
    for video, name in queries:
        key = query_key(video, name)
        chosen[key] = {
            "self_shot": list(search(described[video]["windows"], SHOTS).clip_ids),
            "random": rng.choice(clips, SHOTS).tolist(),
            "oracle": list(benchmark.pairs["test"][key][:SHOTS]),
        }

    # The transformer learns episodes of seen classes: a query and a support (Eq. 4, 5, 8 to 10).
    learned = VisTask(
        benchmark=str(folder), backbone=str(backbone), seed=0,
        vis=experiment.vis.model_dump(mode="json"),
    )  # fmt: skip
    models = {"vis": load_vis(trained(learned, steps["vis"], out / "vis"))}

    # Segment and track each query with its supports, and score the tracks.
    rows = [{"supports": kind, "shots": SHOTS, "extra": 0} for kind in KINDS]
    predictions = predict_rows(models, queries, rows, chosen, reader, supports)
    truth = episode_truth(reader.annotations, queries)
    supports.decoder.close()
    found_all = zip(KINDS, predictions.values(), strict=True)
    return {kind: 100 * episode_scores(truth, some)["AP50"] for kind, some in found_all}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    for kind, score in main(given.out, quick=given.quick).items():
        print(f"AP50 with {kind} supports: {score:.1f}")
