"""Real annotated videos and real clips, some of them broken, through the whole pipeline."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from selfshot.benchmarks.manifest import load_benchmark, read_corpus
from selfshot.config.load import load_experiment
from selfshot.retrieval.embeddings import read_embeddings, read_quarantine
from selfshot.studies.run import plan_experiment, run_experiment

pytestmark = pytest.mark.usefixtures("ray_running")

REAL = Path(__file__).parents[2] / "experiments" / "real_videos.yaml"
BROKEN = ("not_a_video.mp4", "truncated.mp4")
CLIPS_OF = ("car", "dog", "")
SMALL = {
    "benchmark": "height=32 width=64 num_frames=3",
    "backbone": "width=8 dim=12 classes_per_batch=4",
    "encoder": "backbone=pretrained dim=null heads=2 videos_per_batch=4 crops_per_video=2 "
    "queue_length=16",
    "embedding": "num_frames=3",
    # An encoder that is hardly trained finds everything alike.
    "supports": "duplicate_cosine=0.9999",
    "vis": "heads=2 ffn_dim=24 num_instances=2",
    "evaluation": "supports=[none,self_shot,oracle] folds=1",
    "report": "gallery_queries=1",
    "compute": "log_every=1 checkpoint_every=2",
    **{
        f"{stage}.optimiser": "steps=3 warmup_steps=1" for stage in ("backbone", "encoder", "vis")
    },
}
"""Settings of a run of seconds, by section."""


@pytest.fixture
def corpus(shared: Path, tmp_path: Path) -> Path:
    """Four clips each of cars, of dogs and of no label, beside two files that are no videos."""
    source = shared / "data" / "corpus_real"
    with (source / "labels.csv").open(newline="", encoding="utf-8") as file:
        labelled = [(row["clip"], row["rough_label"]) for row in csv.DictReader(file)]
    folder = tmp_path / "clips"
    folder.mkdir()
    for wanted in CLIPS_OF:
        for clip in [clip for clip, label in labelled if label == wanted][:4]:
            shutil.copy(source / "clips" / f"{clip}.mp4", folder)
    for name in BROKEN:
        shutil.copy(shared / "data" / "odd_videos" / name, folder)
    return folder


@pytest.mark.slow
def test_real_videos(
    shared: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared / "data"
    inputs = [
        f"benchmark.annotations={data / 'vis_real' / 'instances.json'}",
        f"benchmark.frames={data / 'vis_real' / 'frames'}",
        f"benchmark.corpus={corpus}",
        f"benchmark.corpus_labels={data / 'corpus_real' / 'labels.csv'}",
        f"output={tmp_path / 'runs'}",
    ]
    small = [f"{section}.{part}" for section, line in SMALL.items() for part in line.split()]
    experiment = load_experiment(REAL, [*inputs, *small])
    report = run_experiment(experiment)
    said = capsys.readouterr().out
    assert report is not None
    folders = {plan.stage: plan.path for plan in plan_experiment(experiment)}

    benchmark = load_benchmark(folders["benchmark"])
    assert benchmark.classes["test"] == ("car", "dog") and len(benchmark.queries["test"]) == 3
    trained = {video for video, _ in benchmark.queries["train"]}
    assert not trained & {video for video, _ in benchmark.queries["test"]}
    manifest = {row["clip_id"] for row in read_corpus(folders["benchmark"])}
    assert len(manifest) == 14

    embedded, _ = read_embeddings(folders["embeddings"])
    quarantined = dict(read_quarantine(folders["embeddings"]))
    assert {*embedded, *quarantined} == manifest and not set(embedded) & set(quarantined)
    names = {clip_id.rpartition("-")[0] for clip_id in quarantined}
    assert names == {Path(name).stem for name in BROKEN}
    for clip_id, reason in quarantined.items():
        assert reason and f"quarantined {clip_id}: {reason}" in said
    assert "12 embedded + 2 quarantined = 14 clips of the manifest" in said
    chosen = json.loads((folders["supports"] / "supports.json").read_text())
    assert {clip for supports in chosen.values() for clip in supports["self_shot"]} <= set(embedded)

    rows = json.loads((report / "results.json").read_text())
    assert [(row["supports"], row["shots"]) for row in rows] == [
        ("none", 0),
        ("self_shot", 1),
        ("oracle", 1),
    ]
    assert all(0 <= row["AP50"]["mean"] <= 100 for row in rows)
    assert (report / "report.html").stat().st_size > 10_000
