"""What does the embedding job add to decoding and embedding, and what does its encoder gain?

Claims, with EfficientNet-Lite0 on 8 frames of 224 pixels:

    obvious   the usual pipeline: one actor a core that decodes a clip, then runs the network as its
              package has it, one clip at a time. The job makes at least 1.5 times its clips a
              second, and the same vectors (cosine ≥ 0.9999).
    loop      a loop written by hand: in as many processes as the job has workers, one thread
              decodes the next batch while the other embeds this one with the job's own encoder. The
              job makes at least 0.9 of its clips a second, the start of both apart.
    scaling   two workers (decoder and embedder, each on a core of its own) against one on one core:
              at least 1.8 times. The loop's own ratio says what the machine has: its processes
              share nothing but memory.
    shares    what a core spends on decoding, on the network, on moving blocks, on writing.

Each way has the same clips, in turns, so that what else the machine does meets all of them. Of each
way two figures are printed: clips a second, and seconds of CPU a clip, which do not depend on who
else wanted the cores. The job is run with the clips once and three times over: what the second run
takes longer is the steady state, without the start, the first batches and the last ones.

    python performance/embedding.py CLIPS_FOLDER [--rounds 2] [--clips 385]
    python performance/embedding.py CLIPS_FOLDER --parts     seconds of CPU only, without Ray
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

FRAMES, SIDE, BATCH = 8, 224, 32
SIZE = {"num_frames": FRAMES, "height": SIDE, "width": SIDE}
CPU = "cpu_s"
WAYS = ("obvious", "loop", "loop on one core", "job", "job on one core")


def batches(paths: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(paths), size):
        yield list(paths[start : start + size])


def obvious(number: int, paths: Sequence[str], core: int, ready: Any, answers: Any) -> None:
    """One actor of the obvious pipeline."""
    import torch

    from selfshot.data.video import sample_frames
    from selfshot.models.pretrained import packaged_network

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    network = packaged_network().network
    ready.wait()
    began = time.perf_counter(), time.process_time()
    vectors = []
    with torch.inference_mode():
        for path in paths:
            frames = torch.from_numpy(sample_frames(path, **SIZE))
            images = (frames.permute(0, 3, 1, 2).float() - 127) / 128
            features = network.forward_features(images.contiguous()).mean((2, 3)).mean(0)
            vectors.append(torch.nn.functional.normalize(features, dim=0).numpy())
    _answer(answers, number, vectors, began, time.process_time())


def loop(number: int, paths: Sequence[str], core: int, ready: Any, answers: Any) -> None:
    """One process of the loop written by hand."""
    import torch

    from selfshot.data.video import sample_frames
    from selfshot.models.encoders import open_encoder

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    encoder = open_encoder("efficientnet_lite0").encoder
    encoder.prepare("cpu")
    encoder.embed(np.zeros((1, FRAMES, SIDE, SIDE, 3), np.uint8))

    def decode(batch: list[str]) -> np.ndarray:
        return np.stack([sample_frames(path, **SIZE) for path in batch])

    ready.wait()
    began = time.perf_counter(), time.process_time()
    vectors: list[np.ndarray] = []
    with ThreadPoolExecutor(1) as ahead:
        waiting = None
        for batch in [*batches(paths, BATCH), None]:
            following = ahead.submit(decode, batch) if batch is not None else None
            if waiting is not None:
                vectors += list(encoder.embed(waiting.result()))
            waiting = following
    _answer(answers, number, vectors, began, time.process_time())


def _answer(
    answers: Any, number: int, vectors: Any, began: tuple[float, float], cpu: float
) -> None:
    answers.put((number, began[0], time.perf_counter(), cpu - began[1], np.stack(vectors)))


def in_processes(way: Any, paths: Sequence[str], cores: Sequence[int]) -> dict[str, Any]:
    """Run a way in one process a core, each with its part of the clips."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(len(cores)), context.Queue()
    parts = [list(paths[number :: len(cores)]) for number in range(len(cores))]
    started = [
        context.Process(target=way, args=(number, part, core, ready, answers))
        for number, (part, core) in enumerate(zip(parts, cores, strict=True))
    ]
    for process in started:
        process.start()
    found = sorted((answers.get() for _ in started), key=lambda answer: answer[0])
    for process in started:
        process.join()
    # perf_counter is the machine's own clock, so starts and ends of processes can be compared.
    seconds = max(answer[2] for answer in found) - min(answer[1] for answer in found)
    vectors = {
        path: vector
        for part, answer in zip(parts, found, strict=True)
        for path, vector in zip(part, answer[4], strict=True)
    }
    cpu = sum(answer[3] for answer in found) / len(paths)
    return {"clips_per_s": len(paths) / seconds, CPU: cpu, "vectors": vectors}


def steady_job(short: Path, long: Path, out: Path, cores: Sequence[int]) -> dict[str, Any]:
    """The job on a short and on a long manifest: the difference is what clips cost."""
    some, many = (
        job(manifest, out / name, cores) for manifest, name in ((short, "some"), (long, "many"))
    )
    clips = many["clips"] - some["clips"]
    return {
        **some,
        "clips_per_s": clips / (_running_s(many) - _running_s(some)),
        CPU: (many[CPU] - some[CPU]) / clips,
    }


