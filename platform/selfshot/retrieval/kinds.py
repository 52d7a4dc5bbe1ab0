"""Which kind of index fits a corpus: the arithmetic of size, memory and recall."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from selfshot.errors import UserError

Kind = Literal["flat", "ivf_flat", "ivf_pq", "hnsw"]

EXACT_VALUES = 2**28  # numbers that exact search compares a query with in some milliseconds
EXACTING_RECALL = 0.99  # wished from here on, a graph is worth its memory
LEAST_PER_LIST = 39  # training vectors of a list, below which k-means finds poor centres
CODE_BITS = 8  # of a part of a code
LEAST_TRAINED = 2**CODE_BITS  # as many as a product quantiser has centres
ROW_NUMBER = 8  # bytes
CODE_BYTES = 64


@dataclasses.dataclass(frozen=True)
class IndexPlan:
    """How a corpus is indexed.

    Attributes:
        kind: `flat` compares all; `ivf_flat` and `ivf_pq` look into the lists nearest to a query,
            of whole vectors or of their codes; `hnsw` walks a graph of neighbours.
        lists: of `ivf_flat` and `ivf_pq`.
        code_bytes: of a vector in `ivf_pq`.
        rotation: turn the vectors before coding them (OPQ).
        rerank: how many candidates for each wanted clip are compared anew by their exact vectors,
            which are then on disk beside the index; 0 for none.
        links: neighbours of a vector in `hnsw`.
        reason: why this kind, for people.
    """

    kind: Kind
    lists: int = 0
    code_bytes: int = 0
    rotation: bool = False
    rerank: int = 0
    links: int = 0
    reason: str = "set by hand"

    def memory_bytes(self, dim: int) -> int:
        """Bytes of a vector that a search wants in memory, its row number included."""
        if self.kind == "flat":
            return 4 * dim
        if self.kind == "hnsw":
            # Twice as many links in the lowest layer, and on average 1 / (links - 1) of them above.
            return 4 * dim + 4 * 2 * self.links + math.ceil(4 * self.links / (self.links - 1)) + 8
        return (self.code_bytes if self.kind == "ivf_pq" else 4 * dim) + ROW_NUMBER

    def shared_bytes(self, dim: int) -> int:
        """Bytes of what all vectors share: the lists' centres and the codebooks."""
        codebooks = 4 * 2**CODE_BITS * dim if self.kind == "ivf_pq" else 0
        return 4 * self.lists * dim + codebooks

    def disk_bytes(self, dim: int) -> int:
        """Bytes of a vector on disk, without its name."""
        return self.memory_bytes(dim) + (2 * dim if self.rerank else 0)


def plan_index(
    clips: int,
    dim: int,
    *,
    kind: Kind | Literal["auto"],
    memory_gb: float,
    wished_recall: float,
    lists: int | None,
    code_bytes: int | None,
    rotation: bool,
    rerank: int,
    links: int,
    training_sample: int,
) -> IndexPlan:
    """Settle the kind of an index and its sizes.

    Args:
        clips: in the corpus.
        dim: of a vector.
        kind: as in `IndexPlan`; `auto` chooses.
        memory_gb: what the index may take, in 10⁹ bytes.
        wished_recall: of the true nearest clips.
        lists: none: about four times the root of the number of clips.
        code_bytes: none: half a byte a dimension, and at most 64.
        rotation: see `IndexPlan`, of `ivf_pq`.
        rerank: see `IndexPlan`, of `ivf_pq`.
        links: see `IndexPlan`.
        training_sample: vectors that lists are trained on.

    Raises:
        UserError: the kind does not fit the memory or so small a corpus, or the bytes of a code do
            not divide the dimension.
    """
    trained = min(clips, training_sample)
    of_corpus = lists if lists is not None else 2 ** round(math.log2(4 * math.sqrt(clips)))
    of_sample = max(trained // LEAST_PER_LIST, 1)
    most = min(max(dim // 2, 1), CODE_BYTES)
    coded = code_bytes if code_bytes is not None else _divisor(dim, most)
    plans = {
        "flat": IndexPlan("flat"),
        "hnsw": IndexPlan("hnsw", links=links),
        "ivf_flat": IndexPlan("ivf_flat", lists=min(of_corpus, of_sample)),
        "ivf_pq": IndexPlan(
            "ivf_pq",
            lists=min(of_corpus, of_sample),
            code_bytes=coded,
            rotation=rotation,
            rerank=rerank,
        ),
    }

    def gigabytes(plan: IndexPlan) -> float:
        return clips * plan.memory_bytes(dim) / 1e9

    if kind == "auto":
        fits = {name for name, plan in plans.items() if gigabytes(plan) <= memory_gb}
        chosen, reason = _automatic(clips * dim, fits, memory_gb, wished_recall)
        plan = dataclasses.replace(plans[chosen], reason=reason)
    else:
        plan = plans[kind]
    if gigabytes(plan) > memory_gb and plan.kind in ("flat", "hnsw"):
        raise UserError(
            f"index.kind: {plan.kind} takes {gigabytes(plan):.3g} GB for {clips:,} vectors of "
            f"{dim}, and index.memory_gb is {memory_gb:g}; raise it, or take auto or ivf_pq",
            setting="index.kind",
        )
    if plan.kind == "ivf_pq":
        if trained < LEAST_TRAINED:
            raise UserError(
                f"index.kind: ivf_pq is not possible for {trained} clips (at least "
                f"{LEAST_TRAINED}); take flat, which is exact and fast at this size",
                setting="index.kind",
            )
        if dim % plan.code_bytes:
            raise UserError(
                f"index.code_bytes: {plan.code_bytes} does not divide the {dim} numbers of a "
                f"vector; take {_divisor(dim, min(plan.code_bytes, dim))}",
                setting="index.code_bytes",
            )
    return plan


def _automatic(
    values: int, fits: set[str], memory_gb: float, wished_recall: float
) -> tuple[str, str]:
    """The kind for as many numbers, of those that fit the memory, and why."""
    if values <= EXACT_VALUES and "flat" in fits:
        return "flat", "small enough to compare all"
    if wished_recall >= EXACTING_RECALL and "hnsw" in fits:
        return "hnsw", f"a recall of {wished_recall:g} is wished, and a graph fits the memory"
    if "ivf_flat" in fits:
        return "ivf_flat", "too many to compare all, and whole vectors fit the memory"
    return "ivf_pq", f"whole vectors are more than {memory_gb:g} GB"


def _divisor(dim: int, most: int) -> int:
    """The largest divisor of `dim` that is not above `most`."""
    return next(size for size in range(most, 0, -1) if dim % size == 0)
