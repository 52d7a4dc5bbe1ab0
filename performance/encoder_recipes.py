"""What teaches Φ more than its trunk knows: losses and recipes on cached features, over seeds.

Claims: on sprites, self-supervision with all crops of a clip as positives makes the retrieval of
unseen classes worse than the trunk alone, and with the farthest crop as the only positive, of clips
that change, better; on real clips nothing that was tried adds to centred ImageNet features but a
whitening of what changes within one source. The trunk's features are computed once and kept.

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
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfshot.benchmarks.manifest import load_benchmark, read_corpus, read_corpus_labels
from selfshot.config.load import load_experiment
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.models.backbones import build_backbone
from selfshot.models.trunks import BackboneTrunk, EfficientNetTrunk
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.weights import load_backbone
from selfshot.models.windows import window_vectors
from selfshot.studies.run import plan_experiment
from selfshot.training.contrast import EncoderTraining
from selfshot.training.loop import run_plain, schedule

FRAMES, CROPS, WINDOW, AT_ONCE = 8, 4, 3, 50
SIDES = ("val", "test")
Score = Callable[[VideoEncoder], dict[str, float]]

BASE: dict[str, Any] = {
    "layers": 0, "adapter": True, "loss": "nce", "rank_temperature": 0.05, "rank_form": "ap",
    "nce_temperature": 0.1, "positives": "farthest", "positive_cosine": 0.88, "steps": 200,
    "learning_rate": 1e-3, "weight_decay": 1e-2, "momentum": 0.99, "videos": 32, "queue": 1280,
}  # fmt: skip
"""The recipe that was chosen on the validation classes."""

ALL = {"positives": "all", "positive_cosine": 1.0}
TRANSFORMER = {
    **ALL, "layers": 1, "adapter": False, "steps": 60, "learning_rate": 1e-4,
    "weight_decay": 1e-4, "videos": 32, "queue": 1280,
}  # fmt: skip
"""The quickstart's."""

