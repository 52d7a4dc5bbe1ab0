"""The deal of videos to splits, the fixed pairs, and the check for leaks, on random worlds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusals import refused
from selfshot.benchmarks.finish import draw_pairs
from selfshot.benchmarks.leakage import check_leakage, query_sources
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.split import UNSEEN, source_of, split_videos
from selfshot.data.clips import ClipReader
from selfshot.data.ytvis import Annotations, Track, Video
from selfshot.ops.masks import encode_rle

RLE = encode_rle(np.ones((4, 4), bool))

NAMES = {1: "ant", 2: "bee", 3: "cat", 4: "dog"}
DEALT = {"ant": "train", "bee": "train", "cat": UNSEEN, "dog": UNSEEN}
NAMED = {"ant": "train", "bee": "train", "cat": "val", "dog": "test"}


def annotate(videos: list[tuple[set[int], str | None]]) -> Annotations:
    """Videos of one frame, given as (categories, source), numbered from 1."""
    tracks = [
        (number, category)
        for number, (categories, _) in enumerate(videos, start=1)
        for category in sorted(categories)
    ]
    return Annotations(
        {
            number: Video(number, 4, 4, 1, (f"v{number}/0.jpg",), source)
            for number, (_, source) in enumerate(videos, start=1)
        },
        NAMES,
        tuple(
            Track(i, video, category, (RLE,), ((0, 0, 4, 4),), (16.0,))
            for i, (video, category) in enumerate(tracks, start=1)
        ),
    )


def deal(annotations: Annotations, split_of: dict[str, str], seed: int = 0, **more: Any) -> Any:
    reader = ClipReader(annotations, Path(), num_frames=1, height=8, width=8)
    return split_videos(reader, split_of, (), seed, **more)


def manifest(
    annotations: Annotations, splits: Any, split_of: dict[str, str], seed: int = 0
) -> Benchmark:
    classes = {
        "train": tuple(sorted(splits.supports["train"])),
        "val": tuple(name for name, split in split_of.items() if split in ("val", UNSEEN)),
        "test": tuple(name for name, split in split_of.items() if split in ("test", UNSEEN)),
    }
    made = Benchmark(
        name="random",
        kind="folder",
        seed=seed,
        height=8,
        width=8,
        num_frames=1,
        classes=classes,
        queries={split: tuple(pairs) for split, pairs in splits.queries.items()},
        supports={
            split: {name: tuple(videos) for name, videos in by_class.items()}
            for split, by_class in splits.supports.items()
        },
    )
    pairs, _ = draw_pairs(made, annotations)
    return dataclasses.replace(made, pairs=pairs)


WORLDS = st.lists(
    st.tuples(
        st.sets(st.sampled_from(sorted(NAMES)), max_size=3),
        st.one_of(st.none(), st.sampled_from([f"s{i}" for i in range(9)])),
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(WORLDS, st.integers(0, 5), st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.booleans())
def test_no_world_leaks(
    check_promises: Callable[[Benchmark, Annotations], None],
    videos: list[tuple[set[int], str | None]],
    seed: int,
    val_share: float,
    dealt: bool,
) -> None:
    split_of = DEALT if dealt else NAMED
    annotations = annotate(videos)
    splits = deal(annotations, split_of, seed, val_share=val_share if dealt else 0.0)
    made = manifest(annotations, splits, split_of, seed)
    check_promises(made, annotations)
    check_leakage(made, annotations, [], {})
    # Every video has a split or a reason.
    placed = set().union(*(splits.videos(split) for split in ("train", "val", "test")))
    named = " ".join(f"{what} " for what, _ in splits.quarantined)
    assert all(f"video {video} " in named for video in set(annotations.videos) - placed)
    if not dealt:
        asked = [video for split in ("val", "test") for video, _ in splits.queries[split]]
        assert len(asked) == len(set(asked)), "a video asks for one class"
        return
    # Every unseen class of a video asks, where another source in its split can help.
    for split in ("val", "test"):
        for video in splits.videos(split):
            for category in videos[video - 1][0]:
                name = NAMES[category]
                if split_of[name] != UNSEEN:
                    continue
                sources = {
                    source_of(annotations, other)
                    for other in splits.videos(split)
                    if category in videos[other - 1][0]
                }
                if len(sources) > 1:
                    assert (video, name) in splits.queries[split]


def test_a_side_is_dealt_by_the_share() -> None:
    annotations = annotate([({3}, None)] * 40 + [({4}, None)] * 10 + [({1}, None)] * 2)
    splits = deal(annotations, DEALT, val_share=0.3)
    counted = Counter(name for _, name in splits.queries["val"])
    assert counted == {"cat": 12, "dog": 3}
    assert Counter(name for _, name in splits.queries["test"]) == {"cat": 28, "dog": 7}
    assert splits.queries["train"] == [(51, "ant"), (52, "ant")]


def test_two_entries_of_the_same_frames_are_one_source() -> None:
    annotations = annotate([({1}, None), ({4}, None), ({4}, None), ({1}, None), ({1}, None)])
    twin = dataclasses.replace(annotations.videos[1], file_names=("v2/0.jpg",))
    annotations = dataclasses.replace(annotations, videos={**annotations.videos, 1: twin})
    splits = deal(annotations, DEALT)
    assert 1 not in splits.videos("train")
    assert any("another video of its source, /v2/0.jpg" in why for _, why in splits.quarantined)


class TestPairs:
    def _made(self, dogs: int, seed: int = 0) -> tuple[Benchmark, Annotations]:
        annotations = annotate([({4}, None)] * dogs + [({1}, None)] * 2)
        return manifest(annotations, deal(annotations, DEALT), DEALT, seed), annotations

    def test_ten_of_other_sources_or_fewer_repeated_in_order(self) -> None:
        made, annotations = self._made(30)
        assert all(len(set(supports)) == 10 for supports in made.pairs["test"].values())
        assert draw_pairs(made, annotations)[1] == 0
        few, annotations = self._made(4)
        assert draw_pairs(few, annotations)[1] == 4
        for key, supports in few.pairs["test"].items():
            assert supports == (supports[:3] * 4)[:10]
            assert set(supports[:3]) == {1, 2, 3, 4} - {int(key.partition(":")[0])}

    def test_pairs_follow_the_seed_and_nothing_else(self) -> None:
        made, annotations = self._made(30)
        assert draw_pairs(made, annotations)[0] == made.pairs
        assert self._made(30, seed=1)[0].pairs != made.pairs
        # Another query's absence changes no pair.
        fewer = dataclasses.replace(
            made, queries={**made.queries, "test": made.queries["test"][5:]}
        )
        for key, supports in draw_pairs(fewer, annotations)[0]["test"].items():
            assert supports == made.pairs["test"][key]

    def test_a_query_without_any_support(self) -> None:
        made, annotations = self._made(4)
        alone = dataclasses.replace(made, supports={**made.supports, "test": {"dog": (1,)}})
        with refused("benchmark"):
            draw_pairs(alone, annotations)


class TestLeaks:
    """Each way to leak is an error that says what leaks."""

    ANNOTATIONS = annotate([({1}, "a"), ({1}, "b"), ({4}, "c"), ({4}, "d"), ({4, 1}, "e")])

    def _made(self) -> Benchmark:
        return manifest(self.ANNOTATIONS, deal(self.ANNOTATIONS, NAMED), NAMED)

    def _refused(
        self,
        made: Benchmark,
        annotations: Annotations,
        *parts: str,
        files: dict[int, list[str]] | None = None,
    ) -> None:
        with refused("benchmark") as caught:
            check_leakage(made, annotations, [], files or {})
        for part in parts:
            assert part in str(caught.value)

    def _moved(self, number: int, **changes: Any) -> Annotations:
        videos = dict(self.ANNOTATIONS.videos)
        videos[number] = dataclasses.replace(videos[number], **changes)
        return dataclasses.replace(self.ANNOTATIONS, videos=videos)

    def test_a_whole_benchmark_passes(self) -> None:
        check_leakage(self._made(), self.ANNOTATIONS, [{"clip_id": "x", "source_id": "z"}], {})

    def test_a_video_in_two_splits(self) -> None:
        made = self._made()
        leaky = dataclasses.replace(
            made, queries={**made.queries, "train": (*made.queries["train"], (3, "ant"))}
        )
        self._refused(
            leaky,
            self.ANNOTATIONS,
            "video 3 (v3) is used for train and for test",
            "the source c is used for train and for test",
            "video 3 (v3) trains and shows dog, which is unseen",
        )

    def test_a_video_of_seen_and_unseen_classes_in_training(self) -> None:
        made = self._made()
        without = {
            "queries": {**made.queries, "test": ()},
            "supports": {"train": {"ant": (1, 2, 5)}, "val": {}, "test": {}},
            "pairs": {},
        }
        leaky = dataclasses.replace(made, **without)
        self._refused(leaky, self.ANNOTATIONS, "video 5 (v5) trains and shows dog")

    def test_a_source_in_two_splits(self) -> None:
        annotations = self._moved(1, source_id="c")
        self._refused(self._made(), annotations, "the source c is used for train and for test")

    def test_frames_in_two_splits(self) -> None:
        annotations = self._moved(1, file_names=("v3/0.jpg",))
        self._refused(self._made(), annotations, "the frame v3/0.jpg is used for train and for")

    @pytest.mark.parametrize("source", ["C", " c ", "c\u0301", "\u0107"])
    def test_a_source_that_is_spelt_otherwise(self, source: str) -> None:
        annotations = self._moved(1, source_id=source)
        if len(source.strip()) == 1 and source != "\u0107":
            self._refused(self._made(), annotations, "is used for train and for test")
            return
        # An accent is another name, however it is written.
        check_leakage(self._made(), annotations, [], {})
        videos = {**annotations.videos}
        for number, name in ((1, "c\u0301"), (3, "\u0107")):
            videos[number] = dataclasses.replace(videos[number], source_id=name)
        self._refused(
            self._made(),
            dataclasses.replace(annotations, videos=videos),
            "is used for train and for test",
        )

    def test_the_same_files_under_other_names(self) -> None:
        files = {number: [f"{number} {frame}" for frame in range(4)] for number in range(1, 6)}
        check_leakage(self._made(), self.ANNOTATIONS, [], files)
        # A black frame at the beginning is in many recordings.
        for frames in files.values():
            frames[0] = "black"
        check_leakage(self._made(), self.ANNOTATIONS, [], files)
        files[1][2] = files[3][1]
        self._refused(
            self._made(),
            self.ANNOTATIONS,
            "video 1 (v1) and video 3 (v3) are the same files",
            "train, test",
            files=files,
        )
        files[1] = [f"1 {frame}" for frame in range(4)]
        files[4] = files[3][::-1]
        self._refused(
            self._made(), self.ANNOTATIONS, "are the same files under two sources", files=files
        )

    @pytest.mark.parametrize("number", [1, 3, 4])
    def test_the_file_of_a_query_in_the_corpus(self, number: int) -> None:
        made = self._made()
        rows = [{"clip_id": "x", "source_id": "z", "sha256": "abc"}]
        if number in {video for video, _ in made.queries["test"]}:
            with refused("benchmark"):
                check_leakage(made, self.ANNOTATIONS, rows, {number: ["abc"]})
        else:
            check_leakage(made, self.ANNOTATIONS, rows, {number: ["abc"]})

    def test_a_class_in_two_splits(self) -> None:
        made = self._made()
        leaky = dataclasses.replace(made, classes={**made.classes, "val": ("cat", "ant")})
        self._refused(leaky, self.ANNOTATIONS, "the class ant is seen and unseen")

    def test_a_support_of_its_querys_source_or_of_another_side(self) -> None:
        made = self._made()
        (key, *_) = made.pairs["test"]
        query = int(key.partition(":")[0])
        leaky = dataclasses.replace(
            made, pairs={**made.pairs, "test": {**made.pairs["test"], key: (query, 1)}}
        )
        self._refused(
            leaky,
            self.ANNOTATIONS,
            "has a support of its own source",
            "video 1 (v1) supports a test query of dog and is no test support of it",
        )

    def test_a_clip_of_a_querys_source_in_the_corpus(self) -> None:
        made = self._made()
        source = sorted(query_sources(made, self.ANNOTATIONS))[0]
        with refused("benchmark"):
            check_leakage(made, self.ANNOTATIONS, [{"clip_id": "x", "source_id": source}], {})

    def test_many_leaks_make_one_message(self) -> None:
        made = self._made()
        source = sorted(query_sources(made, self.ANNOTATIONS))[0]
        rows = [{"clip_id": str(i), "source_id": source} for i in range(9)]
        with refused("benchmark") as caught:
            check_leakage(made, self.ANNOTATIONS, rows, {})
        assert str(caught.value).count("corpus clip") == 5
