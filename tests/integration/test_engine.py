"""The engine for real, at toy size: Ray Train, DeepSpeed, Ray Data, decord, Ray Tune, MLflow."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from engine_parts import Hanging, mean_colour
from safetensors.torch import load_file

from selfshot.data.corpus_manifest import open_manifest
from selfshot.distributed.embedding import EmbeddingJob, embed_corpus
from selfshot.distributed.session import ray_session
from selfshot.distributed.training import TrainingResult, train
from selfshot.distributed.trials import TrialPlan, TrialsFailedError, run_trials
from selfshot.distributed.worker import Fleet
from selfshot.errors import UserError
from selfshot.retrieval.embeddings import read_embeddings, read_quarantine
from selfshot.training.loop import Schedule, TaskSpec, run_plain
from selfshot.training.toy import ToyTask

TOY = "selfshot.training.toy:build"
STEPS = 24
SHARED: dict[str, Any] = {
    "steps": STEPS,
    "warmup_steps": 4,
    "weight_decay": 1e-2,
    "clip_norm": 0.5,
    "log_every": 5,
    "seed": 3,
}
pytestmark = pytest.mark.usefixtures("ray_running")


def train_toy(work_dir: Path, kwargs: dict[str, Any] | None = None, **more: Any) -> TrainingResult:
    schedule = {**SHARED, "checkpoint_every": 7, "steps": more.pop("steps", STEPS)}
    fleet = {key: more.pop(key) for key in {*more} & set(Fleet.__dataclass_fields__)}
    task = TaskSpec("toy", TOY, {"seed": 1, **(kwargs or {})})
    return train(task, Schedule(**schedule), Fleet(**fleet), work_dir=work_dir, **more)


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return load_file(result.export / "model.safetensors")


def losses(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(point["step"], point["loss"]) for point in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train_toy(tmp_path_factory.mktemp("undisturbed"))


def test_deepspeed_equals_the_plain_loop(undisturbed: TrainingResult) -> None:
    task = ToyTask(seed=1)
    history = run_plain(task, Schedule(**SHARED))
    for ours, plain in zip(undisturbed.history, history, strict=True):
        assert ours["step"] == plain["step"] and ours["lr"] == plain["lr"]
        assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    for name, value in task.module.state_dict().items():
        torch.testing.assert_close(weights(undisturbed)[name], value, rtol=1e-4, atol=1e-6)
    assert undisturbed.resumed_from == 0


@pytest.mark.parametrize(
    ("zero_stage", "num_workers"),
    [
        (3, 2),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
    ],
)
def test_zero_stages_and_workers(
    tmp_path: Path, undisturbed: TrainingResult, zero_stage: int, num_workers: int
) -> None:
    settings = {"zero_stage": zero_stage, "num_workers": num_workers}
    result = train_toy(tmp_path, **settings)
    assert [p["step"] for p in result.history] == [p["step"] for p in undisturbed.history]
    if num_workers == 1:
        ours, theirs = weights(result), weights(undisturbed)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "victim", ["RayTrainWorker", pytest.param("TrainController", marks=pytest.mark.slow)]
)
def test_a_killed_worker_resumes(
    tmp_path: Path, undisturbed: TrainingResult, victim: str
) -> None:
    """It dies between two checkpoints; history and weights do not show it."""
    killed: list[int] = []

    def on_log(point: dict[str, Any]) -> None:
        if point["step"] >= 10 and not killed:
            killed.extend(processes_of(victim))
            os.kill(killed[0], signal.SIGKILL)

    result = train_toy(tmp_path, {"seconds_per_step": 0.15}, on_log=on_log)
    assert killed and result.resumed_from >= 7
    assert losses(result.history) == losses(undisturbed.history)
    ours, theirs = weights(result), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_mistake_of_one_rank_that_a_restart_mends_is_forgotten(tmp_path: Path) -> None:
    """Another node may have what this one lacked."""
    mistakes = tmp_path / "mistakes"
    mistakes.mkdir()
    for name in ("mistake 0", "mistake 1", "mistake 2"):
        (mistakes / name).touch()
    settings = {"steps": 6, "num_workers": 2, "max_failures": 1}
    with pytest.raises(UserError, match="mistake 1 of rank 1"):
        train_toy(tmp_path / "not", {"mistakes": str(mistakes)}, **settings)
    result = train_toy(tmp_path / "mended", {"mistakes": str(mistakes)}, **settings)
    assert not list(mistakes.iterdir()) and result.history[-1]["step"] == 6


def processes_of(actor: str) -> list[int]:
    """Process ids of an actor of Ray Train below this process."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if actor in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    points: list[dict[str, Any]] = []
    with pytest.raises(UserError, match="step 6: the loss is nan"):
        train_toy(tmp_path, {"spoil_step": 6}, on_log=points.append)
    assert [point["step"] for point in points] == [5]
    assert points[0]["stage"] == "toy" and points[0]["steps"] == STEPS
    assert points[0]["steps_per_s"] > 0 and points[0]["eta_s"] > 0
    assert not processes_of("RayTrainWorker")


