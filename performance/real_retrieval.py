"""What real videos retrieve from real clips: precision where labels fit, and what is near.

Every annotated video asks, by one vector, in the index of a finished `selfshot index EXPERIMENT`.
Classes and the corpus's labels are two vocabularies; pairs of them that mean the same are given.

    selfshot index experiments/real_videos.yaml
    python performance/real_retrieval.py --same bird=waterbird --same monkey=cat_monkey
"""

from __future__ import annotations

import argparse
from pathlib import Path

from selfshot.benchmarks.manifest import load_benchmark, read_corpus, read_corpus_labels
from selfshot.config.load import load_experiment
from selfshot.evaluation.rendering.sheets import Tile, query_sheet
from selfshot.models.trained_encoder import load_encoder
from selfshot.retrieval.building import load_index
from selfshot.retrieval.describe import QueryEmbedding, batches_of
from selfshot.retrieval.judge import Ranking, ranking_scores
from selfshot.retrieval.search import CorpusSearch, SearchResult
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
    search = CorpusSearch(load_index(folders["index"]), experiment.supports.duplicate_cosine)
    depth = min(50, len(search))
    ways: dict[str, dict[int, SearchResult]] = {"retrieved": {}, "random": {}}
    for part, frames in batches_of(list(classes), reader.frames):
        for video, vector in zip(part, encoder.embed(frames), strict=True):
            query = QueryEmbedding(vector[None])
            ways["retrieved"][video] = search.nearest(query, depth, own[video])
            drawn = search.draw(depth, [0, 29, video], own[video])
            ways["random"][video] = SearchResult(drawn, ())
    known = list(labels.values())
    for way, results in ways.items():
        rankings = []
        for video, one in results.items():
            wanted = same.get(classes[video], classes[video])
            if wanted in known:
                found = [labels.get(clip, "") for clip in one.clip_ids]
                rankings.append(Ranking(found, wanted, known.count(wanted)))
        print(way, f"{len(rankings)} queries judged:", ranking_scores(rankings, depth))
    retrieved = ways["retrieved"]
    print(
        f"{len(search)} clips; left out: {sum(one.near_duplicates for one in retrieved.values())} "
        f"near duplicates (cosine > {search.duplicate_cosine}), "
        f"{sum(one.own_source for one in retrieved.values())} of a query's own source"
    )
    supports = benchmark.support_reader(folders["benchmark"], reader)
    rows = []
    for video, one in retrieved.items():
        name = classes[video]
        near = [
            f"{clip} {labels.get(clip, '?')} {score:.3f}"
            for clip, score in zip(one.clip_ids, one.scores, strict=True)
            if score > given.near
        ]
        source = videos[video].source_id
        print(f"{source} ({name}): {len(near)} above {given.near}: {near[:6]}")
        frames = reader.frames(video)
        tiles = []
        for clip, score in zip(one.clip_ids[:SHOWN], one.scores, strict=False):
            label = labels.get(clip)
            picture = supports.frames(clip)
            right = None if label is None else label == same.get(name, name)
            caption = f"{label or '?'} {score:.3f}\n{clip}"
            tiles.append(Tile(picture[len(picture) // 2], caption, right))
        rows.append((Tile(frames[len(frames) // 2], f"{source}: {name}"), tiles))
    query_sheet(rows).save(given.out)
    print(f"drawn: {given.out}")


if __name__ == "__main__":
    main()
