"""Who trains, who is asked and who may help, among videos that were filmed and not composed."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from pathlib import PurePosixPath

import numpy as np

from selfshot.config.printable import printable
from selfshot.data.clips import ClipReader
from selfshot.data.ytvis import Annotations
from selfshot.ops.masks import rle_area

SIDES = ("train", "val", "test")
"""In the order of what a video must be kept for: the last side that it touches has it."""

UNSEEN = "unseen"
"""In place of a side: a class that is unseen, and whose videos are dealt to val and test."""

FEWEST_SOURCES = 2
"""Of a class on a side: one asks, another helps."""

Members = dict[str, list[int]]
"""Videos by their source."""


@dataclasses.dataclass
class Split:
    """Queries and supports of each side.

    Attributes:
        queries: `(video, class)` pairs of each side.
        supports: of each side, the videos of each class that has any.
        set_aside: `(what, reason)` of what is in neither.
        mixed: how many videos show seen and unseen classes.
        two_sources: classes with videos of at least two sources.
    """

    queries: dict[str, list[tuple[int, str]]]
    supports: dict[str, dict[str, list[int]]]
    set_aside: list[tuple[str, str]]
    mixed: int = 0
    two_sources: tuple[str, ...] = ()

    def videos(self, side: str) -> set[int]:
        """Videos that a side uses."""
        helpers = {video for videos in self.supports[side].values() for video in videos}
        return helpers | {video for video, _ in self.queries[side]}


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
    side_of: Mapping[str, str],
    faulty: Container[int],
    seed: int,
    *,
    val_share: float = 0.0,
) -> Split:
    """Deal the videos to the sides, and those of a side to queries and supports.

    A video belongs to the last of `SIDES` of which it holds a class, and so does its source: a
    video whose source belongs to a later side than itself is used on neither. A source that
    holds a class of `UNSEEN` belongs to val or test, whichever it is dealt to.

    Half of the sources of a val or test class ask, once a video, and the others help. Every
    video of an `UNSEEN` class asks, once for each of them, and helps those of other sources.

    Args:
        reader: of the clips that queries and supports will be.
        side_of: the side of each class, or `UNSEEN`.
        faulty: videos that are not to be used.
        seed: of the deal.
        val_share: share of the sources of each `UNSEEN` class that goes to val.
    """
    annotations = reader.annotations
    split = Split({side: [] for side in SIDES}, {side: {} for side in SIDES}, [])
    videos = [video for video in sorted(annotations.videos) if video not in faulty]
    holds = {
        video: {annotations.categories[t.category_id] for t in annotations.tracks_of(video)}
        for video in videos
    }
    shown = {video: _shown(reader, video) for video in videos}
    sources = {video: source_of(annotations, video) for video in videos}
    rank = {name: SIDES.index("test" if s == UNSEEN else s) for name, s in side_of.items()}
    own = {video: max((rank[name] for name in holds[video]), default=0) for video in videos}
    last: dict[str, int] = {}
    for video, source in sources.items():
        last[source] = max(own[video], last.get(source, 0))
    numbers = {name: number for number, name in enumerate(sorted(side_of))}
    dealt: dict[str, set[str]] = {name: set() for name, side in side_of.items() if side == UNSEEN}
    for video, source in sources.items():
        for name in dealt.keys() & set(shown[video]):
            dealt[name].add(source)
    for_val = _sources_for_val(dealt, numbers, val_share, seed)

    members: dict[tuple[str, str], Members] = {}
    for name, side in side_of.items():
        members |= {(one, name): {} for one in (("val", "test") if side == UNSEEN else (side,))}
    for video, source in sources.items():
        side = "val" if source in for_val else SIDES[last[source]]
        split.mixed += own[video] > 0 and any(side_of[name] == "train" for name in holds[video])
        names = [name for name in shown[video] if (side, name) in members]
        if own[video] < last[source]:
            reason = (
                f"another video of its source, {source}, is on the {side} side, so this one may "
                f"not be used for {SIDES[own[video]]}"
            )
        elif not holds[video]:
            reason = "no instance is annotated"
        elif not names:
            reason = f"no {side} class is visible in the {reader.num_frames} frames of its clip"
        else:
            for name in names:
                members[side, name].setdefault(source, []).append(video)
            continue
        split.set_aside.append((label(annotations, video), reason))
    split.two_sources = tuple(
        dict.fromkeys(name for (_, name), own_sources in members.items() if len(own_sources) > 1)
    )

    # The rarest class first: a video may ask for one class only, and others have more to ask with.
    for side, name in sorted(members, key=lambda key: (len(members[key]), key[1], key[0])):
        if side == "train":
            _deal_seen(annotations, split, name, members[side, name])
        elif side_of[name] == UNSEEN:
            if side == "test" or val_share:
                _ask_all(annotations, split, side, name, members[side, name])
        else:
            rng = np.random.default_rng([seed, 5, numbers[name]])
            _ask_half(annotations, split, side, name, members[side, name], rng)
    for pairs in split.queries.values():
        pairs.sort(key=lambda pair: (pair[1], pair[0]))
    return split


def _sources_for_val(
    sources: Mapping[str, set[str]], numbers: Mapping[str, int], val_share: float, seed: int
) -> set[str]:
    """Sources for val, class by class and the rarest first; all others are for test.

    A class of fewer than four sources is for test only, as on each side one must ask and another
    must help.
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


