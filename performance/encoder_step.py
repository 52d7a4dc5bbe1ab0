"""A training step of the video encoder, part by part; the input pipelines; memory.

Claims: with video_vit of size small the network's own work is at least 90% of a step, as batches
are made ahead of it; one thread makes them as fast as a DataLoader's processes or Ray Data;
activation checkpointing saves memory for the time of one more forward. Renders a small corpus of
sprites first.

    python performance/encoder_step.py [--steps 8] [--videos 4] [--crops 2] [--frames 4]
                                       [--only parts pipelines batches memory]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfshot.benchmarks.sprites.build import build_sprites
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.data.augment import RECIPES
from selfshot.data.guard import Clip
from selfshot.training.batches import load_batches
from selfshot.training.contrast import EncoderTraining
from selfshot.training.encoder import EncoderTask
from selfshot.training.loop import batch_maker

WARM = 5
"""Batches before a rate is measured: those made ahead are there at once."""

def render(folder: Path, clips: int) -> Path:
    (folder / "benchmark").mkdir()
    sizes = SpritesBenchmark(
        height=64, width=64, num_frames=8, train_classes=2, val_classes=1,
        test_classes=1, train_queries=1, train_supports=1, eval_queries=1,
        eval_supports=1, corpus_clips=clips, corpus_seen_classes=1,
    )  # fmt: skip
    build_sprites(folder / "benchmark", folder / "scratch", map, sizes, seed=0)
    return folder / "benchmark"


def make_task(folder: Path, asked: argparse.Namespace, checkpointing: bool = False) -> EncoderTask:
    section = {
        "backbone": "video_vit", "vit_patch": 8, "num_frames": asked.frames,
        "videos_per_batch": asked.videos, "crops_per_video": asked.crops,
        "queue_length": 10 * asked.videos * asked.crops, "augmentation": "moco", "head": "mlp",
        "optimiser": {"steps": asked.steps, "learning_rate": 1e-4, "warmup_steps": 0},
    }  # fmt: skip
    return EncoderTask(
        benchmark=str(folder), backbone=None, backbone_network={"width": 8, "dim": 12}, seed=0,
        encoder=section, checkpointing=checkpointing,
    )  # fmt: skip


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        self.seconds[name].append(time.perf_counter() - began)
        return result

    def medians(self) -> dict[str, float]:
        # The first of each is a warm-up.
        return {name: statistics.median(values[1:]) for name, values in self.seconds.items()}


def parts(task: EncoderTask, steps: int) -> dict[str, float]:
    """Median seconds of each part of a step, one after another on one thread of control."""
    clock, module = Clock(), task.module.train()
    augment, parts_of_clip = RECIPES["moco"], task.section.crops_per_video
    (group,) = task.parameter_groups()
    optimiser = torch.optim.AdamW(group["params"], lr=1e-4)
    for step in range(steps + 1):
        rows = [task.clips[(step * task.videos_per_batch + i) % len(task.clips)]
                for i in range(task.videos_per_batch)]  # fmt: skip
        asked = [Clip(str(task.root / r["uri"]), r["start_s"], r["end_s"]) for r in rows]
        clips = clock("decode", lambda asked=asked: [task.decoder.decode(clip) for clip in asked])
        rng = np.random.default_rng(step)

        def change(clips: list[np.ndarray] = clips, rng: np.random.Generator = rng) -> torch.Tensor:
            crops = [
                np.stack([augment(part, rng) for part in np.split(clip, parts_of_clip)])
                for clip in clips
            ]
            return torch.from_numpy(np.stack(crops))

        frames = clock("augment", change).flatten(0, 1)
        videos = torch.arange(task.videos_per_batch)
        anchors = clock(
            "forward of Φ",
            lambda frames=frames: module.head(module.encoder.embed(frames)),
        )
        with torch.no_grad():
            keys = clock(
                "forward of Φ̃",
                lambda frames=frames: module.momentum_head(module.momentum_encoder.embed(frames)),
            )
        loss = clock(
            "loss", lambda a=anchors, k=keys, v=videos: _loss(module, a, k, v)
        )
        optimiser.zero_grad(set_to_none=True)
        clock("backward", loss.backward)
        clock("optimiser, momentum, queue", lambda step=step: (optimiser.step(),
                                                               task.after_step(step)))  # fmt: skip
    return clock.medians()


def _loss(
    module: EncoderTraining, anchors: torch.Tensor, keys: torch.Tensor, videos: torch.Tensor
) -> torch.Tensor:
    """The module's own loss of vectors that are there already."""
    embed_twice = module._embed_twice
    try:
        module._embed_twice = lambda batch: (anchors, keys)  # type: ignore[method-assign]
        return module({"videos": videos})["loss"]
    finally:
        module._embed_twice = embed_twice  # type: ignore[method-assign]


