"""What it brings to look away from windows that labelled clips of seen classes explain.

Claims: precision@5 rises by ten points or more with a weight between a half and one; it rises most
where all other objects of a query are of seen classes, as most are on sprites. The validation
classes chose the weight, and the test classes are printed beside them.

    selfshot run experiments/quickstart_known.yaml
    python performance/known_classes.py [EXPERIMENT.yaml [KEY=VALUE ...]]

Prints percent of the first clip, and of the first five, that are of the query's class.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from selfshot.benchmarks.manifest import load_benchmark, query_key, read_corpus_labels
from selfshot.config.load import load_experiment
from selfshot.models.trained_encoder import load_encoder
from selfshot.retrieval.building import load_index
from selfshot.retrieval.known import familiarity
from selfshot.retrieval.methods import Asked, RetrievedClips
from selfshot.retrieval.supports import Described
from selfshot.studies.describing import DescribedVideos
from selfshot.studies.finished import stage_folders
from selfshot.studies.known import read_known

SIDES = ("val", "test")
WEIGHTS, NEAREST = (0.0, 0.25, 0.5, 0.75, 1.0), (1, 5, 11)


def main() -> None:
    """Print both tables."""
    given = sys.argv[1:]
    path = Path(given[0] if given else "experiments/quickstart_known.yaml")
    experiment = load_experiment(path, given[1:])
    folders = stage_folders(experiment, ["benchmark", "encoder", "index", "known"])
    benchmark = load_benchmark(folders["benchmark"])
    reader = benchmark.reader(folders["benchmark"])
    annotations, section = reader.annotations, experiment.supports
    labels = read_corpus_labels(folders["benchmark"])
    known, index = read_known(folders["known"]), load_index(folders["index"])
    encoder = load_encoder(folders["encoder"] / "export")
    describe = DescribedVideos(encoder, reader, section.window_size).by("windows")
    queries = {side: list(benchmark.queries[side]) for side in SIDES}
    windows = {video: describe(video) for side in SIDES for video, _ in queries[side]}
    familiar = {
        nearest: {v: familiarity(one.vectors, known, nearest) for v, one in windows.items()}
        for nearest in NEAREST
    }

    def right(side: str, nearest: int, weight: float) -> np.ndarray:
        """Whether each of the first five clips is of the query's class: (queries, 5)."""

        def handicapped(video: int) -> Described:
            off = weight * familiar[nearest][video]
            return dataclasses.replace(windows[video], handicap=off)

        method = RetrievedClips(
            index, handicapped, section.duplicate_cosine, section.foreground_power,
            expand_by=section.expand_by, candidates=section.candidates,
        )  # fmt: skip
        asked = [Asked(query_key(video, name), video, 0) for video, name in queries[side]]
        found = method(asked, 5)
        return np.array(
            [
                [labels.get(str(clip)) == name for clip in one.supports]
                for one, (_, name) in zip(found, queries[side], strict=True)
            ]
        )

    print("| nearest | weight | val P@1 | val P@5 | test P@1 | test P@5 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for nearest in NEAREST:
        for weight in WEIGHTS if nearest == NEAREST[0] else WEIGHTS[1:]:
            cells = [right(side, nearest, weight) for side in SIDES]
            figures = [f"{100 * x:.1f}" for one in cells for x in (one[:, 0].mean(), one.mean())]
            first = "" if weight == 0 else str(nearest)
            print(f"| {first} | {weight:g} | {' | '.join(figures)} |", flush=True)

    seen, corpus = set(benchmark.classes["train"]), set(labels.values())
    print("\n| the query's other objects | queries | P@5 without | P@5 with |")
    print("| --- | --- | --- | --- |")
    for side in SIDES:
        shown = [
            {annotations.categories[track.category_id] for track in annotations.tracks_of(video)}
            - {name}
            for video, name in queries[side]
        ]
        groups = {
            "seen classes that the corpus lacks": [s <= seen - corpus for s in shown],
            "seen ones, some in the corpus": [s <= seen and bool(s & corpus) for s in shown],
            "some of an unseen class": [bool(s - seen) for s in shown],
        }
        before = right(side, section.known_nearest, 0.0).mean(1)
        after = right(side, section.known_nearest, section.known_weight).mean(1)
        for name, members in groups.items():
            rows = np.flatnonzero(members)
            if len(rows):
                print(
                    f"| {side}: {name} | {len(rows)} | {100 * before[rows].mean():.1f} | "
                    f"{100 * after[rows].mean():.1f} |"
                )


if __name__ == "__main__":
    main()