def _running_s(summary: dict[str, Any]) -> float:
    """From the first batch to the end."""
    return float(summary["seconds"]) - float(summary["start_s"])


def job(manifest: Path, out: Path, cores: Sequence[int]) -> dict[str, Any]:
    """Run the job itself in a process of its own, on some of the cores."""
    words = [sys.executable, __file__, str(manifest), "--job", str(out)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, set(cores)),
        env={**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    written, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the job failed: {written}")
    return dict(json.loads(written.strip().splitlines()[-1]))


def job_alone(manifest: str, out: str) -> None:
    """What `job` starts."""
    from selfshot.data.corpus_manifest import open_manifest
    from selfshot.distributed.embedding import EmbeddingJob, embed_corpus
    from selfshot.distributed.session import ray_session
    from selfshot.models.encoders import open_encoder

    workers = len(os.sched_getaffinity(0))
    opened = open_encoder("efficientnet_lite0")
    spent = _Spent()
    with ray_session():
        summary = embed_corpus(
            open_manifest(manifest), opened.encoder,
            EmbeddingJob(
                **SIZE, clips_per_batch=BATCH, clips_per_shard=512, decode_timeout_s=60.0,
                decode_memory_mb=4096, max_quarantine_share=0.0, concurrency=workers,
            ),
            settings={"encoder": opened.digest}, out=out,
            on_progress=lambda state: spent.look(),
        )  # fmt: skip
    print(json.dumps({**summary, CPU: spent.total(), "workers": workers}))


class _Spent:
    """CPU seconds of this process and all below it."""

    def __init__(self) -> None:
        # A process that has gone keeps what it was last seen with.
        self.of_process: dict[int, float] = {}

    def look(self) -> None:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self.of_process[process.pid] = times.user + times.system

    def total(self) -> float:
        return sum(self.of_process.values())


def transfer_s() -> float:
    """CPU seconds a clip to move frames through the object store and back."""
    import ray

    from selfshot.distributed.session import ray_session

    frames = np.random.default_rng(0).integers(0, 256, (BATCH, FRAMES, SIDE, SIDE, 3), np.uint8)
    with ray_session():
        from ray.data.block import BlockAccessor

        best = float("inf")
        for _ in range(5):
            before = time.process_time()
            block = BlockAccessor.batch_to_block({"frames": frames})
            there = ray.get(ray.put(block))
            np.asarray(BlockAccessor.for_block(there).to_numpy()["frames"]).sum(dtype=np.int64)
            best = min(best, time.process_time() - before)
        before = time.process_time()
        frames.sum(dtype=np.int64)
        best -= time.process_time() - before
    return max(best, 0.0) / BATCH


def make_manifest(folder: Path, most: int, out: Path, times: int = 1) -> list[str]:
    """A manifest of the first clips, several times over; returns their paths."""
    from selfshot.benchmarks.corpus_build import Cutting, build_manifest
    from selfshot.benchmarks.corpus_items import of_videos

    items = list(of_videos(str(folder), []))[:most]
    if times > 1:
        copies = out.parent / f"{times}-times"
        for time_over in range(times):
            (copies / str(time_over)).mkdir(parents=True)
            for item in items:
                name = Path(item.uri).name
                shutil.copyfile(folder / item.uri, copies / str(time_over) / name)
        folder = copies
        items = list(of_videos(str(folder), []))
    build_manifest(
        items, str(folder.resolve()), str(out), cutting=Cutting(), items_per_file=10_000, workers=2,
        made_from="performance", on_message=lambda text: None,
    )  # fmt: skip
    return [str(folder.resolve() / item.uri) for item in items]


def least_cosine(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return min(float(np.dot(ours[path], theirs[path])) for path in ours)


def vectors_of(out: Path, manifest: Path, folder: Path) -> dict[str, np.ndarray]:
    """The job's vectors by path."""
    from selfshot.data.corpus_manifest import open_manifest, read_rows
    from selfshot.retrieval.embeddings import read_embeddings

    opened = open_manifest(str(manifest))
    rows = read_rows(opened, opened.files[0], 0, opened.clips).to_pylist()
    path_of = {row["clip_id"]: str(folder.resolve() / row["uri"]) for row in rows}
    ids, vectors = read_embeddings(out)
    return {path_of[one]: vector for one, vector in zip(ids, vectors, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips_folder")
    parser.add_argument("--clips", type=int, default=385)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="all if not given")
    parser.add_argument("--parts", action="store_true", help="time the parts alone, without Ray")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        job_alone(chosen.clips_folder, chosen.job)
        return
    if chosen.parts:
        found = sorted(path for path in Path(chosen.clips_folder).rglob("*.mp4"))
        report_parts([str(path) for path in found[:: max(1, len(found) // chosen.clips)]])
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    scratch = Path(tempfile.mkdtemp(prefix="selfshot-embedding-"))
    try:
        folder = Path(chosen.clips_folder)
        paths = make_manifest(folder, chosen.clips, scratch / "manifest")
        make_manifest(folder, chosen.clips, scratch / "long", times=3)
        measured: dict[str, list[dict[str, Any]]] = {}
        for number in range(chosen.rounds):
            for name in chosen.ways:
                use = cores[:1] if name.endswith("core") else cores
                if name.startswith("job"):
                    out = scratch / f"{name.replace(' ', '-')}-{number}"
                    result = steady_job(scratch / "manifest", scratch / "long", out, use)
                    result["vectors"] = vectors_of(out / "some", scratch / "manifest", folder)
                else:
                    way = obvious if name == "obvious" else loop
                    result = in_processes(way, paths, use)
                measured.setdefault(name, []).append(result)
                print(
                    f"round {number + 1}  {name:16s} {result['clips_per_s']:7.2f} clips/s  "
                    f"{result[CPU]:.4f} CPU s a clip",
                    flush=True,
                )
        if len(measured) == len(WAYS):
            report(measured, len(paths))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def report(measured: dict[str, list[dict[str, Any]]], clips: int) -> None:
    best = {
        name: max(results, key=lambda one: float(one["clips_per_s"]))
        for name, results in measured.items()
    }
    rate = {name: float(one["clips_per_s"]) for name, one in best.items()}
    print(f"\n{clips} clips, the best of {len(measured['job'])} rounds of each way")
    cpu = {name: min(float(one[CPU]) for one in results) for name, results in measured.items()}
    for name, value in rate.items():
        print(f"{name:18s} {value:7.2f} clips a second, {cpu[name]:.4f} CPU s a clip")
    whole = best["job"]
    cosine = least_cosine(whole["vectors"], best["obvious"]["vectors"])
    print(f"start of the job   {whole['start_s']:7.1f} s, beside these")
    print(
        f"ratio              {rate['job'] / rate['obvious']:7.2f} of the obvious pipeline, "
        f"{cpu['obvious'] / cpu['job']:.2f} by CPU"
    )
    print(f"cosine             {cosine:7.5f} with it, at least")
    print(
        f"ratio              {rate['job'] / rate['loop']:7.2f} of the loop written by hand, "
        f"{cpu['loop'] / cpu['job']:.2f} by CPU"
    )
    scaling, ceiling = (rate[name] / rate[f"{name} on one core"] for name in ("job", "loop"))
    print(f"ratio              {scaling:7.2f} of one worker's; the loop's is {ceiling:.2f}")
    alone = best["job on one core"]["spent_s"]
    per_clip = {"decode": 0.0, "model": 0.0, "transfer": 0.0, "write": alone["write"] / clips}
    per_clip |= shares_of_a_core(measured)
    total = sum(per_clip.values())
    words = ", ".join(f"{name} {100 * value / total:.1f}%" for name, value in per_clip.items())
    print(f"shares of a core   {words}")


def shares_of_a_core(measured: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """CPU seconds a clip for decoding, the network and moving blocks, each measured by itself."""
    paths = list(measured["job"][0]["vectors"])[:BATCH]
    cpu, _ = parts_of(paths)
    return {"decode": cpu["decode"], "model": cpu["fused"], "transfer": transfer_s()}


def parts_of(paths: Sequence[str]) -> tuple[dict[str, float], float]:
    """CPU seconds a clip of decoding and of the network both ways, and their least cosine."""
    import torch

    from selfshot.data.video import sample_frames

    torch.set_num_threads(1)
    plain, fused = efficientnet_lite0(), efficientnet_lite0()
    fused.prepare("cpu")
    warm = sample_frames(paths[0], **SIZE)[None]
    plain.embed(warm)
    fused.embed(warm)
    cpu = dict.fromkeys(("decode", "as packaged", "fused"), 0.0)
    cosine = 1.0
    for path in paths:  # In turns, so that what else the machine does meets both.
        times = [time.process_time()]
        frames = sample_frames(path, **SIZE)[None]
        times.append(time.process_time())
        one = plain.embed(frames)
        times.append(time.process_time())
        other = fused.embed(frames)
        times.append(time.process_time())
        for name, seconds in zip(cpu, np.diff(times), strict=True):
            cpu[name] += float(seconds) / len(paths)
        cosine = min(cosine, float((one * other).sum()))
    return cpu, cosine


def report_parts(paths: Sequence[str]) -> None:
    cpu, cosine = parts_of(paths)
    for name, seconds in cpu.items():
        print(f"{name:12s} {1000 * seconds:7.1f} ms of CPU a clip")
    print(f"cosine       {cosine:7.5f} at least, over {len(paths)} clips")
    print(f"ratio        {cpu['as packaged'] / cpu['fused']:7.2f} of the network alone")
    ratio = (cpu["decode"] + cpu["as packaged"]) / (cpu["decode"] + cpu["fused"])
    print(f"ratio        {ratio:7.2f} with decoding: what a pipeline could gain at most")


if __name__ == "__main__":
    main()