def _deal_seen(annotations: Annotations, split: Split, name: str, sources: Members) -> None:
    """Every video of a seen class is query and support: training leaves out the query itself."""
    videos = sorted(video for members in sources.values() for video in members)
    if not videos:
        split.set_aside.append((f"class {name}", "no video of it is left to train on"))
        return
    split.supports["train"][name] = videos
    if len(sources) >= FEWEST_SOURCES:
        split.queries["train"] += [(video, name) for video in videos]
        return
    split.set_aside += [
        (
            f"{label(annotations, video)} as a train query of {name}",
            "fewer videos than shots: all of this class come from one source; they only pretrain "
            "the backbone",
        )
        for video in videos
    ]


def _ask_half(
    annotations: Annotations,
    split: Split,
    side: str,
    name: str,
    sources: Members,
    rng: np.random.Generator,
) -> None:
    """Half of an unseen class's sources ask, the others help as oracle supports."""
    if _too_few(annotations, split, side, name, sources):
        return
    asked = dict(split.queries[side])
    order = [sorted(sources)[i] for i in rng.permutation(len(sources))]
    # Videos that ask for another class already can still help this one.
    order.sort(key=lambda source: all(video in asked for video in sources[source]))
    half = (len(order) + 1) // 2
    split.supports[side][name] = sorted(v for source in order[half:] for v in sources[source])
    for video in sorted(v for source in order[:half] for v in sources[source]):
        if video in asked:
            what = f"{label(annotations, video)} as a {side} query of {name}"
            split.set_aside.append((what, f"it is a query of {asked[video]} already"))
        else:
            split.queries[side].append((video, name))


def _ask_all(
    annotations: Annotations, split: Split, side: str, name: str, sources: Members
) -> None:
    """Every video of an unseen class asks for it, and helps the others."""
    if _too_few(annotations, split, side, name, sources):
        return
    videos = sorted(video for members in sources.values() for video in members)
    split.supports[side][name] = videos
    split.queries[side] += [(video, name) for video in videos]


def _too_few(
    annotations: Annotations, split: Split, side: str, name: str, sources: Members
) -> bool:
    """Whether no video can ask, as none of another source would help; says so if it is so."""
    if not sources:
        split.set_aside.append((f"class {name}", f"no video of it is left for {side}"))
    elif len(sources) < FEWEST_SOURCES:
        split.set_aside += [
            (
                f"{label(annotations, video)} as a {side} query of {name}",
                "fewer videos than shots: all of this class come from one source, so none is "
                "left as a support",
            )
            for video in sorted(video for members in sources.values() for video in members)
        ]
    return len(sources) < FEWEST_SOURCES
