"""What teaches Φ more than its trunk knows: losses and recipes on cached features, over seeds.

Claims: on sprites, self-supervision with all crops of a clip as positives makes the retrieval of
unseen classes worse than the trunk alone; a whitening of what changes between two shots of a clip,
and then the ranking loss with the farthest crop as the only positive, makes it better. On real
clips nothing that was tried adds to centred ImageNet features but a whitening of what changes
within one source. The trunk's features are computed once and kept.

    python performance/encoder_recipes.py sprites [EXPERIMENT.yaml] [--seeds 5] [--only NAME …]
    python performance/encoder_recipes.py real FOLDER [--seeds 5] [--only NAME …]

`sprites` needs an experiment whose backbone is made. `real` takes a folder with clips/ and
labels.csv (columns clip, source, rough_label); labels only measure.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_features import (
    Features,
    RealScore,
    SpritesScore,
    decoded,
    sprites_features,
    whitened,
)
from torch import nn

from selfshot.config.load import load_experiment
from selfshot.models.backbones import build_backbone
from selfshot.models.trunks import BackboneTrunk, EfficientNetTrunk
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.weights import load_backbone
from selfshot.ops.whitening import whitening
from selfshot.studies.run import plan_experiment
from selfshot.training.contrast import EncoderTraining
from selfshot.training.loop import Schedule, run_plain, schedule

CROPS = 4
FRAMES = {"backbone": 8, "efficientnet_lite0": 4}
"""Frames of a clip of sprites, by trunk."""

BASE: dict[str, Any] = {
    "layers": 0, "adapter": "linear", "loss": "nce", "rank_temperature": 0.05, "rank_form": "ap",
    "nce_temperature": 0.1, "positives": "farthest", "positive_cosine": 0.88, "whitening": 1.0,
    "steps": 200, "learning_rate": 1e-3, "weight_decay": 1e-2, "momentum": 0.99, "videos": 32,
    "queue": 1280,
}  # fmt: skip
"""The recipe that was chosen on the validation classes."""

ALL = {"positives": "all", "positive_cosine": 1.0}
TRANSFORMER = {
    **ALL, "layers": 1, "adapter": "none", "steps": 60, "learning_rate": 1e-4,
    "weight_decay": 1e-4, "videos": 32, "queue": 1280,
}  # fmt: skip
"""The quickstart's."""

RECIPES: dict[str, dict[str, Any]] = {
    "transformer, rank": {**TRANSFORMER, "loss": "rank"},
    "transformer, nce": TRANSFORMER,
    "transformer, moco": {**TRANSFORMER, "loss": "moco"},
    **{
        f"whitened {shrinkage:g}": {"adapter": "whitened", "whitening": shrinkage, "steps": 0}
        for shrinkage in (0.3, 1.0, 3.0)
    },
    "whitened, nce": {"adapter": "whitened_linear"},
    "whitened, rank": {"adapter": "whitened_linear", "loss": "rank", "rank_temperature": 0.01},
    "whitened, moco": {"adapter": "whitened_linear", "loss": "moco"},
    **{
        f"whitened, rank {form} {temperature:g}": {
            "adapter": "whitened_linear", "loss": "rank", "rank_form": form,
            "rank_temperature": temperature,
        }
        for form, temperature in (("ap", 0.003), ("ap", 0.05), ("ap", 0.2), ("paper", 0.01))
    },
    "adapter, rank": {**ALL, "loss": "rank"},
    "adapter, nce": ALL,
    "adapter, moco": {**ALL, "loss": "moco"},
    "farthest, moco": {"loss": "moco"},
    "farthest, nce": {},
    "farthest, nce 0.05": {"nce_temperature": 0.05},
    "farthest, nce 0.2": {"nce_temperature": 0.2},
    **{
        f"farthest, rank {form} {temperature:g}": {
            "loss": "rank", "rank_form": form, "rank_temperature": temperature,
        }
        for form in ("ap", "paper")
        for temperature in (0.01, 0.05, 0.1, 0.5, 2.0)
    },
}  # fmt: skip
"""Each is `BASE` with these changes."""


IMAGENET: dict[str, Any] = {}
"""What differs for features of EfficientNet."""


