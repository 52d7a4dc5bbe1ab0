"""Nearest clips by cosine, exactly. The only module that imports faiss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

INDEX_FILE = "index.faiss"
IDS_FILE = "clip_ids.json"


class FlatIndex:
    """Unit vectors of clips, all of which are compared with a query."""

    def __init__(self, index: Any, clip_ids: Sequence[str]) -> None:
        self._index = index
        self.clip_ids: Shaped[np.ndarray, " clips"] = np.asarray(clip_ids, dtype=object)
        self._position = {clip_id: row for row, clip_id in enumerate(self.clip_ids.tolist())}

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._position

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def search(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        subset: Sequence[str] | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Shaped[np.ndarray, "queries k"]]:
        """The `k` clips of highest cosine for each query, best first.

        Args:
            queries: vectors; their length does not matter.
            k: at most the number of clips that are searched.
            subset: search these clips only.

        Returns:
            cosines and clip ids; clips of one cosine come in the order of the index.

        Raises:
            ValueError: a wrong k, dimension or vector, or an unknown clip in the subset.
        """
        import faiss

        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {queries.shape}; the index has dim {self.dim}")
        rows = self._rows(subset)
        searched = len(self) if rows is None else len(rows)
        if not 1 <= k <= searched:
            raise ValueError(f"k: {k} is not between 1 and the {searched} clips searched")
        parameters: Any = None
        if rows is not None:
            # faiss declares its parameters in C++, where no type checker looks.
            make_parameters: Any = faiss.SearchParameters
            parameters = make_parameters(sel=faiss.IDSelectorBatch(rows))
        unit = _unit(queries, [f"query {row}" for row in range(len(queries))])
        scores, found = self._index.search(unit, k, params=parameters)
        order = np.lexsort((found, -scores), axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        return scores, self.clip_ids[np.take_along_axis(found, order, axis=1)]

    def vectors(self, clip_ids: Sequence[str]) -> Float[np.ndarray, "clips dim"]:
        """The unit vectors of some clips."""
        rows = self._rows(clip_ids, unique=False)
        assert rows is not None
        return np.stack([self._index.reconstruct(int(row)) for row in rows])

    def save(self, folder: Path) -> None:
        """Write the vectors and the ids into an existing folder."""
        import faiss

        faiss.write_index(self._index, str(folder / INDEX_FILE))
        (folder / IDS_FILE).write_text(json.dumps(self.clip_ids.tolist()) + "\n")

    def _rows(
        self, clip_ids: Sequence[str] | None, *, unique: bool = True
    ) -> Int[np.ndarray, " clips"] | None:
        if clip_ids is None:
            return None
        unknown = [clip_id for clip_id in clip_ids if clip_id not in self._position]
        if unknown:
            raise ValueError(f"{len(unknown)} clips are not in the index, as {unknown[:3]}")
        rows = np.array([self._position[clip_id] for clip_id in clip_ids], dtype=np.int64)
        return np.unique(rows) if unique else rows


def build_index(embeddings: Float[np.ndarray, "clips dim"], clip_ids: Sequence[str]) -> FlatIndex:
    """Index vectors under their clips' ids.

    Raises:
        ValueError: no clips, ids that are not one a vector or come twice, or a vector without a
            direction (zero or not finite).
    """
    import faiss

    if embeddings.ndim != 2 or len(embeddings) == 0 or len(embeddings) != len(clip_ids):
        raise ValueError(
            f"embeddings of shape {embeddings.shape} for {len(clip_ids)} clip ids; "
            "one row a clip is needed, and at least one clip"
        )
    if len(set(clip_ids)) != len(clip_ids):
        raise ValueError(f"{len(clip_ids) - len(set(clip_ids))} clip ids come more than once")
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(_unit(embeddings, clip_ids))
    return FlatIndex(index, clip_ids)


def load_index(folder: Path) -> FlatIndex:
    """Read what `save` wrote."""
    import faiss

    index = faiss.read_index(str(folder / INDEX_FILE))
    return FlatIndex(index, json.loads((folder / IDS_FILE).read_text()))


def _unit(
    vectors: Float[np.ndarray, "rows dim"], names: Sequence[str]
) -> Float[np.ndarray, "rows dim"]:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} vectors are zero or not finite, as that of {names[int(bad[0])]}"
        )
    return np.asarray(vectors / lengths, dtype=np.float32)
