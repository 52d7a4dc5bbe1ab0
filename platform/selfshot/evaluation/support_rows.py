"""The supports that a run chose for the queries of a benchmark, to be shown beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfshot.benchmarks.manifest import Benchmark, read_corpus_labels
from selfshot.data.clips import ClipReader
from selfshot.data.json_entries import is_finite, kind, read_json, short
from selfshot.data.supports import Support
from selfshot.data.video import VideoError
from selfshot.errors import UserError
from selfshot.evaluation.rendering.sheets import SupportClip, SupportRow

MOST_SUPPORTS = 5
_SCORES = "_scores"  # what the name of a list of numbers, beside a kind's, ends in

Kinds = dict[str, tuple[list[Support], list[float]]]
"""For each kind of supports its clips or videos, best first, and their scores if there are any."""


class SupportsFile:
    """Reads the supports of each query of a `supports.json`, as clips with captions."""

    def __init__(self, path: Path, folder: Path, benchmark: Benchmark, reader: ClipReader) -> None:
        """Reads the file and refuses what does not belong to the benchmark.

        Args:
            path: query → kind → supports: clip ids of the corpus, ids of annotated videos, or
                parts of those. A query is a video's id, with `:` and its class where it may have
                several.
            folder: of the benchmark.
            benchmark: the benchmark.
            reader: of its annotated videos.

        Raises:
            UserError: the file cannot be read, or names what the benchmark does not hold.
        """
        self.path = path
        self.annotations = reader.annotations
        self._video_ids = {str(video): video for video in reader.annotations.videos}
        self.reader = benchmark.support_reader(folder, reader)
        self.labels = read_corpus_labels(folder)
        self.class_of = {
            video: name for pairs in benchmark.queries.values() for video, name in pairs
        }
        content = read_json(path)
        if not isinstance(content, dict) or not content:
            raise UserError(
                f"{path}: {kind(content)} is not allowed (query → kind → supports, as the "
                "supports stage writes it)"
            )
        self._chosen: dict[int, list[tuple[str | None, Kinds]]] = {}
        for text, of in content.items():
            video, name = self._query(text)
            self._chosen.setdefault(video, []).append((name, self._kinds(text, of)))

    @property
    def queries(self) -> list[int]:
        """Ids of the queries, in the file's order."""
        return list(self._chosen)

    def rows(self, video_id: int) -> list[SupportRow]:
        """The supports of a query, a row a kind; none for a video that is no query."""
        rows = []
        for query_class, kinds in self._chosen.get(video_id, ()):
            for name, (supports, scores) in kinds.items():
                clips = tuple(
                    self._clip(query_class, support, scores[place] if place < len(scores) else None)
                    for place, support in enumerate(supports[:MOST_SUPPORTS])
                )
                caption = f"{name.replace('_', '-')} supports"
                caption += f" of {query_class}" if query_class else ""
                rows += [SupportRow(caption, clips)] if clips else []
        return rows

    def _clip(self, query_class: str | None, support: Support, score: float | None) -> SupportClip:
        """One support; its class is known by the query's for annotated ones, else by a label."""
        name = self.labels.get(support) if isinstance(support, str) else query_class
        caption = name or str(support)
        if score is not None:
            caption += f" {score:.2f}"
        try:
            frames = self.reader.frames(support)
        except VideoError:
            frames, caption = None, f"{support} cannot be read"
        right = None if name is None or query_class is None else name == query_class
        return SupportClip(caption, frames, right)

    def _query(self, text: str) -> tuple[int, str | None]:
        """The query's video, and its class if that is known."""
        number, _, name = text.partition(":")
        if number not in self._video_ids:
            raise UserError(
                f"{self.path}: query {short(text)} is no video of the benchmark; give the supports "
                "that were chosen on this benchmark"
            )
        video = self._video_ids[number]
        return video, name or self.class_of.get(video)

    def _kinds(self, query: str, of: Any) -> Kinds:
        """For each kind its supports and, where there are any, their scores."""
        if not isinstance(of, dict) or not all(isinstance(some, list) for some in of.values()):
            raise UserError(
                f"{self.path}: query {short(query)}: {short(of)} is not allowed (kind → a list "
                "of supports)"
            )
        for name, supports in of.items():
            for one in supports:
                if not (is_finite(one) if name.endswith(_SCORES) else self._is_known(one)):
                    raise UserError(
                        f"{self.path}: query {short(query)}: {name}: {short(one)} is no clip and "
                        "no video of the benchmark; give the supports that were chosen on this "
                        "benchmark"
                    )
        return {
            name: (supports, of.get(name + _SCORES, []))
            for name, supports in of.items()
            if not name.endswith(_SCORES)
        }

    def _is_known(self, support: object) -> bool:
        if isinstance(support, str):
            return support in self.reader.clips
        if isinstance(support, dict):
            if not _is_part(support):
                return False
            support = support.get("video")
        is_number = isinstance(support, int) and not isinstance(support, bool)
        return is_number and support in self.annotations.videos


def _is_part(support: dict[str, Any]) -> bool:
    """Whether it names a stretch of a video or a box in its frames, by shares."""
    box = support.get("box", [support.get("start"), 0.0, support.get("end"), 1.0])
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        return False
    left, top, right, bottom = box
    return bool(0 <= left < right <= 1 and 0 <= top < bottom <= 1)
