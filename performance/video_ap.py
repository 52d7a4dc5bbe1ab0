"""How much faster than a plain loop is the score of a result as large as YouTube-VIS's val set?

Claim: comparing the masks is several times as fast as a loop over pairs and frames that calls
pycocotools' merge and area, gives the same IoU to 1e-9, and the whole takes seconds and below 1 GB.
Makes videos of 30 frames of 720p with one to four moving blobs and ten predictions each: near a
blob, partly on one, or elsewhere. With `--labels 2` each mask is given under two labels, as models
do that classify queries. Prints the processor's times of both over the same videos, their ratio,
and for a process of its own that reads and scores all files, its times and its peak memory.

With `--slits 2` each column of a mask has three pieces instead of one, as legs and fences have.

    python performance/video_ap.py [--videos 300] [--plain 30] [--labels 1] [--slits 0]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from selfshot.data.ytvis import (
    Annotations,
    Prediction,
    Track,
    Video,
    load_annotations,
    load_results,
    save_annotations,
    save_results,
)
from selfshot.evaluation.matches import compare_tracks
from selfshot.evaluation.video_ap import score_tracks
from selfshot.ops.masks import Rle

HEIGHT, WIDTH, FRAMES, PREDICTIONS, CATEGORIES, ROUNDS = 720, 1280, 30, 10, 40, 7


class Blob:
    """A wobbling ellipse that drifts: an outline above and below a line, column by column."""

    def __init__(self, rng: np.random.Generator, slits: int = 0) -> None:
        self.slits = slits
        self.centre = rng.uniform((0.2, 0.2), (0.8, 0.8)) * (WIDTH, HEIGHT)
        self.speed = rng.uniform(-6, 6, 2)
        self.radii = rng.uniform(40, 220, 2)
        self.waves = rng.uniform(0, 2 * np.pi, 2)

    def near(self, rng: np.random.Generator, share: float) -> Blob:
        """Another one, displaced by a share of the size and somewhat larger or smaller."""
        other = Blob(rng, self.slits)
        turn = rng.uniform(0, 2 * np.pi)
        other.centre = self.centre + share * self.radii * (np.cos(turn), np.sin(turn))
        other.speed, other.waves = self.speed, self.waves + rng.normal(0, 0.2, 2)
        other.radii = self.radii * rng.uniform(1 - share / 2, 1 + share / 2, 2)
        return other

    def rle(self, frame: int, rng: np.random.Generator) -> Rle | None:
        x, y = self.centre + frame * self.speed
        columns = np.arange(max(0, int(x - self.radii[0])), min(WIDTH, int(x + self.radii[0])))
        across = np.clip((columns - x) / self.radii[0], -1, 1)
        half = self.radii[1] * np.sqrt(1 - across**2)
        half = half * (1 + 0.15 * np.sin(5 * across + self.waves[0] + 0.2 * frame)) + 1
        middle = y + 20 * np.sin(3 * across + self.waves[1])
        rough = rng.integers(-1, 2, (2, len(columns)))
        top = np.clip(np.rint(middle - half) + rough[0], 0, HEIGHT).astype(int)
        bottom = np.clip(np.rint(middle + half) + rough[1], 0, HEIGHT).astype(int)
        seen = bottom > top
        starts, ends = (columns * HEIGHT + top)[seen], (columns * HEIGHT + bottom)[seen]
        if self.slits:
            # Across each column, which has one piece more for each.
            cuts = np.linspace(0, 1, self.slits + 2)[None]
            edges = starts[:, None] + np.rint((ends - starts)[:, None] * cuts).astype(int)
            starts, ends = edges[:, :-1].ravel(), edges[:, 1:].ravel() - 2
            starts, ends = starts[ends > starts], ends[ends > starts]
        if not len(starts):
            return None
        # Where a column is full to its end, the next may go on at once: one run, not two.
        apart = np.append(True, starts[1:] > ends[:-1])
        starts, ends = starts[apart], ends[np.append(apart[1:], True)]
        bounds = np.concatenate([[0], np.stack([starts, ends], 1).ravel(), [HEIGHT * WIDTH]])
        runs = np.diff(bounds)
        runs = runs[:-1] if runs[-1] == 0 else runs
        packed = coco_mask.frPyObjects({"size": [HEIGHT, WIDTH], "counts": runs.tolist()}, 0, 0)
        return {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode("ascii")}

    def track(self, rng: np.random.Generator, absent: float) -> tuple[Rle | None, ...]:
        gone = rng.random(FRAMES) < absent
        return tuple(None if gone[t] else self.rle(t, rng) for t in range(FRAMES))


def make(
    videos: int, labels_a_mask: int = 1, slits: int = 0
) -> tuple[Annotations, list[Prediction]]:
    rng = np.random.default_rng(0)
    tracks: list[Track] = []
    predictions: list[Prediction] = []
    for video in range(1, videos + 1):
        blobs = [Blob(rng, slits) for _ in range(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1]))]
        labels = [int(label) for label in rng.integers(1, CATEGORIES + 1, len(blobs))]
        for blob, label in zip(blobs, labels, strict=True):
            rles = blob.track(rng, 0.1)
            areas = tuple(None if rle is None else float(coco_mask.area(rle)) for rle in rles)
            track = Track(len(tracks) + 1, video, label, rles, (None,) * FRAMES, areas)
            tracks.append(track)
        for _ in range(PREDICTIONS // labels_a_mask):
            chosen, kind = int(rng.integers(len(blobs))), rng.random()
            if kind < 0.7:
                share = rng.uniform(0.02, 0.2) if kind < 0.4 else rng.uniform(0.2, 1.0)
                blob = blobs[chosen].near(rng, share)
            else:
                blob = Blob(rng, slits)
            rles = blob.track(rng, 0.05)
            guesses = rng.permutation(np.arange(1, CATEGORIES + 1))[:labels_a_mask]
            if rng.random() < 0.7:
                guesses[0] = labels[chosen]
            for guess in guesses.tolist():
                score = float(np.clip(1 - kind + rng.normal(0, 0.2), 0, 1))
                predictions.append(Prediction(video, guess, score, rles))
    return (
        Annotations(
            {i: Video(i, WIDTH, HEIGHT, FRAMES, ()) for i in range(1, videos + 1)},
            {i: f"class {i}" for i in range(1, CATEGORIES + 1)},
            tuple(tracks),
        ),
        predictions,
    )


def in_loops(tracks: tuple[Track, ...], predictions: list[Prediction]) -> np.ndarray:
    """Video IoU of every pair, frame by frame."""
    iou = np.zeros((len(predictions), len(tracks)))
    for i, prediction in enumerate(predictions):
        for j, track in enumerate(tracks):
            inter = union = 0.0
            for mask, other in zip(prediction.segmentations, track.segmentations, strict=True):
                if mask and other:
                    inter += float(coco_mask.area(coco_mask.merge([mask, other], True)))
                    union += float(coco_mask.area(coco_mask.merge([mask, other], False)))
                elif mask or other:
                    union += float(coco_mask.area(mask or other))
            iou[i, j] = inter / union if union else 0.0
    return iou


def one_by_one(
    truth: Annotations, predictions: list[Prediction], videos: int
) -> list[tuple[Annotations, list[Prediction]]]:
    """The first videos, each with its predictions, ordered as the evaluator orders them."""
    found = []
    for number, video in list(truth.videos.items())[:videos]:
        tracks = sorted(truth.tracks_of(number), key=lambda track: track.category_id)
        mine = (one for one in predictions if one.video_id == number)
        found.append(
            (
                Annotations({number: video}, truth.categories, tuple(tracks)),
                sorted(mine, key=lambda one: one.category_id),
            )
        )
    return found


def compare_with_loops(videos: list[tuple[Annotations, list[Prediction]]]) -> None:
    compare_tracks(*videos[0])  # The first call loads the compiled code.
    seconds = {"plain": 0.0, "ours": 0.0, "uncounted": 0.0}
    pairs = 0
    for truth, predictions in videos:
        bare = dataclasses.replace(
            truth, tracks=tuple(dataclasses.replace(track) for track in truth.tracks)
        )
        uncounted = [dataclasses.replace(one) for one in predictions]
        best = dict.fromkeys(seconds, np.inf)
        for _ in range(ROUNDS):  # In turn, so that a drifting machine hits all alike.
            began = time.thread_time()
            plain = in_loops(truth.tracks, predictions)
            best["plain"] = min(best["plain"], time.thread_time() - began)
            for name, annotated, some in (
                ("ours", truth, predictions),
                ("uncounted", bare, uncounted),
            ):
                began = time.thread_time()
                (compared,) = compare_tracks(annotated, some).videos
                best[name] = min(best[name], time.thread_time() - began)
                known = plain >= 0.5
                assert np.abs(compared.iou - plain)[known].max(initial=0) < 1e-9
                assert (compared.iou[~known] < 0.5).all()
        seconds = {name: seconds[name] + best[name] for name in seconds}
        pairs += plain.size
    print(f"{len(videos)} videos, {pairs} pairs of tracks of {FRAMES} frames")
    print(f"plain loop   {seconds['plain']:8.3f} s")
    print(f"ours         {seconds['ours']:8.3f} s")
    print(f"ratio        {seconds['plain'] / seconds['ours']:8.1f}")
    ratio = seconds["plain"] / seconds["uncounted"]
    print(f"ratio        {ratio:8.1f} if the reader had not measured the masks")


def alone(folder: Path) -> None:
    """Read and score the files; for a process of its own, whose peak is that of this alone."""
    began = time.perf_counter()
    truth = load_annotations(folder / "truth.json")
    predictions = load_results(folder / "results.json", truth)
    read = time.perf_counter()
    figures = score_tracks(compare_tracks(truth, predictions))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "read": read - began,
                "score": time.perf_counter() - read,
                "peak": peak,
                "AP50": figures["AP50"],
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--plain", type=int, default=30, help="videos for the plain loop")
    parser.add_argument("--labels", type=int, default=1, help="labels under which a mask is given")
    parser.add_argument("--slits", type=int, default=0, help="pieces more in each column")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone is not None:
        alone(chosen.alone)
        return
    truth, predictions = make(chosen.videos, chosen.labels, chosen.slits)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_annotations(folder / "truth.json", truth)
        save_results(folder / "results.json", predictions)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        # As `selfshot evaluate` has them: read from files.
        truth = load_annotations(folder / "truth.json")
        predictions = load_results(folder / "results.json", truth)
        compare_with_loops(one_by_one(truth, predictions, chosen.plain))
        done = subprocess.run(
            [sys.executable, __file__, "--alone", name], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    print(f"all {chosen.videos} videos, in a process of its own (AP50 {found['AP50']:.3f}):")
    print(f"reading      {found['read']:8.2f} s, {size:.0f} MB")
    print(f"evaluation   {found['score']:8.2f} s")
    print(f"peak memory  {found['peak']:8.0f} MB")


if __name__ == "__main__":
    main()
