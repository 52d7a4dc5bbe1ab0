"""What the quickstart's choices are worth, on a run that is finished.

Claims: retrieval is better from the roots of the features below the backbone's projection than from
its tokens, and self-supervision adds nothing to them here; a token is told from the rest of its
query better by tokens and stride-4 features together than by either; a score that counts how
clear the mask is orders tracks better. Prints each for the validation classes, on which the
choices were made, and for the test classes.

    python performance/quickstart_choices.py [EXPERIMENT.yaml]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn import functional

from selfshot.benchmarks.manifest import (
    Benchmark,
    load_benchmark,
    read_corpus,
    read_corpus_labels,
)
from selfshot.config.load import load_experiment
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.evaluation import episodes
from selfshot.models.backbone import normalise_frames
from selfshot.models.trained_encoder import load_encoder
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.weights import load_backbone
from selfshot.retrieval.search import draw
from selfshot.studies.run import plan_experiment

AT_ONCE, WINDOW, SPLITS = 32, 3, ("val", "test")


class Pooled:
    """Foreground-weighted means of three kinds of features, of clips and of windows."""

    kinds = ("tokens, after the projection", "features below it", "their roots")

    def __init__(self, backbone: Path) -> None:
        self.backbone = load_backbone(backbone)

    def features(self, frames: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
        clips = torch.from_numpy(frames.copy())
        tokens, _, deep = self.backbone.backbone.features(normalise_frames(clips.flatten(0, 1)))
        foreground = self.backbone.foreground(tokens.permute(0, 2, 3, 1))[..., 0].sigmoid()
        planes = [tokens, deep, deep.sqrt()]
        shape = clips.shape[:2]
        return [x.permute(0, 2, 3, 1).unflatten(0, shape) for x in planes], foreground.unflatten(
            0, shape
        )

    def clips(self, frames: np.ndarray) -> list[np.ndarray]:
        planes, foreground = self.features(frames)
        return [VideoEncoder.pool(x, foreground).numpy() for x in planes]

    def windows(self, frames: np.ndarray) -> list[np.ndarray]:
        planes, foreground = self.features(frames)
        weights = foreground.clamp_min(1e-4).flatten(0, 1)[:, None]
        found = []
        for x in planes:
            weighted = x.flatten(0, 1).permute(0, 3, 1, 2) * weights
            sums = functional.avg_pool2d(weighted, WINDOW, 1)
            vectors = functional.normalize(sums, dim=1).permute(0, 2, 3, 1)
            found.append(vectors.unflatten(0, (len(frames), -1)).flatten(1, 3).numpy())
        return found


class Trained:
    """The same of Φ as the run trained it."""

    kinds = ("the roots, after self-supervision",)

    def __init__(self, encoder: Path) -> None:
        self.encoder = load_encoder(encoder)

    def clips(self, frames: np.ndarray) -> list[np.ndarray]:
        return [self.encoder.embed(frames.copy())]

    def windows(self, frames: np.ndarray) -> list[np.ndarray]:
        return [self.encoder.windows(frames.copy(), WINDOW)[0]]


def corpus_batches(folder: Path, benchmark: Benchmark, num_frames: int) -> Iterator[np.ndarray]:
    root = (folder / benchmark.corpus_root).resolve()
    rows = read_corpus(folder)
    decoder = GuardedDecoder(num_frames=num_frames, height=benchmark.height, width=benchmark.width)
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        clips = [Clip(str(root / r["uri"]), r["start_s"], r["end_s"]) for r in part]
        yield np.stack([decoder.decode(clip) for clip in clips])


def joined(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def retrieval(folders: dict[str, Path], num_frames: int) -> dict[tuple[str, str], np.ndarray]:
    """Print precision; returns the scores of the run's own Φ's trunk for each split."""
    folder = folders["benchmark"]
    benchmark = load_benchmark(folder)
    reader, labels = benchmark.reader(folder), read_corpus_labels(folder)
    classes = np.array([labels.get(row["clip_id"], "") for row in read_corpus(folder)])
    ways = [Pooled(folders["backbone"] / "export"), Trained(folders["encoder"] / "export")]
    corpus: list[list[list[np.ndarray]]] = [[] for _ in ways]
    for frames in corpus_batches(folder, benchmark, num_frames):
        for way, found in zip(ways, corpus, strict=True):
            found.append(way.clips(frames))
    scores: dict[tuple[str, str], np.ndarray] = {}
    for way, found in zip(ways, corpus, strict=True):
        for split in SPLITS:
            pairs = benchmark.queries[split]
            windows = []
            for start in range(0, len(pairs), AT_ONCE):
                part = [reader.frames(video) for video, _ in pairs[start : start + AT_ONCE]]
                windows.append(way.windows(np.stack(part)))
            of_kind = zip(way.kinds, joined(windows), joined(found), strict=True)
            for kind, queries, clips in of_kind:
                best = np.stack([(query @ clips.T).max(0) for query in queries])
                scores[split, kind] = best
    wanted = {split: np.array([name for _, name in benchmark.queries[split]]) for split in SPLITS}
    print("retrieval by windows          val P@1  P@5   test P@1  P@5")
    for kind in (*Pooled.kinds, *Trained.kinds):
        cells = []
        for split in SPLITS:
            top = np.argsort(-scores[split, kind], axis=1)[:, :5]
            right = classes[top] == wanted[split][:, None]
            cells += [100 * right[:, 0].mean(), 100 * right.mean()]
        print(f"{kind:36}" + "  ".join(f"{cell:5.1f}" for cell in cells))
    return scores


def area_under_curve(scores: np.ndarray, inside: np.ndarray) -> float:
    ranks, count = rankdata(scores), inside.sum()
    return float((ranks[inside].sum() - count * (count + 1) / 2) / (count * (len(inside) - count)))


def likeness(folders: dict[str, Path]) -> None:
    """Print how well one oracle support's prototype tells the target's tokens from the rest."""
    folder = folders["benchmark"]
    benchmark = load_benchmark(folder)
    reader = benchmark.reader(folder)
    ids = {name: i for i, name in reader.annotations.categories.items()}
    backbone = load_backbone(folders["backbone"] / "export")
    print("\nlikeness to one oracle support, area under the curve     val    test")
    means: dict[str, list[float]] = {}
    for split in SPLITS:
        found: dict[str, list[float]] = {}
        for video, name in benchmark.queries[split]:
            masks = reader.tracks(video, stride=8, category_id=ids[name]).masks
            if not len(masks):
                continue
            cover = masks.max(0).ravel()
            judged = (cover > 0.5) | (cover < 0.05)
            pool = [other for other in benchmark.supports[split][name] if other != video]
            (support,) = draw(pool, 1, [0, 31, video])
            levels = []
            for clip in (reader.frames(video), reader.frames(support)):
                images = normalise_frames(torch.from_numpy(clip.copy()))
                tokens, fine, _ = backbone.backbone.features(images)
                seen = backbone.foreground(tokens.permute(0, 2, 3, 1))[..., 0].sigmoid()
                parts = functional.adaptive_avg_pool2d(fine, tokens.shape[-2:])
                levels.append(([functional.normalize(x, dim=1) for x in (tokens, parts)], seen))
            (of_query, _), (of_support, weights) = levels
            cosines = []
            for query, own in zip(of_query, of_support, strict=True):
                prototype = functional.normalize((own * weights[:, None]).sum((0, 2, 3)), dim=0)
                cosine = torch.einsum("tdhw,d->thw", query, prototype).ravel().numpy()
                cosines.append((cosine - cosine.mean()) / cosine.std())
            inside = cover[judged] > 0.5
            if not 0 < inside.sum() < len(inside):
                continue
            for kind, scores in (
                ("tokens", cosines[0]),
                ("stride-4 features", cosines[1]),
                ("both", cosines[0] + cosines[1]),
            ):
                found.setdefault(kind, []).append(area_under_curve(scores[judged], inside))
        for kind, values in found.items():
            means.setdefault(kind, []).append(float(np.mean(values)))
    for kind, values in means.items():
        print(f"{kind:54}" + "  ".join(f"{value:.3f}" for value in values))


def track_scores(folders: dict[str, Path], scores: dict[tuple[str, str], np.ndarray]) -> None:
    """Print AP50 with the mean foreground alone as a track's score, and with the product."""
    folder = folders["benchmark"]
    benchmark = load_benchmark(folder)
    ids = [row["clip_id"] for row in read_corpus(folder)]
    rows = [{"supports": s, "shots": 1, "extra": 0} for s in ("random", "self_shot", "oracle")]
    product = episodes.track_scores

    def foreground_alone(logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor):
        return product(logits, torch.full_like(masks, torch.inf), valid)

    ways: dict[str, Callable[..., Any]] = {"foreground": foreground_alone, "product": product}
    print("\nscore of a track        AP50 at 1 shot: random, self-shot, oracle")
    with tempfile.TemporaryDirectory() as scratch:
        for split in SPLITS:
            best = scores[split, Trained.kinds[0]].argmax(1)
            chosen = {
                f"{video}:{name}": {
                    "self_shot": [ids[best[i]]],
                    "random": draw(ids, 1, [0, 29, video]),
                    "oracle": draw(
                        [v for v in benchmark.supports[split][name] if v != video],
                        1,
                        [0, 31, video],
                    ),
                }
                for i, (video, name) in enumerate(benchmark.queries[split])
            }
            supports = Path(scratch) / "supports.json"
            supports.write_text(json.dumps(chosen))
            for name, way in ways.items():
                with mock.patch.object(episodes, "track_scores", way):
                    result = episodes.evaluate_fold(
                        {
                            "benchmark": str(folder),
                            "models": {"vis": str(folders["vis"] / "export")},
                            "rows": rows,
                            "supports": str(supports),
                            "split": split,
                            "fold": 0,
                            "folds": 1,
                            "max_queries": None,
                            "predictions": scratch,
                        }
                    )
                cells = "  ".join(f"{row['AP50']:5.1f}" for row in result["rows"])
                print(f"{split:5} {name:18}{cells}", flush=True)


@torch.inference_mode()
def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "experiments/quickstart.yaml")
    experiment = load_experiment(path)
    folders = {plan.stage: Path(plan.path) for plan in plan_experiment(experiment)}
    missing = [name for name in ("encoder", "vis") if not folders[name].exists()]
    if missing:
        sys.exit(f"{path}: {', '.join(missing)} not made yet; run: selfshot run {path}")
    scores = retrieval(folders, experiment.embedding.num_frames)
    likeness(folders)
    track_scores(folders, scores)


if __name__ == "__main__":
    main()
