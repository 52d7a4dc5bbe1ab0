"""What real videos retrieve from real clips: precision where labels fit, and what is near.

Every annotated video asks, by one vector, in the index of a finished `selfshot index EXPERIMENT`.
Classes and the corpus's labels are two vocabularies; pairs of them that mean the same are given.

    selfshot index experiments/real_videos.yaml
    python performance/real_retrieval.py --same bird=waterbird --same monkey=cat_monkey
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from selfshot.benchmarks.manifest import load_benchmark, read_corpus, read_corpus_labels
from selfshot.config.load import load_experiment
from selfshot.evaluation.episodes import SupportReader
from selfshot.evaluation.ranking import Ranking, ranking_scores
from selfshot.evaluation.rendering.sheets import Tile, query_sheet
from selfshot.models.trained_encoder import load_encoder
from selfshot.retrieval.building import load_index
from selfshot.retrieval.methods import Asked, RandomClips, RetrievedClips
from selfshot.retrieval.supports import Described
from selfshot.studies.run import plan_experiment

SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", type=Path, default=Path("experiments/real_videos.yaml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--same", action="append", default=[], help="CLASS=LABEL")
    parser.add_argument("--near", type=float, default=0.9, help="cosine of what is listed as near")
    parser.add_argument("--out", type=Path, default=Path("real_retrieval.png"))
    given = parser.parse_args()
    experiment = load_experiment(given.experiment, given.overrides)
    folders = {plan.stage: plan.path for plan in plan_experiment(experiment)}
    benchmark = load_benchmark(folders["benchmark"])
    reader = benchmark.reader(folders["benchmark"])
    videos = reader.annotations.videos
    encoder = load_encoder(folders["encoder"] / "export")
    index = load_index(folders["index"])
    same = dict(pair.split("=") for pair in given.same)
    labels = read_corpus_labels(folders["benchmark"])
    by_source: dict[str, set[str]] = {}
    for row in read_corpus(folders["benchmark"]):
        by_source.setdefault(row["source_id"], set()).add(row["clip_id"])
    categories = reader.annotations.categories
    classes: dict[int, str] = {}
    for track in reader.annotations.tracks:  # the first object's
        classes.setdefault(track.video_id, categories[track.category_id])
    own = {video: by_source.get(videos[video].source_id or "", ()) for video in classes}
    queries = [
        Asked(f"{video}:{name}", video, 0, frozenset(own[video])) for video, name in classes.items()
    ]

    def describe(video: int) -> Described:
        return Described(encoder.embed(reader.frames(video)[None]), np.ones(1, np.float32))

    depth = min(50, len(index))
    method = RetrievedClips(index, describe, experiment.supports.duplicate_cosine)
    ways = {
        "retrieved": method(queries, depth),
        "random": RandomClips(index, np.arange(len(index)))(queries, depth),
    }
    known = list(labels.values())
    for way, chosen in ways.items():
        rankings = []
        for query, one in zip(queries, chosen, strict=True):
            wanted = same.get(classes[query.video], classes[query.video])
            if wanted in known:
                found = [labels.get(str(clip), "") for clip in one.supports]
                rankings.append(Ranking(found, wanted, known.count(wanted)))
        print(way, f"{len(rankings)} queries judged:", ranking_scores(rankings, depth))
    found = ways["retrieved"]
    print(
        f"{len(index)} clips; left out: {sum(one.near_duplicates for one in found)} near "
        f"duplicates (cosine > {experiment.supports.duplicate_cosine}), "
        f"{sum(one.own_source for one in found)} of a query's own source"
    )
    supports = SupportReader(folders["benchmark"], benchmark, reader)
    rows = []
    for query, one in zip(queries, found, strict=True):
        name = classes[query.video]
        near = [
            f"{clip} {labels.get(str(clip), '?')} {score:.3f}"
            for clip, score in zip(one.supports, one.scores, strict=True)
            if score > given.near
        ]
        source = videos[query.video].source_id
        print(f"{source} ({name}): {len(near)} above {given.near}: {near[:6]}")
        frames = reader.frames(query.video)
        tiles = []
        for clip, score in zip(one.supports[:SHOWN], one.scores, strict=False):
            label = labels.get(str(clip))
            picture = supports.frames(clip)
            right = None if label is None else label == same.get(name, name)
            caption = f"{label or '?'} {score:.3f}\n{clip}"
            tiles.append(Tile(picture[len(picture) // 2], caption, right))
        rows.append((Tile(frames[len(frames) // 2], f"{source}: {name}"), tiles))
    query_sheet(rows).save(given.out)
    print(f"drawn: {given.out}")


if __name__ == "__main__":
    main()