class CachedTask:
    """Crops of cached clips: tokens (n, frames, h, w, d), foreground, and which video each is."""

    def __init__(
        self, tokens: np.ndarray, foreground: np.ndarray, videos: np.ndarray, seed: int,
        recipe: dict[str, Any],
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.tokens, self.foreground, self.seed, self.recipe = tokens, foreground, seed, recipe
        self.groups = [np.flatnonzero(videos == video) for video in np.unique(videos)]
        encoder = VideoEncoder(
            Features(tokens.shape[-1]), tokens.shape[-1], recipe["layers"], 4,
            adapter=recipe["adapter"],
        )  # fmt: skip
        if recipe["adapter"].startswith("whitened"):
            encoder.set_whitening(self._fit(encoder))
        names = ("loss", "rank_temperature", "rank_form", "nce_temperature", "positives",
                 "positive_cosine")  # fmt: skip
        self.module = EncoderTraining(
            encoder, queue_length=recipe["queue"], **{name: recipe[name] for name in names}
        )

    @torch.no_grad()
    def _fit(self, encoder: VideoEncoder) -> torch.Tensor:
        """Of the crops of each clip that are farthest apart, as `EncoderTask` does."""
        parts = self.tokens.shape[1] // CROPS
        crops = [
            torch.from_numpy(np.asarray(x, np.float32)).unflatten(1, (CROPS, parts)).flatten(0, 1)
            for x in (self.tokens, self.foreground)
        ]
        vectors = encoder.embed(tuple(crops)).unflatten(0, (-1, CROPS))
        farthest = (vectors @ vectors.mT).flatten(1).argmin(1)
        rows = torch.arange(len(vectors))
        differences = vectors[rows, farthest // CROPS] - vectors[rows, farthest % CROPS]
        return whitening(differences, self.recipe["whitening"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        params = [p for p in self.module.encoder.parameters() if p.requires_grad]
        return [{"name": "encoder", "params": params, "lr": self.recipe["learning_rate"]}]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Each crop is a part of one clip; of a video of several clips each is of any of them."""
        rng = np.random.default_rng([self.seed, 17, step])
        chosen = rng.permutation(len(self.groups))[: self.recipe["videos"]]
        length = self.tokens.shape[1] // CROPS
        tokens, foreground = [], []
        for group in chosen:
            for crop in range(CROPS):
                clip = int(rng.choice(self.groups[group]))
                part = slice(crop * length, (crop + 1) * length)
                tokens.append(self.tokens[clip, part])
                foreground.append(self.foreground[clip, part])
        pair = [torch.from_numpy(np.stack(x).astype(np.float32)) for x in (tokens, foreground)]
        return {"features": tuple(pair), "videos": torch.from_numpy(chosen)}

    def after_step(self, step: int) -> None:
        rise = schedule(step, self.recipe["steps"], 0)
        self.module.after_step(1 - (1 - self.recipe["momentum"]) * rise)

    def export(self, folder: Path) -> None:
        raise NotImplementedError


def train(
    tokens: np.ndarray, foreground: np.ndarray, videos: np.ndarray, seed: int,
    recipe: dict[str, Any],
) -> tuple[VideoEncoder, dict[str, Any]]:  # fmt: skip
    task: Any = CachedTask(tokens, foreground, videos, seed, recipe)
    if not recipe["steps"]:
        return task.module.encoder.eval(), {"loss": None}
    history = run_plain(
        task,
        Schedule(
            steps=recipe["steps"], warmup_steps=20, weight_decay=recipe["weight_decay"],
            clip_norm=1.0, log_every=recipe["steps"], seed=seed,
        ),
    )  # fmt: skip
    return task.module.encoder.eval(), history[-1]


def show(name: str, scores: list[dict[str, float]]) -> None:
    cells = []
    for key in scores[0]:
        values = [score[key] for score in scores]
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        cells.append(f"{key} {np.mean(values):.1f}{spread}")
    print(f"{name:28}{'; '.join(cells)}", flush=True)


def sweep(
    tokens: Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray]], videos: np.ndarray,
    score: SpritesScore | RealScore, asked: argparse.Namespace, changes: dict[str, Any],
    name: str,
) -> None:  # fmt: skip
    """Train every recipe with every seed and print it; each result is kept beside the features."""
    kept = asked.cache / f"{name}.jsonl"
    known = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry
    width = score.features.shape[-1]
    plain = VideoEncoder(Features(width), width, 0, 1)
    show("trunk alone, frozen", [score(plain)])
    before = score.hits
    for name, own in RECIPES.items():
        if asked.only and name not in asked.only:
            continue
        recipe = {**BASE, **changes, **own}
        entries = []
        for seed in range(asked.seeds):
            key = json.dumps([name, recipe, seed], sort_keys=True)
            if key not in known:
                began = time.process_time()
                encoder, last = train(*tokens(recipe), videos, seed, recipe)
                known[key] = {
                    "key": key, "scores": score(encoder), "hits": score.hits,
                    "loss": last["loss"], "seconds": time.process_time() - began,
                }  # fmt: skip
                with kept.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
            entries.append(known[key])
        show(name, [entry["scores"] for entry in entries])
        if asked.paired:
            show_gain(before, [entry["hits"] for entry in entries])


def show_gain(before: dict[str, list[float]], after: list[dict[str, list[float]]]) -> None:
    """What a recipe adds to its trunk query by query, and how sure that is over other queries."""
    rng = np.random.default_rng(0)
    for name, hits in before.items():
        gain = 100 * (np.mean([seed[name] for seed in after], axis=0) - np.array(hits))
        drawn = gain[rng.integers(len(gain), size=(2000, len(gain)))].mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        print(f"    {name:20} {gain.mean():+.1f} ({low:+.1f} to {high:+.1f} over draws of queries)")


def sprites_trunk(asked: argparse.Namespace, backbone: Path) -> tuple[nn.Module, Path]:
    """The frozen trunk that was asked for, and the folder of its features."""
    if asked.trunk == "efficientnet_lite0":
        trunk = EfficientNetTrunk(side=224)
        trunk.prepare("cpu")
        return trunk.eval(), asked.cache / "efficientnet_lite0"
    pretrained = load_backbone(backbone / "export")
    module = BackboneTrunk(pretrained.backbone, frozen=True)
    module.foreground.load_state_dict(pretrained.foreground.state_dict())
    return module.eval(), asked.cache / backbone.name


def sprites(asked: argparse.Namespace) -> None:
    experiment = load_experiment(asked.input or Path("experiments/quickstart.yaml"))
    if asked.output:
        experiment = experiment.model_copy(update={"output": asked.output})
    folders = {plan.stage: Path(plan.path) for plan in plan_experiment(experiment)}
    if asked.made:
        folders |= dict(zip(("benchmark", "backbone"), asked.made, strict=True))
    source, frames = folders["benchmark"], FRAMES[asked.trunk]
    trunk, cache = sprites_trunk(asked, folders["backbone"])
    small = asked.trunk == "backbone"
    sprites_features(trunk, source, cache, frames=frames, keep_tokens=small)
    if asked.untrained:
        scores = []
        for seed in range(asked.seeds):
            torch.manual_seed(seed)
            settings = {"width": experiment.backbone.width, "dim": experiment.backbone.dim}
            fresh = BackboneTrunk(build_backbone(**settings), frozen=True).eval()
            nn.init.zeros_(fresh.foreground.weight)
            other = asked.cache / f"untrained-{seed}"
            sprites_features(fresh, source, other, frames=frames, keep_tokens=False)
            plain = VideoEncoder(Features(fresh.dim), fresh.dim, 0, 1)
            scores.append(SpritesScore(source, other)(plain))
        show("untrained network", scores)
    score = SpritesScore(source, cache)

    def tokens(recipe: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        corpus = score.corpus
        if recipe["layers"]:
            return corpus["tokens"], corpus["foreground"]
        return corpus["means"], corpus["mass"]

    changes = {} if small else IMAGENET
    sweep(tokens, np.arange(len(score.classes)), score, asked, changes, f"sprites-{cache.name}")


def real(asked: argparse.Namespace) -> None:
    rows = list(csv.DictReader((asked.input / "labels.csv").open(newline="")))
    path = asked.cache / "real.npy"
    if not path.exists():
        names = {file.stem: file.name for file in (asked.input / "clips").iterdir()}
        clips = [{"uri": names[row["clip"]]} for row in rows]
        trunk, found = EfficientNetTrunk(side=224), []
        with torch.inference_mode():
            for frames in decoded(asked.input / "clips", clips, 224, 224, 8):
                tokens, _ = trunk(torch.from_numpy(frames).flatten(0, 1))
                found.append(tokens.mean((2, 3)).unflatten(0, (-1, 8)).numpy())
        asked.cache.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate(found))
    features = np.load(path)
    score = RealScore(rows, features)
    sources = np.unique(score.sources, return_inverse=True)[1]
    show("ImageNet features, frozen", [score.of(features.mean(1))])
    centre = features.mean((0, 1))
    show("the same, centred", [score.of(features.mean(1) - centre)])
    show("and whitened within sources", [score.of(whitened(features - centre, sources))])
    centred = RealScore(rows, features - centre)
    centred.features /= np.linalg.norm(centred.features, axis=-1, keepdims=True)
    weights = np.ones(centred.features.shape[:2], np.float32)
    data = centred.features[:, :, None, None], weights[:, :, None, None]
    changes = {"videos": 32, "queue": 1280, "steps": 100, "positive_cosine": 1.0}
    sweep(lambda recipe: data, sources, centred, asked, changes, "real")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sprites", "real"))
    parser.add_argument("input", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--trunk", choices=tuple(FRAMES), default="backbone")
    parser.add_argument("--paired", action="store_true", help="compare query by query")
    parser.add_argument("--untrained", action="store_true", help="score networks at random too")
    parser.add_argument("--output", type=Path, help="where the experiment's store is")
    parser.add_argument("--made", type=Path, nargs=2, help="benchmark and backbone of a store")
    parser.add_argument("--cache", type=Path, default=Path("runs/encoder_features"))
    asked = parser.parse_args()
    {"sprites": sprites, "real": real}[asked.what](asked)


if __name__ == "__main__":
    main()
