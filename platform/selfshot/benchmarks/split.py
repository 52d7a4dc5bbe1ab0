"""Which real videos train, which are queries and which are supports."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from pathlib import PurePosixPath

import numpy as np

from selfshot.config.printable import printable
from selfshot.data.clips import ClipReader
from selfshot.data.ytvis import Annotations
from selfshot.ops.masks import rle_area

SPLITS = ("train", "val", "test")
"""In the order of what a video must be kept for: the last split that it touches has it."""

UNSEEN = "unseen"
"""In place of a split: a class that is unseen, and whose videos are dealt to val and test."""

FEWEST_SOURCES = 2
"""Of a class in a split: one for queries, another for supports."""

Members = dict[str, list[int]]
"""Videos by their source."""


@dataclasses.dataclass
class Splits:
    """Queries and supports of each split.

    Attributes:
        queries: `(video, class)` pairs of each split.
        supports: of each split, the videos of each class that has any.
        quarantined: `(what, reason)` of what is in neither.
        mixed: how many videos show seen and unseen classes.
        two_sources: classes with videos of at least two sources.
    """

    queries: dict[str, list[tuple[int, str]]]
    supports: dict[str, dict[str, list[int]]]
    quarantined: list[tuple[str, str]]
    mixed: int = 0
    two_sources: tuple[str, ...] = ()

    def videos(self, split: str) -> set[int]:
        """Videos that a split uses."""
        helpers = {video for videos in self.supports[split].values() for video in videos}
        return helpers | {video for video, _ in self.queries[split]}


def label(annotations: Annotations, video: int) -> str:
    """What a person calls a video."""
    names = annotations.videos[video].file_names
    folder = printable(str(PurePosixPath(names[0]).parent)) if names else ""
    return f"video {video}" + (f" ({folder})" if names else "")


def source_of(annotations: Annotations, video: int) -> str:
    """What a video was cut from: see `Annotations.sources`."""
    return annotations.sources[video]


def split_videos(
    reader: ClipReader,
    split_of: Mapping[str, str],
    faulty: Container[int],
    seed: int,
    *,
    val_share: float = 0.0,
) -> Splits:
    """Deal the videos to the splits, and those of a split to queries and supports.

    A video belongs to the last of `SPLITS` of which it holds a class, and so does its source: a
    video whose source belongs to a later split than itself is used on neither. A source that
    holds a class of `UNSEEN` belongs to val or test, whichever it is dealt to.

    Half of the sources of a val or test class hold queries, each video of one class, and the
    others supports. Every video of an `UNSEEN` class is a query of each of its unseen classes, and
    a support of the queries of other sources.

    Args:
        reader: of the clips that queries and supports will be.
        split_of: the split of each class, or `UNSEEN`.
        faulty: videos that are not to be used.
        seed: of the deal.
        val_share: share of the sources of each `UNSEEN` class that goes to val.
    """
    annotations = reader.annotations
    splits = Splits({split: [] for split in SPLITS}, {split: {} for split in SPLITS}, [])
    videos = [video for video in sorted(annotations.videos) if video not in faulty]
    holds = {
        video: {annotations.categories[t.category_id] for t in annotations.tracks_of(video)}
        for video in videos
    }
    shown = {video: _shown(reader, video) for video in videos}
    sources = {video: source_of(annotations, video) for video in videos}
    rank = {name: SPLITS.index("test" if s == UNSEEN else s) for name, s in split_of.items()}
    own = {video: max((rank[name] for name in holds[video]), default=0) for video in videos}
    last: dict[str, int] = {}
    for video, source in sources.items():
        last[source] = max(own[video], last.get(source, 0))
    numbers = {name: number for number, name in enumerate(sorted(split_of))}
    dealt: dict[str, set[str]] = {name: set() for name in split_of if split_of[name] == UNSEEN}
    for video, source in sources.items():
        for name in dealt.keys() & set(shown[video]):
            dealt[name].add(source)
    for_val = _sources_for_val(dealt, numbers, val_share, seed)

    members: dict[tuple[str, str], Members] = {}
    for name, split in split_of.items():
        members |= {(one, name): {} for one in (("val", "test") if split == UNSEEN else (split,))}
    for video, source in sources.items():
        split = "val" if source in for_val else SPLITS[last[source]]
        splits.mixed += own[video] > 0 and any(split_of[name] == "train" for name in holds[video])
        names = [name for name in shown[video] if (split, name) in members]
        if own[video] < last[source]:
            reason = (
                f"another video of its source, {source}, is in the {split} split, so this one may "
                f"not be used for {SPLITS[own[video]]}"
            )
        elif not holds[video]:
            reason = "no instance is annotated"
        elif not names:
            reason = f"no {split} class is visible in the {reader.num_frames} frames of its clip"
        else:
            for name in names:
                members[split, name].setdefault(source, []).append(video)
            continue
        splits.quarantined.append((label(annotations, video), reason))
    splits.two_sources = tuple(
        dict.fromkeys(name for (_, name), own_sources in members.items() if len(own_sources) > 1)
    )

    # The rarest class first: a video is a query of one class only, and others have more videos.
    for split, name in sorted(members, key=lambda key: (len(members[key]), key[1], key[0])):
        if split == "train":
            _deal_seen(annotations, splits, name, members[split, name])
        elif split_of[name] == UNSEEN:
            if split == "test" or val_share:
                _deal_all(annotations, splits, split, name, members[split, name])
        else:
            rng = np.random.default_rng([seed, 5, numbers[name]])
            _deal_half(annotations, splits, split, name, members[split, name], rng)
    for pairs in splits.queries.values():
        pairs.sort(key=lambda pair: (pair[1], pair[0]))
    return splits


def _sources_for_val(
    sources: Mapping[str, set[str]], numbers: Mapping[str, int], val_share: float, seed: int
) -> set[str]:
    """Sources for val, class by class and the rarest first; all others are for test.

    A class of fewer than four sources is for test only, as each split needs one for queries and
    another for supports.
    """
    val: set[str] = set()
    test: set[str] = set()
    for name in sorted(sources, key=lambda name: (len(sources[name]), name)):
        count = len(sources[name])
        wanted = 0
        if val_share and count >= 2 * FEWEST_SOURCES:
            most = count - FEWEST_SOURCES
            wanted = min(max(round(count * val_share), FEWEST_SOURCES), most)
        waiting = sorted(sources[name] - val - test)
        order = np.random.default_rng([seed, 41, numbers[name]]).permutation(len(waiting))
        more = min(max(wanted - len(sources[name] & val), 0), len(waiting))
        val |= {waiting[i] for i in order[:more]}
        test |= {waiting[i] for i in order[more:]}
    return val


def _shown(reader: ClipReader, video: int) -> list[str]:
    """Classes of which an instance is visible in the frames that a clip takes of the video."""
    sampled = set(reader.frame_indices(video).tolist())
    return sorted(
        {
            reader.annotations.categories[track.category_id]
            for track in reader.annotations.tracks_of(video)
            if not track.iscrowd
            and any(rle and rle_area(rle) for rle in (track.segmentations[i] for i in sampled))
        }
    )


def _deal_seen(annotations: Annotations, splits: Splits, name: str, sources: Members) -> None:
    """Every video of a seen class is query and support: training leaves out the query itself."""
    videos = sorted(video for members in sources.values() for video in members)
    if not videos:
        splits.quarantined.append((f"class {name}", "no video of it is left to train on"))
        return
    splits.supports["train"][name] = videos
    if len(sources) >= FEWEST_SOURCES:
        splits.queries["train"] += [(video, name) for video in videos]
        return
    splits.quarantined += [
        (
            f"{label(annotations, video)} as a train query of {name}",
            "fewer videos than shots: all of this class come from one source; they only pretrain "
            "the backbone",
        )
        for video in videos
    ]


def _deal_half(
    annotations: Annotations,
    splits: Splits,
    split: str,
    name: str,
    sources: Members,
    rng: np.random.Generator,
) -> None:
    """Half of an unseen class's sources hold queries, the others oracle supports."""
    if _too_few(annotations, splits, split, name, sources):
        return
    taken = dict(splits.queries[split])
    order = [sorted(sources)[i] for i in rng.permutation(len(sources))]
    # Queries of another class can still be supports of this one.
    order.sort(key=lambda source: all(video in taken for video in sources[source]))
    half = (len(order) + 1) // 2
    splits.supports[split][name] = sorted(v for source in order[half:] for v in sources[source])
    for video in sorted(v for source in order[:half] for v in sources[source]):
        if video in taken:
            what = f"{label(annotations, video)} as a {split} query of {name}"
            splits.quarantined.append((what, f"it is a query of {taken[video]} already"))
        else:
            splits.queries[split].append((video, name))


def _deal_all(
    annotations: Annotations, splits: Splits, split: str, name: str, sources: Members
) -> None:
    """Every video of an unseen class is a query of it, and a support of the others."""
    if _too_few(annotations, splits, split, name, sources):
        return
    videos = sorted(video for members in sources.values() for video in members)
    splits.supports[split][name] = videos
    splits.queries[split] += [(video, name) for video in videos]


def _too_few(
    annotations: Annotations, splits: Splits, split: str, name: str, sources: Members
) -> bool:
    """Whether no video can be a query, as no other source has a support; notes it if so."""
    if not sources:
        splits.quarantined.append((f"class {name}", f"no video of it is left for {split}"))
    elif len(sources) < FEWEST_SOURCES:
        splits.quarantined += [
            (
                f"{label(annotations, video)} as a {split} query of {name}",
                "fewer videos than shots: all of this class come from one source, so none is "
                "left as a support",
            )
            for video in sorted(video for members in sources.values() for video in members)
        ]
    return len(sources) < FEWEST_SOURCES