RECIPES: dict[str, dict[str, Any]] = {
    "transformer, rank": {**TRANSFORMER, "loss": "rank"},
    "transformer, nce": TRANSFORMER,
    "transformer, moco": {**TRANSFORMER, "loss": "moco"},
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


class Features(nn.Module):
    """Stands for a frozen trunk whose features were computed before."""

    frozen = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


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
        names = ("loss", "rank_temperature", "rank_form", "nce_temperature", "positives",
                 "positive_cosine")  # fmt: skip
        self.module = EncoderTraining(
            encoder, queue_length=recipe["queue"], **{name: recipe[name] for name in names}
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        params = [p for p in self.module.encoder.parameters() if p.requires_grad]
        return [{"name": "encoder", "params": params, "lr": self.recipe["learning_rate"]}]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Each crop is a part of one clip; of a video of several clips each is of any of them."""
        rng = np.random.default_rng([self.seed, 17, step])
        chosen = rng.permutation(len(self.groups))[: self.recipe["videos"]]
        length = FRAMES // CROPS
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
    history = run_plain(
        task, steps=recipe["steps"], warmup_steps=20, weight_decay=recipe["weight_decay"],
        clip_norm=1.0, log_every=recipe["steps"], seed=seed,
    )  # fmt: skip
    return task.module.encoder.eval(), history[-1]


def decoded(root: Path, rows: list[dict[str, Any]], height: int, width: int) -> Iterator[Any]:
    """Batches of frames of the clips."""
    with GuardedDecoder(num_frames=FRAMES, height=height, width=width) as decoder:
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            clips = [Clip(str(root / r["uri"]), r.get("start_s"), r.get("end_s")) for r in part]
            yield np.stack(list(decoder.decode_many(clips)))


class Pooled:
    """What is kept of the clips of one side: pooled frames and windows, or all tokens."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.npz"
        self.tokens_path = folder / f"{name}_tokens.npy"

    def make(self, trunk: nn.Module, batches: Iterator[np.ndarray], keep_tokens: bool) -> None:
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        with torch.inference_mode():
            for frames in batches:
                tokens, foreground = VideoEncoder(trunk, trunk.dim, 0, 1).trunk_tokens(
                    torch.from_numpy(frames.copy())
                )
                weights = foreground.clamp_min(1e-4)
                mass = weights.sum((2, 3))
                means = (tokens * weights[..., None]).sum((2, 3)) / mass[..., None]
                windows = window_vectors(tokens, foreground, WINDOW)[0]
                for key, value in (("means", means), ("mass", mass), ("windows", windows.half()),
                                   ("foreground", foreground.half())):  # fmt: skip
                    found[key].append(value.numpy())
                if keep_tokens:
                    found["tokens"].append(tokens.half().numpy())
        arrays = {key: np.concatenate(parts) for key, parts in found.items()}
        if keep_tokens:
            np.save(self.tokens_path, arrays.pop("tokens"))
        # Windows are only asked of queries.
        np.savez(self.path, **arrays)

    def load(self) -> dict[str, np.ndarray]:
        arrays = dict(np.load(self.path))
        arrays["means"] = arrays["means"][:, :, None, None]
        arrays["mass"] = arrays["mass"][:, :, None, None]
        if self.tokens_path.exists():
            arrays["tokens"] = np.load(self.tokens_path, mmap_mode="r")
        return arrays


def sprites_features(trunk: nn.Module, source: Path, cache: Path, *, keep_tokens: bool) -> None:
    """Compute what is not in the cache yet."""
    benchmark = load_benchmark(source)
    reader = benchmark.reader(source)
    root = (source / benchmark.corpus_root).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        pairs = benchmark.queries[side]
        parts = (pairs[i : i + AT_ONCE] for i in range(0, len(pairs), AT_ONCE))
        frames = (np.stack([reader.frames(video) for video, _ in part]) for part in parts)
        if not (kept := Pooled(cache, side)).path.exists():
            kept.make(trunk, frames, keep_tokens)
    if not (kept := Pooled(cache, "corpus")).path.exists():
        batches = decoded(root, read_corpus(source), benchmark.height, benchmark.width)
        kept.make(trunk, batches, keep_tokens)


class SpritesScore:
    """Precision@5 of val and test queries, by their windows and by one vector."""

    def __init__(self, source: Path, cache: Path) -> None:
        benchmark, labels = load_benchmark(source), read_corpus_labels(source)
        self.classes = np.array([labels.get(r["clip_id"], "") for r in read_corpus(source)])
        self.wanted = {
            side: np.array([name for _, name in benchmark.queries[side]]) for side in SIDES
        }
        self.corpus = Pooled(cache, "corpus").load()
        self.queries = {side: Pooled(cache, side).load() for side in SIDES}

    @torch.inference_mode()
    def __call__(self, encoder: VideoEncoder) -> dict[str, float]:
        clips = self._clips(encoder, self.corpus)
        found = {}
        for side, kept in self.queries.items():
            whole = self._clips(encoder, kept) @ clips.T
            best = torch.cat(
                [(query @ clips.T).unflatten(0, (len(part), -1)).amax(1)
                 for part, query in self._windows(encoder, kept)]
            )  # fmt: skip
            for name, scores in (("windows", best), ("one vector", whole)):
                top = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :5]
                right = self.classes[top] == self.wanted[side][:, None]
                found[f"{side} {name}"] = 100 * float(right.mean())
        return found

    @staticmethod
    def _clips(encoder: VideoEncoder, kept: dict[str, np.ndarray]) -> Tensor:
        """One vector for each clip."""
        mixes = len(encoder.blocks) > 0
        tokens, weights = (
            (kept["tokens"], kept["foreground"]) if mixes else (kept["means"], kept["mass"])
        )
        step = AT_ONCE if mixes else len(tokens)
        return torch.cat(
            [encoder.embed((_floats(tokens[i : i + step]), _floats(weights[i : i + step])))
             for i in range(0, len(tokens), step)]
        )  # fmt: skip

    @staticmethod
    def _windows(
        encoder: VideoEncoder, kept: dict[str, np.ndarray]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Windows of some queries at a time, all in one row."""
        for start in range(0, len(kept["windows"]), 20):
            part = kept["windows"][start : start + 20]
            if len(encoder.blocks):
                tokens = _floats(kept["tokens"][start : start + 20])
                mixed = encoder.contextualise(tokens)
                foreground = _floats(kept["foreground"][start : start + 20])
                vectors = window_vectors(mixed, foreground, WINDOW)[0]
            else:
                vectors = functional.normalize(_floats(part), dim=-1)
            yield part, encoder.adapter(vectors).flatten(0, 1)


def _floats(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


class RealScore:
    """Precision@5 over clips, and averaged over rough labels; a clip's own source is left out.

    A clip counts if a clip of another source has its label.
    """

    def __init__(self, rows: list[dict[str, str]], features: np.ndarray) -> None:
        self.labels = np.array([row["rough_label"] for row in rows])
        self.sources = np.array([row["source"] for row in rows])
        self.features = features

    def of(self, vectors: np.ndarray) -> dict[str, float]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit.T
        by_label, chances = defaultdict(list), []
        for i, label in enumerate(self.labels):
            others = self.sources != self.sources[i]
            right = self.labels[others] == label
            if not label or not right.any():
                continue
            order = np.argsort(-cosines[i][others], kind="stable")[:5]
            by_label[label].append(right[order].mean())
            chances.append(right.mean())
        clips = [value for values in by_label.values() for value in values]
        return {
            "over labels": 100 * float(np.mean([np.mean(v) for v in by_label.values()])),
            "over clips": 100 * float(np.mean(clips)),
            "chance over clips": 100 * float(np.mean(chances)),
        }

    @torch.inference_mode()
    def __call__(self, encoder: VideoEncoder) -> dict[str, float]:
        tokens = _floats(self.features)[:, :, None, None]
        return self.of(encoder.embed((tokens, torch.ones(tokens.shape[:-1]))).numpy())


def show(name: str, scores: list[dict[str, float]]) -> None:
    cells = []
    for key in scores[0]:
        values = [score[key] for score in scores]
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        cells.append(f"{key} {np.mean(values):.1f}{spread}")
    print(f"{name:28}{'; '.join(cells)}", flush=True)


def sweep(
    tokens: Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray]], videos: np.ndarray,
    score: Score, asked: argparse.Namespace, changes: dict[str, Any],
) -> None:  # fmt: skip
    """Train every recipe with every seed and print it; each result is kept beside the features."""
    kept = asked.cache / f"{asked.what}.jsonl"
    known = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry["scores"]
    for name, own in RECIPES.items():
        if asked.only and name not in asked.only:
            continue
        recipe = {**BASE, **changes, **own}
        scores = []
        for seed in range(asked.seeds):
            key = json.dumps([name, recipe, seed], sort_keys=True)
            if key not in known:
                began = time.process_time()
                encoder, last = train(*tokens(recipe), videos, seed, recipe)
                known[key] = score(encoder)
                with kept.open("a") as file:
                    seconds = time.process_time() - began
                    entry = {"key": key, "scores": known[key], "loss": last["loss"]}
                    file.write(json.dumps({**entry, "seconds": seconds}) + "\n")
            scores.append(known[key])
        show(name, scores)


def sprites(asked: argparse.Namespace) -> None:
    experiment = load_experiment(asked.input or Path("experiments/quickstart.yaml"))
    if asked.output:
        experiment = experiment.model_copy(update={"output": asked.output})
    folders = {plan.stage: Path(plan.path) for plan in plan_experiment(experiment)}
    if asked.made:
        folders |= dict(zip(("benchmark", "backbone"), asked.made, strict=True))
    source = folders["benchmark"]
    pretrained = load_backbone(folders["backbone"] / "export")
    trunk = BackboneTrunk(pretrained.backbone, frozen=True)
    trunk.foreground.load_state_dict(pretrained.foreground.state_dict())
    cache = asked.cache / folders["backbone"].name
    sprites_features(trunk.eval(), source, cache, keep_tokens=True)
    if asked.untrained:
        scores = []
        for seed in range(asked.seeds):
            torch.manual_seed(seed)
            settings = {"width": experiment.backbone.width, "dim": experiment.backbone.dim}
            fresh = BackboneTrunk(build_backbone(**settings), frozen=True).eval()
            nn.init.zeros_(fresh.foreground.weight)
            other = asked.cache / f"untrained-{seed}"
            sprites_features(fresh, source, other, keep_tokens=False)
            plain = VideoEncoder(Features(fresh.dim), fresh.dim, 0, 1)
            scores.append(SpritesScore(source, other)(plain))
        show("untrained network", scores)
    score = SpritesScore(source, cache)
    dim = score.corpus["means"].shape[-1]
    show("trunk alone, frozen", [score(VideoEncoder(Features(dim), dim, 0, 1))])

    def tokens(recipe: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        corpus = score.corpus
        if recipe["layers"]:
            return corpus["tokens"], corpus["foreground"]
        return corpus["means"], corpus["mass"]

    sweep(tokens, np.arange(len(score.classes)), score, asked, {})


def real(asked: argparse.Namespace) -> None:
    rows = list(csv.DictReader((asked.input / "labels.csv").open(newline="")))
    path = asked.cache / "real.npy"
    if not path.exists():
        names = {file.stem: file.name for file in (asked.input / "clips").iterdir()}
        clips = [{"uri": names[row["clip"]]} for row in rows]
        trunk, found = EfficientNetTrunk(side=224), []
        with torch.inference_mode():
            for frames in decoded(asked.input / "clips", clips, 224, 224):
                tokens, _ = trunk(torch.from_numpy(frames).flatten(0, 1))
                found.append(tokens.mean((2, 3)).unflatten(0, (-1, FRAMES)).numpy())
        asked.cache.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate(found))
    features = np.load(path)
    score = RealScore(rows, features)
    sources = np.unique(score.sources, return_inverse=True)[1]
    show("ImageNet features, frozen", [score.of(features.mean(1))])
    centre = features.mean((0, 1))
    show("the same, centred", [score.of(features.mean(1) - centre)])
    show("and whitened within sources", [score.of(_whitened(features - centre, sources))])
    centred = RealScore(rows, features - centre)
    centred.features /= np.linalg.norm(centred.features, axis=-1, keepdims=True)
    weights = np.ones(centred.features.shape[:2], np.float32)
    data = centred.features[:, :, None, None], weights[:, :, None, None]
    changes = {"videos": 32, "queue": 1280, "steps": 100, "positive_cosine": 1.0}
    sweep(lambda recipe: data, sources, centred, asked, changes)


def _whitened(features: np.ndarray, sources: np.ndarray, shrinkage: float = 3.0) -> np.ndarray:
    """Pooled features whose variance within a source is alike in all directions, but for a share.

    What changes within a source tells little of what it shows, so it counts less. With few clips
    most directions are guesses: `shrinkage` times the mean variance is added to each.
    """
    grouped = [features[sources == source] for source in np.unique(sources)]
    frames = np.concatenate([(g - g.mean((0, 1))).reshape(-1, g.shape[-1]) for g in grouped])
    values, axes = np.linalg.eigh(frames.T @ frames / len(frames))
    return features.mean(1) @ axes / np.sqrt(values.clip(0) + shrinkage * values.mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sprites", "real"))
    parser.add_argument("input", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--untrained", action="store_true", help="score networks at random too")
    parser.add_argument("--output", type=Path, help="where the experiment's store is")
    parser.add_argument("--made", type=Path, nargs=2, help="benchmark and backbone of a store")
    parser.add_argument("--cache", type=Path, default=Path("runs/encoder_features"))
    asked = parser.parse_args()
    {"sprites": sprites, "real": real}[asked.what](asked)


if __name__ == "__main__":
    main()
