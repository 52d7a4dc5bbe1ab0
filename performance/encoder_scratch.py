"""Φ from scratch on sprites: what a network learns that no label and no pretraining has touched.

Question: do `video_vit` and the small convolutional network, after a short self-supervised
training from random weights, retrieve clips of unseen classes better than chance and than before?
Crops are augmented, and the frames of the corpus are decoded once. Precision@5 is printed.

    python performance/encoder_scratch.py BENCHMARK --network video_vit --loss nce --steps 300
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_features import AT_ONCE, SIDES, WINDOW, decoded, evenly

from selfshot.benchmarks.manifest import load_benchmark, read_corpus, read_corpus_labels
from selfshot.data.augment import Augmentation
from selfshot.models.projection import ProjectionHead
from selfshot.models.trained_encoder import build_encoder
from selfshot.training.contrast import EncoderTraining
from selfshot.training.loop import Schedule, run_plain, schedule

FRAMES = 8
AUGMENTATION = {
    "crop_scale": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.5,
    "grey": 0.2, "blur": 0.2,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "video_vit": {
        "trunk": "video_vit", "dim": 192, "layers": 0, "heads": 3,
        "vit": {"size": "tiny", "patch": 8, "pooling": "mean"},
    },
    "scratch": {
        "trunk": "scratch", "backbone_settings": {"width": 32, "dim": 96}, "dim": 96, "layers": 1,
        "heads": 4,
    },
}  # fmt: skip


def read_frames(source: Path, cache: Path) -> dict[str, np.ndarray]:
    """Frames of the corpus and of both sides' queries, uint8 (n, FRAMES, H, W, 3)."""
    benchmark = load_benchmark(source)
    reader, root = benchmark.reader(source), (source / benchmark.corpus_root).resolve()
    found = {}
    for name in ("corpus", *SIDES):
        path = cache / f"frames_{name}.npy"
        if not path.exists():
            if name == "corpus":
                size = benchmark.height, benchmark.width
                frames = np.concatenate(list(decoded(root, read_corpus(source), *size, FRAMES)))
            else:
                pairs = benchmark.queries[name]
                frames = np.stack([evenly(reader.frames(v), FRAMES) for v, _ in pairs])
            cache.mkdir(parents=True, exist_ok=True)
            np.save(path, frames)
        found[name] = np.load(path, mmap_mode="r")
    return found


class ScratchTask:
    """Augmented crops of clips whose frames are in memory."""

    def __init__(self, frames: np.ndarray, seed: int, asked: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        self.frames, self.seed, self.asked = frames, seed, asked
        settings = json.loads(json.dumps(NETWORKS[asked.network]))
        if "vit" in settings:
            patch = settings["vit"]["patch"]
            settings["vit"]["grid"] = [
                asked.frames, frames.shape[2] // patch, frames.shape[3] // patch
            ]  # fmt: skip
        encoder, _ = build_encoder(settings)
        batch = asked.videos * asked.crops
        self.module = EncoderTraining(
            encoder, loss=asked.loss, rank_temperature=asked.rank_temperature, rank_form="ap",
            nce_temperature=asked.nce_temperature, queue_length=asked.queue // batch * batch,
            head=ProjectionHead(settings["dim"], 512, 128, "layer"),
        )  # fmt: skip
        self.augment = Augmentation(**AUGMENTATION)

    def parameter_groups(self) -> list[dict[str, Any]]:
        both = [*self.module.encoder.parameters(), *self.module.head.parameters()]
        params = [p for p in both if p.requires_grad]
        return [{"name": "encoder", "params": params, "lr": self.asked.learning_rate}]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Crops are consecutive parts of a clip, with frames of each taken evenly."""
        rng = np.random.default_rng([self.seed, 17, step])
        chosen = rng.permutation(len(self.frames))[: self.asked.videos]
        crops = [
            self.augment(evenly(part, self.asked.frames), rng)
            for clip in chosen
            for part in np.split(np.asarray(self.frames[clip]), self.asked.crops)
        ]
        frames = torch.from_numpy(np.stack(crops)).unflatten(0, (-1, self.asked.crops))
        return {"frames": frames, "videos": torch.from_numpy(chosen)}

    def after_step(self, step: int) -> None:
        self.module.after_step(1 - 0.01 * schedule(step, self.asked.steps, 0))

    def export(self, folder: Path) -> None:
        raise NotImplementedError


class Score:
    """Precision@5 by windows and by one vector, and what chance gives."""

    def __init__(self, source: Path, frames: dict[str, np.ndarray], count: int) -> None:
        benchmark, labels = load_benchmark(source), read_corpus_labels(source)
        self.classes = np.array([labels.get(r["clip_id"], "") for r in read_corpus(source)])
        self.wanted = {s: np.array([name for _, name in benchmark.queries[s]]) for s in SIDES}
        self.frames, self.count = frames, count

    def _parts(self, name: str) -> list[torch.Tensor]:
        whole = self.frames[name]
        clips = np.stack([evenly(np.asarray(clip), self.count) for clip in whole])
        return list(torch.from_numpy(clips).split(AT_ONCE))

    @torch.inference_mode()
    def __call__(self, encoder: Any) -> dict[str, float]:
        encoder.eval()
        clips = torch.cat([encoder(part) for part in self._parts("corpus")])
        found = {}
        for side in SIDES:
            wanted = self.wanted[side][:, None]
            parts = self._parts(side)
            best = torch.cat([
                (encoder.windows(part, WINDOW)[0] @ clips.T).amax(1) for part in parts
            ])  # fmt: skip
            whole = torch.cat([encoder(part) for part in parts]) @ clips.T
            for name, scores in (("windows", best), ("one vector", whole)):
                top = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :5]
                found[f"{side} {name}"] = 100 * float((self.classes[top] == wanted).mean())
            found[f"{side} chance"] = 100 * float((self.classes == wanted).mean())
        encoder.train()
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="video_vit")
    parser.add_argument("--loss", choices=("nce", "rank", "moco"), default="nce")
    for name, kind, default in (
        ("steps", int, 300), ("seeds", int, 1), ("first-seed", int, 0), ("videos", int, 32),
        ("crops", int, 2), ("frames", int, 2), ("queue", int, 1280), ("learning-rate", float, 1e-3),
        ("nce-temperature", float, 0.1), ("rank-temperature", float, 0.05),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--cache", type=Path, default=Path("runs/encoder_features"))
    asked = parser.parse_args()
    frames = read_frames(asked.benchmark, asked.cache)
    score = Score(asked.benchmark, frames, asked.frames)
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        task: Any = ScratchTask(np.asarray(frames["corpus"]), seed, asked)
        before, began = score(task.module.encoder), time.process_time()
        history = run_plain(
            task,
            Schedule(
                steps=asked.steps, warmup_steps=min(40, asked.steps // 4), weight_decay=0.05,
                clip_norm=1.0, log_every=max(1, asked.steps // 10), seed=seed,
            ),
            on_log=lambda point: print(
                f"  step {point['step']}: loss {point['loss']:.3f}, own clip nearest "
                f"{point['nearest_is_positive']:.2f}, spread {point['spread']:.2f}", flush=True
            ),
        )  # fmt: skip
        seconds, after = time.process_time() - began, score(task.module.encoder)
        line = {
            "network": asked.network, "loss": asked.loss, "seed": seed, "steps": asked.steps,
            "before": before, "after": after, "last": history[-1]["loss"], "seconds": seconds,
        }  # fmt: skip
        with (asked.cache / "scratch.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
