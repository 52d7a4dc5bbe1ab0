"""How good retrieval is while Φ trains: nearest neighbours of videos of unseen classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from selfshot.benchmarks.manifest import load_benchmark, read_corpus, read_corpus_labels
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.video import VideoError

AT_ONCE = 16


class NeighbourProbe:
    """Precision of the nearest corpus clips of val queries, by one vector each.

    The queries are of unseen classes and never train. Labels of the corpus only measure: Φ does
    not see them. Frames are decoded at the first call and kept, as bytes.
    """

    def __init__(
        self, folder: Path, *, seed: int, queries: int = 120, clips: int = 1000, num_frames: int = 4
    ) -> None:
        """Choose the videos; nothing is decoded yet.

        Args:
            folder: of the benchmark.
            seed: of the choice.
            queries: val queries, at most.
            clips: labelled clips of the corpus, at most.
            num_frames: of each, sampled evenly.
        """
        self.benchmark, self.folder, self.num_frames = load_benchmark(folder), folder, num_frames
        rng = np.random.default_rng([seed, 23])
        labels = read_corpus_labels(folder)
        known = set(labels.values())
        pairs = [pair for pair in self.benchmark.queries["val"] if pair[1] in known]
        rows = [row for row in read_corpus(folder) if row["clip_id"] in labels]
        self.pairs = [pairs[i] for i in sorted(rng.permutation(len(pairs))[:queries])]
        self.rows = [rows[i] for i in sorted(rng.permutation(len(rows))[:clips])]
        self.labels = labels
        self._frames: tuple[np.ndarray, np.ndarray] | None = None
        self._sources: list[str] = []

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the queries, and of the clips that can be decoded."""
        if self._frames is not None:
            return self._frames
        benchmark = self.benchmark
        reader = benchmark.reader(self.folder)
        # The annotations of a large benchmark take seconds to parse: they are read here alone.
        videos = reader.annotations.videos
        self._sources = [videos[video].source_id or "no source" for video, _ in self.pairs]
        queries = np.stack([_evenly(reader.frames(v), self.num_frames) for v, _ in self.pairs])
        root = (self.folder / benchmark.corpus_root).resolve()
        decoder = GuardedDecoder(
            num_frames=self.num_frames, height=benchmark.height, width=benchmark.width
        )
        good: list[dict[str, Any]] = []
        clips: list[np.ndarray] = []
        with decoder:
            wanted = (Clip(str(root / r["uri"]), r["start_s"], r["end_s"]) for r in self.rows)
            for row, frames in zip(self.rows, decoder.decode_many(wanted), strict=True):
                if not isinstance(frames, VideoError):
                    good.append(row)
                    clips.append(frames.frames)
        self.rows = good
        self._frames = queries, np.stack(clips)
        return self._frames

    @torch.no_grad()
    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Precision at 1 and 5 in shares, and what chance would give; nothing without labels."""
        if not self.pairs or len(self.rows) < 2:
            return {}
        training = encoder.training
        encoder.eval()
        device = next(encoder.parameters()).device

        def embed(frames: np.ndarray) -> torch.Tensor:
            parts = torch.from_numpy(frames).split(AT_ONCE)
            return torch.cat([encoder(part.to(device)).float() for part in parts])

        queries, clips = self._read()
        cosines = (embed(queries) @ embed(clips).T).cpu().numpy()
        encoder.train(training)
        sources = np.array([row["source_id"] for row in self.rows])
        names = np.array([self.labels[row["clip_id"]] for row in self.rows])
        at_1, at_5, chance = [], [], []
        of_queries = zip(self.pairs, self._sources, strict=True)
        for cosine, ((_, wanted), own) in zip(cosines, of_queries, strict=True):
            allowed = sources != own
            order = np.argsort(-cosine[allowed], kind="stable")
            right = names[allowed] == wanted
            at_1.append(right[order[:1]].mean())
            at_5.append(right[order[:5]].mean())
            chance.append(right.mean())
        return {
            "probe_precision_1": float(np.mean(at_1)),
            "probe_precision_5": float(np.mean(at_5)),
            "probe_chance": float(np.mean(chance)),
        }


def _evenly(frames: np.ndarray, count: int) -> np.ndarray:
    """The middle frame of each of `count` equal parts."""
    return frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]