def ray_batches(task: EncoderTask, steps: range) -> Iterator[tuple[int, Any]]:
    """The same batches by Ray Data, one actor that reads ahead."""
    import ray

    class Make:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            batch = task.batch(int(row["id"]), 0, 1)
            return {name: value.numpy() for name, value in batch.items()}

    rows = ray.data.range(len(steps), override_num_blocks=len(steps))
    made = rows.map(Make, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5)
    ones = made.iter_batches(batch_size=1, prefetch_batches=2)
    for step, one in zip(steps, ones, strict=True):
        yield step, {name: torch.from_numpy(np.array(value[0])) for name, value in one.items()}


def pipeline(
    task: EncoderTask, batches: Iterator[tuple[int, Any]]
) -> tuple[float, float]:
    """Median seconds of a step, and of the network's own work in it."""
    (group,) = task.parameter_groups()
    optimiser = torch.optim.AdamW(group["params"], lr=1e-4)
    module = task.module.train()
    wholes, works = [], []
    began = time.perf_counter()
    for step, batch in batches:
        ready = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        module(batch)["loss"].backward()
        optimiser.step()
        task.after_step(step)
        done = time.perf_counter()
        wholes.append(done - began)
        works.append(done - ready)
        began = done
    # The first steps start the pipeline and warm up.
    return statistics.median(wholes[2:]), statistics.median(works[2:])


def ways(
    task: EncoderTask, steps: range, asked: Sequence[str]
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Iterator[tuple[int, Any]]]]]:
    """Each way of making batches ahead, one after another."""
    threads = [("one thread", 0)] * ("thread" in asked)
    processes = [("1 process", 1), ("2 processes", 2)] * ("processes" in asked)
    for name, workers in threads + processes:
        yield name, load_batches(batch_maker(task, 0, 1), steps, workers=workers)
    if "Ray Data" not in asked:
        return
    from selfshot.distributed.session import ray_session

    with ray_session():
        yield "Ray Data", contextlib.nullcontext(ray_batches(task, steps))


def rate(task: EncoderTask, batches: Iterator[tuple[int, Any]]) -> float:
    """Temporal crops a second, once the first batches are there."""
    count, began = 0, 0.0
    for place, _ in enumerate(batches):
        if place == WARM:
            began = time.perf_counter()
        count += place > WARM
    return task.clips_per_batch * count / (time.perf_counter() - began)


def show_parts(task: EncoderTask, steps: int) -> None:
    medians = parts(task, steps)
    total = sum(medians.values())
    for name, seconds in medians.items():
        print(f"  {name:28}{1000 * seconds:9.1f} ms  {100 * seconds / total:5.1f}%")
    made = medians["decode"] + medians["augment"]
    print(f"  network's share without any pipeline: {100 * (1 - made / total):.1f}%", flush=True)


def memory(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def peak_memory(
    asked: argparse.Namespace, folder: Path, checkpointing: bool
) -> tuple[float, float]:
    """Peak MB of a training of three steps in a process of its own, and seconds of a step."""
    command = [
        sys.executable, __file__, "--memory", str(folder), "--videos", str(asked.videos), "--crops",
        str(asked.crops), "--frames", str(asked.frames), *(["--checkpoint"] * checkpointing),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    megabytes, seconds = answer.split()[-2:]
    return float(megabytes), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("steps", 8), ("videos", 4), ("crops", 2), ("frames", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    measures = ("parts", "pipelines", "batches", "memory")
    parser.add_argument("--only", nargs="*", choices=measures, default=measures)
    parser.add_argument("--ways", nargs="*", default=("thread", "processes", "Ray Data"))
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--checkpoint", action="store_true")
    asked = parser.parse_args()
    if asked.memory:
        task = make_task(asked.memory, asked, asked.checkpoint)
        batch = task.batch(0, 0, 1)
        # The peak until now is that of what was built and read; Linux starts it anew.
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        _, seconds = pipeline(task, iter([(step, batch) for step in range(4)]))
        print(memory("VmHWM") - before, seconds)
        task.decoder.close()
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = render(Path(scratch), 64)
        task = make_task(folder, asked)
        print(
            f"video_vit small, {asked.videos * asked.crops} clips of {asked.frames} frames of "
            f"64 × 64, patches of 8; {torch.get_num_threads()} threads"
        )
        if "parts" in asked.only:
            show_parts(task, asked.steps)
        if "pipelines" in asked.only:
            print("pipeline                       step        network's share of it")
            for name, made in ways(task, range(asked.steps + 2), asked.ways):
                with made as batches:
                    whole, work = pipeline(task, batches)
                print(f"  {name:25}{1000 * whole:9.1f} ms  {100 * work / whole:5.1f}%", flush=True)
        if "batches" in asked.only:
            print("batches alone, without a network        clips a second")
            for name, made in ways(task, range(WARM + 40), asked.ways):
                with made as batches:
                    print(f"  {name:25}{rate(task, batches):9.1f}", flush=True)
        task.decoder.close()
        if "memory" in asked.only:
            plain, spared = (peak_memory(asked, folder, c) for c in (False, True))
            print(
                f"activation checkpointing: {spared[0]:.0f} instead of {plain[0]:.0f} MB above "
                f"what is there before, {plain[0] / spared[0]:.1f} times less; a step takes "
                f"{spared[1] / plain[1]:.2f} times as long"
            )


if __name__ == "__main__":
    main()
