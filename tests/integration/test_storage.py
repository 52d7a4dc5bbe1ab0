"""A toy run with its storage on a local S3 server: the output folder is only a cache."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from s3_server import BUCKET, s3_server

from selfshot.config.load import load_experiment
from selfshot.data.storage import Storage
from selfshot.errors import StorageError, UserError
from selfshot.store.folders import RemoteFolder
from selfshot.store.remote import SharedStore
from selfshot.studies.run import plan_experiment, run_experiment, verify_experiment
from selfshot.studies.stages import STAGES

pytest.importorskip("moto", reason="moto[server] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOY = Path(__file__).parent / "toy.yaml"
NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Before Ray starts, whose workers inherit the environment.
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as (_, address):
        yield address


@pytest.fixture(scope="module")
def ray_with_storage(storage: str) -> Iterator[None]:
    from selfshot.distributed.session import ray_session

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOY.parent), before]))
    with ray_session():
        yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def run(output: Path, storage: str, *overrides: str) -> tuple[dict[str, str], str]:
    """What was done with each stage, and all that was said."""
    experiment = load_experiment(TOY, [f"output={output}", f"storage={storage}", *overrides])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_experiment(experiment)
    text = said.getvalue()
    return dict(re.findall(r"\[\d+/\d+\] (\w+): (started|going on|reused)", text)), text


def test_files_on_s3(storage: str, tmp_path: Path) -> None:
    files = Storage(f"{storage}/files")
    files.check()
    (tmp_path / "here").write_bytes(b"x" * 3_000_001)
    files.join([tmp_path / "here", tmp_path / "here"], "a/b")
    assert files.sizes("", deep=True) == {"a/b": 6_000_002} and files.size("a") is None
    files.download("a/b", tmp_path / "there")
    assert (tmp_path / "there").stat().st_size == 6_000_002
    remote = RemoteFolder(files, "m", tmp_path / "remote")
    (tmp_path / "remote" / "export").mkdir(parents=True)
    (tmp_path / "remote" / "export" / "w").write_text("1")
    remote.push("export")
    assert RemoteFolder(files, "m", tmp_path / "other").pull_folder() == 1
    remote.remove()
    assert files.sizes("m", deep=True) == {}
    with pytest.raises(FileNotFoundError):
        files.read("a/c")


@pytest.mark.parametrize(
    ("address", "environment", "words"),
    [
        (f"s3://{BUCKET}-not/runs", {}, "there is no bucket"),
        (f"s3://{BUCKET}/runs", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be read"),
    ],
)
def test_bad_storage_is_told_before_any_work(
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    environment: dict[str, str],
    words: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    experiment = load_experiment(TOY, [f"output={tmp_path}/runs", f"storage={address}"])
    for begin in (run_experiment, plan_experiment):
        with pytest.raises(StorageError, match=f"storage: {address}.*{words}"):
            begin(experiment)
    assert not (tmp_path / "runs").exists()


def test_weights_and_a_corpus_on_s3(
    storage: str, ray_with_storage: None, small_corpus: Path, tmp_path: Path
) -> None:
    from engine_parts import mean_colour
    from safetensors.torch import save_file

    from selfshot.data.corpus_manifest import open_manifest
    from selfshot.distributed.embedding import EmbeddingJob, embed_corpus
    from selfshot.models.foreign_weights import read_foreign_weights, weights_digest

    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    remote = RemoteFolder(Storage(storage), "inputs", tmp_path)
    remote.push("w.safetensors")
    weights = f"{storage}/inputs/w.safetensors"
    assert read_foreign_weights(weights)["a"].tolist() == [0.0, 1.0, 2.0]
    assert weights_digest(weights) == weights_digest(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_foreign_weights(f"{weights}.not")

    RemoteFolder(Storage(storage), "corpus", small_corpus).push("videos", "clips.parquet")
    manifest = open_manifest(f"{storage}/corpus/clips.parquet", root=f"{storage}/corpus/videos")
    summary = embed_corpus(
        manifest, mean_colour(small_corpus / "encoder"),
        EmbeddingJob(
            num_frames=3, height=32, width=48, clips_per_batch=2, clips_per_shard=4,
            decode_timeout_s=30, decode_memory_mb=512, max_quarantine_share=0.2,
        ),
        settings={"encoder": "mean"}, out=f"{storage}/embedded",
    )  # fmt: skip
    assert (summary["embedded"], summary["quarantined"]) == (10, 1)
    shards = [n for n in Storage(storage).sizes("embedded") if n.startswith("shard-")]
    assert len(shards) == 3


@pytest.fixture(scope="module")
def made(
    storage: str, ray_with_storage: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("made") / "runs"
    statuses, said = run(output, storage)
    assert statuses == dict.fromkeys(NAMES, "started"), said
    return output, said


def test_an_emptied_output_folder_makes_nothing_again(
    made: tuple[Path, str], storage: str
) -> None:
    output, _ = made
    report = (output / "toy" / "report" / "results.json").read_bytes()
    files = Storage(storage)
    there = files.sizes("", deep=True)
    assert not [name for name in there if ".partial/" in name]
    assert "toy/report/report.html" in there and "toy/experiment.yaml" in there
    shutil.rmtree(output)
    experiment = load_experiment(TOY, [f"output={output}", f"storage={storage}"])
    plans = plan_experiment(experiment)
    assert {plan.status for plan in plans} == {"done"}
    assert all(plan.stored and plan.stored.startswith(storage) for plan in plans)
    statuses, said = run(output, storage)
    assert statuses == dict.fromkeys(NAMES, "reused") and " made in " not in said
    assert said.count("is fetched from s3://") == len(NAMES)
    assert (output / "toy" / "report" / "results.json").read_bytes() == report
    assert verify_experiment(experiment) == []

    def but_pages(sizes: Mapping[str, int]) -> dict[str, int]:
        """The report is drawn anew where it is gone, and says that stages were reused."""
        pages = ("toy/report/report.html", "toy/report/report.md")
        return {name: size for name, size in sizes.items() if name not in pages}

    now = Storage(storage).sizes("", deep=True)
    assert now.keys() == there.keys() and but_pages(now) == but_pages(there)


def test_a_changed_file_is_noticed(made: tuple[Path, str], storage: str) -> None:
    output, _ = made
    experiment = load_experiment(TOY, [f"output={output}", f"storage={storage}"])
    (plan,) = [plan for plan in plan_experiment(experiment) if plan.stage == "index"]
    files = Storage(storage)
    (part,) = [n for n in files.sizes(f"store/index/{plan.key}", deep=True) if "part-" in n]
    name = f"store/index/{plan.key}/{part}"
    content = bytearray(files.read(name))
    content[len(content) // 2] ^= 1
    files.write(name, bytes(content))
    shutil.rmtree(output)
    statuses, said = run(output, storage)
    assert statuses == dict.fromkeys(NAMES, "reused") | {"index": "started"}
    assert "its SHA-256 is not the manifest's" in said
    shutil.rmtree(output)
    statuses, _ = run(output, storage)
    assert statuses == dict.fromkeys(NAMES, "reused")


def test_storage_that_goes_away_in_the_middle_leaves_a_run_that_goes_on(
    ray_with_storage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = "selfshot.data.storage"
    monkeypatch.setattr(f"{store}.FIRST_WAIT_S", 0.05)
    with s3_server(tmp_path / "log") as (server, address):
        publish = SharedStore.publish

        def freeze(self: SharedStore, stage: str, key: str, folder: Path) -> bool:
            if stage == "benchmark":
                server.send_signal(signal.SIGKILL)
                server.wait()
            return publish(self, stage, key, folder)

        output = tmp_path / "runs"
        with monkeypatch.context() as patched:
            patched.setattr(SharedStore, "publish", freeze)
            with pytest.raises(StorageError, match="run the same command again"):
                run(output, address)
    with s3_server(tmp_path / "log") as (_, address):
        experiment = load_experiment(TOY, [f"output={output}", f"storage={address}"])
        assert plan_experiment(experiment)[0].status == "done"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run_experiment(experiment, until="benchmark")
        assert "benchmark: reused" in said.getvalue()
        assert len(SharedStore(Storage(address)).keys("benchmark")) == 1
