"""Features of frozen trunks, computed once and kept, and how well they retrieve.

What `encoder_recipes.py` trains on and measures with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfshot.benchmarks.manifest import load_benchmark, read_corpus, read_corpus_labels
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.windows import window_vectors

WINDOW, AT_ONCE = 3, 50
SIDES = ("val", "test")


class Features(nn.Module):
    """Stands for a frozen trunk whose features were computed before."""

    frozen = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


def decoded(
    root: Path, rows: list[dict[str, Any]], height: int, width: int, frames: int
) -> Iterator[Any]:
    """Batches of frames of the clips."""
    with GuardedDecoder(num_frames=frames, height=height, width=width) as decoder:
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            clips = [Clip(str(root / r["uri"]), r.get("start_s"), r.get("end_s")) for r in part]
            yield np.stack([decoder.decode(clip) for clip in clips])


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
                for key, value in (("means", means), ("mass", mass),
                                   ("foreground", foreground.half())):  # fmt: skip
                    found[key].append(value.numpy())
                # Only queries ask by windows.
                if self.path.stem in SIDES:
                    windows = window_vectors(tokens, foreground, WINDOW)[0]
                    found["windows"].append(windows.half().numpy())
                if keep_tokens:
                    found["tokens"].append(tokens.half().numpy())
        arrays = {key: np.concatenate(parts) for key, parts in found.items()}
        if keep_tokens:
            np.save(self.tokens_path, arrays.pop("tokens"))
        np.savez(self.path, **arrays)

    def load(self) -> dict[str, np.ndarray]:
        arrays = dict(np.load(self.path))
        arrays["means"] = arrays["means"][:, :, None, None]
        arrays["mass"] = arrays["mass"][:, :, None, None]
        if self.tokens_path.exists():
            arrays["tokens"] = np.load(self.tokens_path, mmap_mode="r")
        return arrays


def sprites_features(
    trunk: nn.Module, source: Path, cache: Path, *, frames: int, keep_tokens: bool
) -> None:
    """Compute what is not in the cache yet."""
    benchmark = load_benchmark(source)
    reader = benchmark.reader(source)
    root = (source / benchmark.corpus_root).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        pairs = benchmark.queries[side]
        parts = (pairs[i : i + AT_ONCE] for i in range(0, len(pairs), AT_ONCE))
        clips = (np.stack([evenly(reader.frames(v), frames) for v, _ in part]) for part in parts)
        if not (kept := Pooled(cache, side)).path.exists():
            kept.make(trunk, clips, keep_tokens)
    if not (kept := Pooled(cache, "corpus")).path.exists():
        batches = decoded(root, read_corpus(source), benchmark.height, benchmark.width, frames)
        kept.make(trunk, batches, keep_tokens)


class SpritesScore:
    """Precision@5 of val and test queries, by their windows and by one vector.

    `hits` holds the share of each query, of the last encoder that was scored.
    """

    def __init__(self, source: Path, cache: Path) -> None:
        benchmark, labels = load_benchmark(source), read_corpus_labels(source)
        self.classes = np.array([labels.get(r["clip_id"], "") for r in read_corpus(source)])
        self.wanted = {
            side: np.array([name for _, name in benchmark.queries[side]]) for side in SIDES
        }
        self.corpus = Pooled(cache, "corpus").load()
        self.features = self.corpus["means"]
        self.queries = {side: Pooled(cache, side).load() for side in SIDES}
        self.hits: dict[str, list[float]] = {}

    @torch.inference_mode()
    def __call__(self, encoder: VideoEncoder) -> dict[str, float]:
        clips = self._clips(encoder, self.corpus)
        found, self.hits = {}, {}
        for side, kept in self.queries.items():
            whole = self._clips(encoder, kept) @ clips.T
            # One query at a time: its products stay in the cache.
            best = torch.stack([(q @ clips.T).amax(0) for q in self._windows(encoder, kept)])
            for name, scores in (("windows", best), ("one vector", whole)):
                top = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :5]
                right = self.classes[top] == self.wanted[side][:, None]
                found[f"{side} {name}"] = 100 * float(right.mean())
                self.hits[f"{side} {name}"] = right.mean(1).tolist()
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
            [encoder.embed((floats(tokens[i : i + step]), floats(weights[i : i + step])))
             for i in range(0, len(tokens), step)]
        )  # fmt: skip

    @staticmethod
    def _windows(encoder: VideoEncoder, kept: dict[str, np.ndarray]) -> Iterator[Tensor]:
        """The windows of one query after another."""
        for start in range(0, len(kept["windows"]), 20):
            if len(encoder.blocks):
                tokens = floats(kept["tokens"][start : start + 20])
                mixed = encoder.contextualise(tokens)
                foreground = floats(kept["foreground"][start : start + 20])
                vectors = window_vectors(mixed, foreground, WINDOW)[0]
            else:
                part = kept["windows"][start : start + 20]
                vectors = functional.normalize(floats(part), dim=-1)
            yield from encoder.adapter(vectors)


def evenly(frames: np.ndarray, count: int) -> np.ndarray:
    """The middle frame of each of `count` equal parts."""
    return frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]


def floats(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


class RealScore:
    """Precision@5 over clips, and averaged over rough labels; a clip's own source is left out.

    A clip counts if a clip of another source has its label.
    """

    def __init__(self, rows: list[dict[str, str]], features: np.ndarray) -> None:
        self.labels = np.array([row["rough_label"] for row in rows])
        self.sources = np.array([row["source"] for row in rows])
        self.features = features
        self.hits: dict[str, list[float]] = {}

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
            by_label[label].append(float(right[order].mean()))
            chances.append(right.mean())
        clips = [value for values in by_label.values() for value in values]
        self.hits = dict(by_label)
        return {
            "over labels": 100 * float(np.mean([np.mean(v) for v in by_label.values()])),
            "over clips": 100 * float(np.mean(clips)),
            "chance over clips": 100 * float(np.mean(chances)),
        }

    @torch.inference_mode()
    def __call__(self, encoder: VideoEncoder) -> dict[str, float]:
        tokens = floats(self.features)[:, :, None, None]
        return self.of(encoder.embed((tokens, torch.ones(tokens.shape[:-1]))).numpy())


def whitened(features: np.ndarray, sources: np.ndarray, shrinkage: float = 3.0) -> np.ndarray:
    """Pooled features whose variance within a source is alike in all directions, but for a share.

    What changes within a source tells little of what it shows, so it counts less. With few clips
    most directions are guesses: `shrinkage` times the mean variance is added to each.
    """
    grouped = [features[sources == source] for source in np.unique(sources)]
    frames = np.concatenate([(g - g.mean((0, 1))).reshape(-1, g.shape[-1]) for g in grouped])
    values, axes = np.linalg.eigh(frames.T @ frames / len(frames))
    return features.mean(1) @ axes / np.sqrt(values.clip(0) + shrinkage * values.mean())
