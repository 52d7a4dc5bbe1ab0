"""Nearest clips by cosine, exactly or nearly. The only module that imports faiss."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int, Shaped

from selfshot.errors import UserError
from selfshot.files import atomic_file
from selfshot.retrieval.clip_ids import ClipIds, write_ids
from selfshot.retrieval.kinds import CODE_BITS, IndexPlan

INDEX_FILE = "index.faiss"
LISTS_FILE = "lists.bin"
FLAT = IndexPlan("flat")
TRAINING_ROUNDS = 10

Rows = Int[np.ndarray, " rows"]


def load_faiss() -> Any:
    """FAISS, which comes with one of two extras of the package.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    try:
        import faiss

        if getattr(faiss, "__file__", "") is None:
            raise ImportError("an uninstalled package left its folder")
    except ImportError as error:
        raise UserError(
            f"FAISS cannot be imported ({error}); install selfshot[cpu], or on machines with "
            "CUDA 12 selfshot[gpu]"
        ) from None
    # It declares its classes in C++, where no type checker looks.
    return cast(Any, faiss)


class ClipIndex:
    """Unit vectors of clips, and how they are searched.

    Attributes:
        clip_ids: the clips, by row.
        plan: the kind of the index and its sizes.
        effort: lists that a search looks into (`ivf_flat`, `ivf_pq`), or candidates that it keeps
            (`hnsw`); no meaning for `flat`.
    """

    def __init__(
        self,
        index: Any,
        clip_ids: ClipIds,
        *,
        plan: IndexPlan = FLAT,
        effort: int = 1,
        exact: Float[np.ndarray, "clips dim"] | None = None,
    ) -> None:
        assert index.ntotal == len(clip_ids), (index.ntotal, len(clip_ids))
        self._index, self._exact = index, exact
        self.clip_ids, self.plan, self.effort = clip_ids, plan, effort

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.clip_ids

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    @property
    def most_effort(self) -> int:
        """The effort at which nothing is left out."""
        return {"flat": 1, "hnsw": len(self)}.get(self.plan.kind, self.plan.lists)

    def search(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        subset: Sequence[str] | Rows | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Shaped[np.ndarray, "queries k"]]:
        """The `k` clips of highest cosine for each query, best first.

        Args:
            queries: vectors; their length does not matter.
            k: at most the number of clips that are searched.
            subset: search these clips only: their ids, or their rows.

        Returns:
            cosines and clip ids; clips of one cosine come in the order of the index.

        Raises:
            ValueError: a wrong k, dimension or vector, or an unknown clip in the subset.
        """
        scores, rows = self.search_rows(queries, k, subset)
        return scores, self.clip_ids.at(rows)

    def search_rows(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        subset: Sequence[str] | Rows | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """As `search`, with the rows of the clips in place of their ids."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {queries.shape}; the index has dim {self.dim}")
        chosen = None if subset is None else self._rows(subset)
        searched = len(self) if chosen is None else len(chosen)
        if not 1 <= k <= searched:
            raise ValueError(f"k: {k} is not between 1 and the {searched} clips searched")
        unit = unit_vectors(queries, [f"query {row}" for row in range(len(queries))])
        candidates = min(k * max(self.plan.rerank, 1), searched)
        # A smaller subset lies thinner in each list: as many of its clips are looked at as of
        # the whole corpus.
        effort = min(-(-self.effort * len(self) // searched), self.most_effort)
        if self.plan.kind == "hnsw":
            effort = min(max(effort, candidates * len(self) // searched), self.most_effort)
        scores, found = self._nearest(unit, candidates, chosen, effort)
        while (lacking := (found[:, k - 1] < 0).nonzero()[0]).size:
            if effort == self.most_effort:
                # A graph may have parts that no walk reaches.
                assert self.plan.kind == "hnsw", self.plan
                scores[lacking], found[lacking] = self._compare_all(
                    unit[lacking], candidates, chosen
                )
                break
            effort = min(4 * effort, self.most_effort)
            scores[lacking], found[lacking] = self._nearest(
                unit[lacking], candidates, chosen, effort
            )
        if self._exact is not None:
            scores = self._exact_scores(unit, found)
        order = np.lexsort((found, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)

    def vectors(self, clip_ids: Sequence[str]) -> Float[np.ndarray, "clips dim"]:
        """The unit vectors of some clips; near to them, where an index has only their codes."""
        return self.vectors_at(self.clip_ids.rows(clip_ids))

    def vectors_at(self, rows: Rows) -> Float[np.ndarray, "rows dim"]:
        """The same of some rows."""
        if self._exact is not None:
            return unit_vectors(self._exact[rows], [f"row {row}" for row in rows])
        if self.plan.kind in ("ivf_flat", "ivf_pq"):
            self._inverted().make_direct_map()
        return np.stack([self._index.reconstruct(int(row)) for row in rows])

    def save(self, folder: Path) -> None:
        """Write the vectors and the ids into an existing folder."""
        write_index(self._index, folder / INDEX_FILE)
        write_ids(folder, [list(self.clip_ids)])

    def _rows(self, subset: Sequence[str] | Rows) -> Rows:
        if isinstance(subset, np.ndarray):
            if subset.size and not 0 <= subset.min() <= subset.max() < len(self):
                raise ValueError(f"rows of the subset are not all below {len(self)}")
            return np.unique(subset.astype(np.int64))
        return np.unique(self.clip_ids.rows(subset))

    def _inverted(self) -> Any:
        faiss = load_faiss()
        return faiss.extract_index_ivf(self._index)

    def _nearest(
        self,
        unit: Float[np.ndarray, "queries dim"],
        k: int,
        chosen: Rows | None,
        effort: int,
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Cosines and rows, best first, by FAISS; -1 for rows and -inf where fewer were found."""
        faiss = load_faiss()
        selector = None if chosen is None else _selector(chosen, len(self))
        given: dict[str, Any] = {} if selector is None else {"sel": selector}
        inner: Any = None
        if self.plan.kind == "flat":
            parameters = faiss.SearchParameters(**given) if given else None
        elif self.plan.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k), **given)
        else:
            parameters = inner = faiss.SearchParametersIVF(nprobe=effort, **given)
            if isinstance(faiss.downcast_index(self._index), faiss.IndexPreTransform):
                parameters = faiss.SearchParametersPreTransform(index_params=inner)
        scores, found = self._index.search(unit, k, params=parameters)
        return _cosines(self._index, scores, found), found

    def _compare_all(
        self, unit: Float[np.ndarray, "queries dim"], k: int, chosen: Rows | None
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        faiss = load_faiss()
        storage = faiss.downcast_index(self._index.storage)
        selector = None if chosen is None else _selector(chosen, len(self))
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        scores, found = storage.search(unit, k, params=parameters)
        return _cosines(storage, scores, found), found

    def _exact_scores(
        self, unit: Float[np.ndarray, "queries dim"], found: Int[np.ndarray, "queries k"]
    ) -> Float[np.ndarray, "queries k"]:
        """Cosines with the vectors on disk; each row that several queries found is read once."""
        assert self._exact is not None
        rows, places = np.unique(found, return_inverse=True)
        vectors = self._exact[np.maximum(rows, 0)].astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        taken = vectors[places.reshape(found.shape)]
        scores = np.einsum("qd,qkd->qk", unit, taken)
        return np.where(found < 0, -np.inf, scores).astype(np.float32)


def build_index(embeddings: Float[np.ndarray, "clips dim"], clip_ids: Sequence[str]) -> ClipIndex:
    """Index vectors in memory under their clips' ids, for exact search.

    Raises:
        ValueError: no clips, ids that are not one a vector or come twice, or a vector without a
            direction (zero or not finite).
    """
    if embeddings.ndim != 2 or len(embeddings) == 0 or len(embeddings) != len(clip_ids):
        raise ValueError(
            f"embeddings of shape {embeddings.shape} for {len(clip_ids)} clip ids; "
            "one row a clip is needed, and at least one clip"
        )
    index = empty_index(FLAT, embeddings.shape[1])
    index.add(unit_vectors(embeddings, clip_ids))
    return ClipIndex(index, ClipIds.of(clip_ids))


def unit_vectors(
    vectors: Float[np.ndarray, "rows dim"], names: Sequence[str]
) -> Float[np.ndarray, "rows dim"]:
    """Vectors divided by their lengths, in float32.

    Raises:
        ValueError: one is zero or not finite; named by `names`.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} vectors are zero or not finite, as that of {names[int(bad[0])]}"
        )
    return np.asarray(vectors / lengths, dtype=np.float32)


# ------------------------------------------------------------------------------------- making


def empty_index(plan: IndexPlan, dim: int, *, construction: int = 80, seed: int = 0) -> Any:
    """A FAISS index without vectors.

    Exact search multiplies. The others compare by distance: between unit vectors it ranks as the
    cosine does, and the error of a code then counts by how far it is from the query, which is
    little for those that are near.
    """
    faiss = load_faiss()
    if plan.kind == "flat":
        return faiss.IndexFlatIP(dim)
    if plan.kind == "hnsw":
        index: Any = faiss.IndexHNSWFlat(dim, plan.links)
        index.hnsw.efConstruction = construction
        return index
    quantiser: Any = faiss.IndexFlatL2(dim)
    if plan.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantiser, dim, plan.lists)
    else:
        index = faiss.IndexIVFPQ(quantiser, dim, plan.lists, plan.code_bytes, CODE_BITS)
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = seed, 1
        index.pq.cp.niter = TRAINING_ROUNDS
        # It would take as much memory again as the codes of millions of clips.
        index.use_precomputed_table = -1
    quantiser.this.disown()
    index.own_fields = True
    index.cp.seed, index.cp.niter = seed, TRAINING_ROUNDS
    # Lists are asked to be few enough for the sample already.
    index.cp.min_points_per_centroid = 1
    if not plan.rotation:
        return index
    rotation: Any = faiss.OPQMatrix(dim, plan.code_bytes)
    codes: Any = faiss.ProductQuantizer(dim, plan.code_bytes, CODE_BITS)
    codes.cp.seed, codes.cp.min_points_per_centroid = seed, 1
    codes.cp.niter = TRAINING_ROUNDS
    rotation.niter = rotation.niter_pq_0 = TRAINING_ROUNDS
    rotation.pq = codes
    turned: Any = faiss.IndexPreTransform(rotation, index)
    for part in (rotation, index):
        part.this.disown()
    turned.own_fields = True
    return turned


def train_index(index: Any, sample: Float[np.ndarray, "sampled dim"], *, use_gpu: bool) -> None:
    """Find the lists and the codes; on a GPU, the k-means of the lists, which is most of it."""
    faiss = load_faiss()
    if index.is_trained:
        return
    inverted: Any = faiss.extract_index_ivf(index)
    if use_gpu:
        on_gpu = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inverted.d))
        inverted.clustering_index = on_gpu
        inverted.referenced_objects = [on_gpu]
    index.train(sample)


def write_index(index: Any, path: Path) -> None:
    """Write a FAISS index under its name at once."""
    faiss = load_faiss()
    with atomic_file(path) as partial:
        faiss.write_index(index, str(partial))


def read_index(path: Path) -> Any:
    """Read a FAISS index; lists on disk are looked for beside it, and mapped into memory."""
    faiss = load_faiss()
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
    with _silence():
        return faiss.read_index(str(path), flags)


def merge_lists(trained: Path, parts: Sequence[Path], folder: Path) -> None:
    """Join the inverted lists of parts into one file, list by list, and an index that names it.

    Nothing but what the system keeps of the mapped files is in memory.
    """
    load_faiss()
    from faiss.contrib.ondisk import merge_ondisk

    index = read_index(trained)
    lists = folder / LISTS_FILE
    lists.unlink(missing_ok=True)
    with _silence():
        merge_ondisk(index, [str(part) for part in parts], str(lists))
    write_index(index, folder / INDEX_FILE)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what FAISS prints of files on disk, from C and without a switch, off the output."""
    c: Any = ctypes.CDLL(None)
    sys.stdout.flush()
    c.fflush(None)
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        c.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def gpus() -> int:
    """GPUs that FAISS can use; none with its package for processors alone."""
    faiss = load_faiss()
    count = getattr(faiss, "get_num_gpus", None)
    return int(count()) if count is not None and hasattr(faiss, "StandardGpuResources") else 0


def lack_of_gpus() -> str | None:
    """What a person should know where `compute.use_gpu` is set and FAISS sees no GPU."""
    if gpus():
        return None
    return (
        "compute.use_gpu: FAISS sees no GPU, so the CPU finds the lists of an index; for GPUs "
        "install selfshot[gpu], and not faiss-cpu beside it, which has the same files"
    )


def faiss_facts() -> dict[str, Any]:
    """What of FAISS a measurement depends on."""
    faiss = load_faiss()
    return {"faiss": faiss.__version__, "threads": int(faiss.omp_get_max_threads())}


def compare_all(
    queries: Float[np.ndarray, "queries dim"],
    unit: Float[np.ndarray, "rows dim"],
    k: int,
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Cosines and rows of the `k` nearest of some unit vectors, by comparing all."""
    faiss = load_faiss()
    scores, rows = faiss.knn(queries, unit, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


def _selector(rows: Rows, total: int) -> Any:
    """A bit for each row of the index: constant time a row, an eighth of a byte each."""
    faiss = load_faiss()
    bits = np.zeros(total, bool)
    bits[rows] = True
    packed = np.packbits(bits, bitorder="little")
    return faiss.IDSelectorBitmap(packed)


def _cosines(
    index: Any, scores: Float[np.ndarray, "queries k"], found: Int[np.ndarray, "queries k"]
) -> Float[np.ndarray, "queries k"]:
    faiss = load_faiss()
    if index.metric_type == faiss.METRIC_L2:
        scores = 1 - scores / 2
    return np.where(found < 0, -np.inf, scores).astype(np.float32)

