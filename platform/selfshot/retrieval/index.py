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

INDEX_FILE = "index.faiss"
LISTS_FILE = "lists.bin"
REFINE_FILE = "refine.faiss"

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

    Args:
        index: FAISS' `IndexFlatIP`, or an `IndexRefine` of an inverted file and of exact vectors.
        clip_ids: the clips, by row.

    Attributes:
        nprobe: inverted lists that a search looks into; 1 for a flat index.
        refine_factor: candidates of each wanted clip that are compared exactly.
    """

    def __init__(
        self, index: Any, clip_ids: ClipIds, *, nprobe: int = 1, refine_factor: int = 1
    ) -> None:
        assert index.ntotal == len(clip_ids), (index.ntotal, len(clip_ids))
        self._index, self.clip_ids = index, clip_ids
        self.nprobe, self.refine_factor = nprobe, refine_factor
        self._inverted: Any = inverted_file(index)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.clip_ids

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    @property
    def nlist(self) -> int:
        """Inverted lists; with as many as `nprobe` nothing is left out. 1 for a flat index."""
        return 1 if self._inverted is None else int(self._inverted.nlist)

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
        # A smaller subset lies thinner in each list: as many of its clips are looked at as of
        # the whole corpus.
        nprobe = min(-(-self.nprobe * len(self) // searched), self.nlist)
        scores, found = self._nearest(unit, k, chosen, nprobe)
        while (lacking := (found[:, k - 1] < 0).nonzero()[0]).size:
            assert nprobe < self.nlist, (nprobe, k, searched)
            nprobe = min(4 * nprobe, self.nlist)
            scores[lacking], found[lacking] = self._nearest(unit[lacking], k, chosen, nprobe)
        order = np.lexsort((found, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)

    def vectors(self, clip_ids: Sequence[str]) -> Float[np.ndarray, "clips dim"]:
        """The unit vectors of some clips."""
        return self.vectors_at(self.clip_ids.rows(clip_ids))

    def vectors_at(self, rows: Rows) -> Float[np.ndarray, "rows dim"]:
        """The same of some rows."""
        vectors = self._index.reconstruct_batch(np.asarray(rows, np.int64))
        return unit_vectors(vectors, [f"row {row}" for row in rows])

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

    def _nearest(
        self, unit: Float[np.ndarray, "queries dim"], k: int, chosen: Rows | None, nprobe: int
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Cosines and rows, best first, by FAISS; -1 for rows and -inf where fewer were found."""
        faiss = load_faiss()
        given: dict[str, Any] = {} if chosen is None else {"sel": _selector(chosen, len(self))}
        if self._inverted is None:
            return self._index.search(unit, k, params=faiss.SearchParameters(**given))
        parameters = inner = faiss.SearchParametersIVF(nprobe=nprobe, **given)
        if isinstance(faiss.downcast_index(self._index.base_index), faiss.IndexPreTransform):
            parameters = faiss.SearchParametersPreTransform(index_params=inner)
        distances, found = self._index.search(
            unit,
            k,
            params=faiss.IndexRefineSearchParameters(
                k_factor=self.refine_factor, base_index_params=parameters
            ),
        )
        return np.where(found < 0, -np.inf, 1 - distances / 2).astype(np.float32), found


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
    index = empty_index("Flat", embeddings.shape[1])
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


def empty_index(factory: str, dim: int) -> Any:
    """A FAISS index without vectors.

    Exact search multiplies. The others compare by distance: between unit vectors it ranks as the
    cosine does, and the error of a code then counts by how far it is from the query, which is
    little for those that are near.

    Args:
        factory: `Flat`, or FAISS' factory string of an inverted file.
        dim: of a vector.

    Raises:
        UserError: FAISS does not know the string, or it is of no inverted file.
    """
    faiss = load_faiss()
    if factory == "Flat":
        return faiss.IndexFlatIP(dim)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        words = str(error).rpartition("Error: ")[2]
        raise UserError(
            f"index.factory: {factory} is not possible for vectors of {dim} ({words})",
            setting="index.factory",
        ) from None
    inverted = inverted_file(index)
    if inverted is None or isinstance(index, faiss.IndexRefine):
        raise UserError(
            f"index.factory: {factory} is not allowed (Flat, or an inverted file as "
            "IVF4096,PQ64; candidates are compared exactly without it saying so)",
            setting="index.factory",
        )
    # There are few enough lists for the sample already.
    inverted.cp.min_points_per_centroid = 1
    return index


def inverted_file(index: Any) -> Any:
    """The inverted file inside an index, or none."""
    return load_faiss().try_extract_index_ivf(index)


def train_index(index: Any, sample: Float[np.ndarray, "sampled dim"], *, use_gpu: bool) -> None:
    """Find the lists and the codes; on a GPU, the k-means of the lists, which is most of it.

    Raises:
        UserError: the sample is too small for as many lists, or for codes of this kind.
    """
    faiss = load_faiss()
    if index.is_trained:
        return
    if use_gpu:
        inverted = inverted_file(index)
        on_gpu = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inverted.d))
        inverted.clustering_index = on_gpu
        inverted.referenced_objects = [on_gpu]
    try:
        index.train(sample)
    except RuntimeError as error:
        if "Number of training points" not in str(error):
            raise  # FAISS raises this kind for all it has, a GPU without memory as well.
        raise UserError(
            f"index: not possible for {len(sample)} clips "
            f"({str(error).rpartition('Error: ')[2]}); take index.kind flat, which is exact and "
            "fast at this size",
            setting="index",
        ) from None


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


def refine_header(clips: int, dim: int) -> bytes:
    """How FAISS' file of `clips` vectors in half precision begins; the vectors follow."""
    faiss = load_faiss()
    empty = faiss.index_factory(dim, "SQfp16", faiss.METRIC_L2)
    empty.ntotal = clips
    header = faiss.serialize_index(empty).tobytes()
    assert header.endswith(bytes(8))  # the number of bytes that follow
    return header[:-8] + (2 * dim * clips).to_bytes(8, "little")


def read_refined(folder: Path) -> Any:
    """The index of a folder, whose candidates are compared with the exact vectors beside it.

    Those are mapped into memory, not read.
    """
    faiss = load_faiss()
    index = read_index(folder / INDEX_FILE)
    if inverted_file(index) is None:
        return index
    refine = faiss.read_index(str(folder / REFINE_FILE), faiss.IO_FLAG_MMAP_IFC)
    return faiss.IndexRefine(index, refine)


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