@pytest.mark.slow
def test_after_a_loss_that_is_not_finite_the_last_checkpoint_is_there(
    tmp_path: Path, undisturbed: TrainingResult
) -> None:
    with pytest.raises(UserError, match="step 16: the loss is nan"):
        train_toy(tmp_path, {"spoil_step": 16})
    mended = train_toy(tmp_path)
    assert mended.resumed_from == 14
    ours, theirs = weights(mended), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_options_of_the_engine(tmp_path: Path) -> None:
    """Batches from processes change nothing."""
    plain = run_plain(ToyTask(seed=1, dropout=0.0), Schedule(**SHARED | {"steps": 6}))
    result = train_toy(tmp_path, {"dropout": 0.0}, steps=6, loader_workers=1)
    for ours, theirs in zip(result.history, plain, strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_gpus_that_are_not_there(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are")
    with pytest.raises(UserError, match=r"compute\.use_gpu"):
        train_toy(tmp_path, use_gpu=True)


def embed(corpus: Path, out_dir: Path, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "num_frames": 3,
        "height": 16,
        "width": 32,
        "clips_per_batch": 2,
        "clips_per_shard": 4,
        "decode_timeout_s": 20.0,
        "decode_memory_mb": 4096,
        "max_quarantine_share": 0.2,
        "concurrency": 1,
    }
    manifest = open_manifest(str(corpus / "clips.parquet"), root=str(corpus / "videos"))
    encoder = more.pop("encoder", mean_colour(corpus / "encoder"))
    told = {key: more.pop(key) for key in {*more} & {"on_progress", "on_message"}}
    job = EmbeddingJob(**{**settings, **more})
    return embed_corpus(
        manifest, encoder, job, settings={"encoder": "mean colour"}, out=out_dir, **told
    )


def test_embedding_quarantines_a_bad_file_and_resumes(small_corpus: Path, tmp_path: Path) -> None:
    progress: list[dict[str, Any]] = []
    summary = embed(small_corpus, tmp_path, on_progress=progress.append)
    assert (summary["clips"], summary["embedded"], summary["quarantined"]) == (11, 10, 1)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert progress[-1]["done"] == 11
    shards = sorted(tmp_path.glob("*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in shards] == [4, 4, 3]
    ids, vectors = read_embeddings(tmp_path)
    assert ids == [f"clip-{row:02d}" for row in range(11) if row != 4]
    assert vectors.shape == (10, 12)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1]) and not np.allclose(vectors[8], vectors[9])
    assert [clip for clip, _ in read_quarantine(tmp_path)] == ["clip-04"]
    times = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    assert embed(small_corpus, tmp_path, shards_at_once=1)["quarantined"] == 1
    again = [path.stat().st_mtime_ns for path in shards]
    assert again[0] == times[0] and again[1] > times[1] and again[2] == times[2]
    assert np.array_equal(read_embeddings(tmp_path)[1], vectors)


def test_embedding_fails_when_too_much_is_broken(small_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 11 clips.*max_quarantine_share(.|\n)*clip-04: "):
        embed(small_corpus, tmp_path, max_quarantine_share=0.05)
    assert not (tmp_path / "shard-00001.parquet").exists()


HUNG = {"concurrency": 2, "stall_timeout_s": 30.0, "max_failures": 1}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_pipeline_that_hangs_is_built_anew(small_corpus: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    encoder = Hanging(tmp_path / "marker", once=True)
    encoder.marker.touch()
    out = tmp_path / "out"
    summary = embed(small_corpus, out, encoder=encoder, on_message=messages.append, **HUNG)
    assert not encoder.marker.exists()
    # Two batches have one clip that is whole: it hung over the one that came first.
    hung = r"no batch has finished for 30 s; not finished: clip-(04, clip-05|10)"
    assert any(re.match(hung, text) for text in messages), messages
    assert (summary["embedded"], summary["quarantined"]) == (10, 1)
    assert read_embeddings(out)[0] == [f"clip-{row:02d}" for row in range(11) if row != 4]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_clip_that_always_hangs_is_named(small_corpus: Path, tmp_path: Path) -> None:
    encoder = Hanging(tmp_path / "marker", once=False)
    encoder.marker.touch()
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"for 30 s, 2 times.* Not finished: clip-04, clip-05"):
        embed(small_corpus, out, encoder=encoder, **HUNG)
    # What was finished is kept.
    encoder.marker.unlink()
    first = out / "shard-00000.parquet"
    made = first.stat().st_mtime_ns
    assert not (out / "shard-00001.parquet").exists()
    assert embed(small_corpus, out, encoder=encoder, **HUNG)["embedded"] == 10
    assert first.stat().st_mtime_ns == made


def test_trials_run_once_and_failures_come_last(tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"trial_id": f"seed{number}", "number": number, "folder": str(tmp_path)}
        for number in range(4)
    ]
    configs[1]["fails"] = True
    results: list[str] = []

    def run() -> list[dict[str, Any]]:
        return run_trials(
            "engine_parts:trial",
            configs,
            TrialPlan(tmp_path / "results", "squares", parallel=2, max_failures=1),
            on_result=lambda trial_id, result: results.append(trial_id),
        )

    with pytest.raises(TrialsFailedError, match=r"1 of 4 trials failed(.|\n)*seed1 was told"):
        run()
    assert sorted(results) == ["seed0", "seed2", "seed3"]
    configs[1]["fails"] = False
    assert run() == [{"square": 0}, {"square": 1}, {"square": 4}, {"square": 9}]
    calls = [len((tmp_path / f"seed{n}.calls").read_text().splitlines()) for n in range(4)]
    assert calls == [1, 3, 1, 1]  # the failing one was tried twice, then once more


def test_session_within_a_session_and_addresses_that_do_not_answer() -> None:
    import ray

    with ray_session() as session:
        assert session.embedded and session.num_cpus >= 2
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "nothing answers"),
        ("nonsense", "host:port"),
        ("ray://127.0.0.1:10001", "ray job submit"),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    from selfshot.distributed.session import _join

    with pytest.raises(UserError, match=f"RAY_ADDRESS: .*{message}"):
        _join(address, "RAY_ADDRESS")
