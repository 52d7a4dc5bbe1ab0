"""Build time, memory, recall and speed of each kind of index over vectors in clusters.

The vectors are drawn block by block from a seed and written as the embedding job writes them:
shards of float16. Clusters hold about a hundred clips each, stand in groups themselves, and spread
more in a few directions than in the others, as embeddings do; everything is then turned at random.
Each kind is built in a process of its own, so that its memory is its own, and queries are new
vectors of the same clusters. Exact search is FAISS over float32 vectors in memory, timed over one
block in turn with the index, as other programs may run, and taken times the number of blocks.

    python performance/index_scale.py exact                        # 237,000 × 768, 472 queries
    python performance/index_scale.py kinds --clips 200000
    python performance/index_scale.py kinds --clips 1000000
    python performance/index_scale.py kinds --clips 10000000 --folder /where/it/is/kept
    python performance/index_scale.py kinds --kinds ivf_pq IVF4096,Flat OPQ64,IVF4096,PQ64
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfshot.retrieval.building import BuildSettings, build_from_embeddings, load_index
from selfshot.retrieval.embeddings import iterate_blocks
from selfshot.retrieval.exact import ExactSearch
from selfshot.retrieval.index import build_index, compare_all, unit_vectors

SHARD = 65_536
CLIPS_PER_CLUSTER = 100
QUERIES = 472  # val and test queries of the paper's Self-VIS
K = 5
KINDS = ("flat", "ivf_pq", "ivf_rabitq", "auto")


class Clusters:
    """Where vectors are drawn from."""

    def __init__(self, clips: int, dim: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.seed, self.dim = seed, dim
        self.spread = ((1.0 + np.arange(dim)) ** -0.5).astype(np.float32)
        self.spread /= np.linalg.norm(self.spread)
        groups = rng.standard_normal((500, dim), np.float32) * self.spread
        count = max(clips // CLIPS_PER_CLUSTER, 1)
        own = rng.standard_normal((count, dim), np.float32) * self.spread
        self.centres = 0.8 * groups[rng.integers(len(groups), size=count)] + 0.6 * own
        self.turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)

    def draw(self, count: int, block: int) -> np.ndarray:
        """Unit vectors, the same for the same block."""
        rng = np.random.default_rng([self.seed, 1, block])
        vectors = self.centres[rng.integers(len(self.centres), size=count)]
        vectors = vectors + 0.5 * rng.standard_normal((count, self.dim), np.float32) * self.spread
        vectors = vectors @ self.turn
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def write_corpus(folder: Path, clips: int, clusters: Clusters) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(math.ceil(clips / SHARD)):
        first, last = shard * SHARD, min((shard + 1) * SHARD, clips)
        path = folder / f"shard-{shard:06d}.parquet"
        if path.exists():
            continue
        flat = pa.array(clusters.draw(last - first, shard).astype(np.float16).reshape(-1))
        columns = {
            "clip_id": [f"clip-{row:010d}" for row in range(first, last)],
            "embedding": pa.FixedSizeListArray.from_arrays(flat, clusters.dim),
            "status": ["embedded"] * (last - first),
            "error": pa.nulls(last - first, pa.string()),
        }
        pq.write_table(pa.table(columns), path.with_suffix(".partial"), compression="none")
        path.with_suffix(".partial").rename(path)


def blocks(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    for first, ids, vectors in iterate_blocks(folder, 4 * SHARD):
        yield first, unit_vectors(vectors, ids)


def exact(folder: Path, queries: np.ndarray) -> np.ndarray:
    """Rows of the true nearest."""
    search = ExactSearch(queries, K)
    for first, vectors in blocks(folder):
        search.add(first, vectors)
    return search.rows


def build(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """In a process of its own."""
    (out / "scratch").mkdir(parents=True, exist_ok=True)

    def say(message: str) -> None:
        print(f"  {message}", file=sys.stderr, flush=True)

    build_from_embeddings(folder, out, out / "scratch", BuildSettings(**settings), say)
    shutil.rmtree(out / "scratch")


def seconds_of(search: Callable[..., Any], *given: Any) -> float:
    began = time.perf_counter()
    search(*given)
    return time.perf_counter() - began


def compare_kinds(given: argparse.Namespace) -> None:
    folder = Path(given.folder or tempfile.mkdtemp(prefix="index_scale_"))
    clusters = Clusters(given.clips, given.dim, given.seed)
    corpus = folder / f"corpus-{given.clips}-{given.dim}-{given.seed}"
    began = time.perf_counter()
    write_corpus(corpus, given.clips, clusters)
    print(f"{given.clips:,} vectors of {given.dim} written in {time.perf_counter() - began:.0f} s")
    queries = clusters.draw(QUERIES, 2**31)
    kept = corpus / f"exact-{QUERIES}.json"
    if not kept.exists():
        kept.write_text(json.dumps({"rows": exact(corpus, queries).tolist()}))
    truth = np.array(json.loads(kept.read_text())["rows"])
    block = next(blocks(corpus))[1]
    for kind in given.kinds:
        out = folder / f"{kind}-{given.clips}-{given.dim}-{given.seed}{given.name}"
        settings: dict[str, Any] = {
            "kind" if kind in KINDS else "factory": kind, "memory_gb": 100.0, "seed": given.seed,
            "target_recall": given.recall, **json.loads(given.settings),
        }  # fmt: skip
        if not (out / "metadata.json").exists():
            process = multiprocessing.get_context("spawn").Process(
                target=build, args=(corpus, out, settings)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{kind}: not built")
        facts = json.loads((out / "metadata.json").read_text())
        index = load_index(out)
        _, found = index.search_rows(queries, K)
        hits = np.mean([len({*a} & {*b}) for a, b in zip(found, truth, strict=True)]) / K
        times: dict[str, list[float]] = {"batch": [], "one": [], "all": []}
        for turn in range(given.rounds):
            times["batch"].append(seconds_of(index.search_rows, queries, K))
            times["one"].append(seconds_of(index.search_rows, queries[turn : turn + 1], K))
            times["all"].append(seconds_of(compare_all, queries, block, K))
        plain = np.array(times["all"]) * given.clips / len(block)
        ratios = np.sort(plain / np.array(times["batch"]))
        print(
            f"{kind}: recall@{K} {100 * hits:.1f}% (its own figure: "
            f"{100 * facts.get('recall', 1):.1f}%), {QUERIES / min(times['batch']):,.0f} queries a "
            f"second in batches of {QUERIES}, {1 / min(times['one']):,.0f} one by one, "
            f"{QUERIES / min(plain):,.0f} exact: {np.median(ratios):.1f} times as fast (in turn "
            f"{ratios[0]:.1f} to {ratios[-1]:.1f}); "
            f"{facts['memory_bytes_per_vector']:.1f} bytes a vector in memory, "
            f"{facts['disk_bytes_per_vector']:.0f} on disk with names; built in "
            f"{facts['build_seconds']:.0f} s, at most {facts['peak_memory_bytes'] / 1e9:.2f} GB; "
            f"{facts['factory']}, nprobe {facts['nprobe']} of {index.nlist}",
            flush=True,
        )
    if given.folder is None:
        shutil.rmtree(folder)


def compare_exact(given: argparse.Namespace) -> None:
    """The paper's corpus: a batch of all its queries."""
    clips, dim = 237_000, 768
    clusters = Clusters(clips, dim, given.seed)
    vectors = np.concatenate(
        [clusters.draw(min(SHARD, clips - first), first) for first in range(0, clips, SHARD)]
    )
    queries = clusters.draw(QUERIES, 2**31)
    index = build_index(vectors, [f"clip-{row}" for row in range(clips)])
    ours, numpy, found, nearest = [], [], None, None
    index.search_rows(queries, K)
    for _ in range(given.rounds):
        began = time.perf_counter()
        _, found = index.search(queries, K)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        cosines = queries @ vectors.T
        nearest = np.argpartition(-cosines, K, axis=1)[:, :K]
        numpy.append(time.perf_counter() - began)
    assert found is not None and nearest is not None
    truth = [{f"clip-{row}" for row in line} for line in nearest.tolist()]
    assert all(set(line) == true for line, true in zip(found.tolist(), truth, strict=True))
    print(
        f"{clips:,} × {dim}, {K} neighbours of {QUERIES} queries: {min(ours):.2f} s a batch "
        f"(median {np.median(ours):.2f}); NumPy's product and partition take {min(numpy):.2f} s: "
        f"{min(numpy) / min(ours):.1f} times as long"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["exact", "kinds"])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128, help="128 is the quickstart's encoder's")
    parser.add_argument("--kinds", nargs="+", default=["ivf_pq", "ivf_rabitq"],
                        help="of index.kind, or FAISS' factory strings")
    parser.add_argument("--recall", type=float, default=0.95, help="the target")
    parser.add_argument("--settings", default="{}", help="of the index, as JSON")
    parser.add_argument("--name", default="", help="of these settings, where several are compared")
    parser.add_argument("--folder", help="keeps corpora and indexes, so that a run goes on there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"FAISS {faiss.__version__}, {faiss.omp_get_max_threads()} threads")
    compare_exact(given) if given.what == "exact" else compare_kinds(given)


if __name__ == "__main__":
    main()
