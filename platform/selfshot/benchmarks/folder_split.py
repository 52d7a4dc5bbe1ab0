"""Who trains, who is asked and who may help, among videos that were filmed and not composed."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from pathlib import PurePosixPath

import numpy as np

from selfshot.data.clips import ClipReader
from selfshot.data.ytvis import Annotations
from selfshot.ops.masks import rle_area

SIDES = ("train", "val", "test")
"""In the order of what a video must be kept for: the last side that it touches has it."""

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
    return f"video {video}" + (f" ({PurePosixPath(names[0]).parent})" if names else "")


def split_videos(
    reader: ClipReader, side_of: Mapping[str, str], faulty: Container[int], seed: int
) -> Split:
    """Deal the videos to the sides, and those of a side to queries and supports.

    A video belongs to the last of `SIDES` of which it holds a class, and so does its source: a
    video whose source belongs to a later side than itself is used on neither.

    Args:
        reader: of the clips that queries and supports will be.
        side_of: the side of each class.
        faulty: videos that are not to be used.
        seed: of the deal.
    """
    annotations = reader.annotations
    split = Split({side: [] for side in SIDES}, {side: {} for side in SIDES}, [])
    videos = [video for video in sorted(annotations.videos) if video not in faulty]
    holds = {
        video: {annotations.categories[t.category_id] for t in annotations.tracks_of(video)}
        for video in videos
    }
    source_of = {video: _source(annotations, video) for video in videos}
    own = {v: max((SIDES.index(side_of[name]) for name in holds[v]), default=0) for v in videos}
    side_of_source: dict[str, int] = {}
    for video, source in source_of.items():
        side_of_source[source] = max(own[video], side_of_source.get(source, 0))

    members: dict[str, Members] = {name: {} for name in side_of}
    for video, source in source_of.items():
        side = SIDES[side_of_source[source]]
        split.mixed += own[video] > 0 and any(side_of[name] == "train" for name in holds[video])
        names = [name for name in _shown(reader, video) if side_of[name] == side]
        if own[video] < side_of_source[source]:
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
                members[name].setdefault(source, []).append(video)
            continue
        split.set_aside.append((label(annotations, video), reason))
    split.two_sources = tuple(name for name, sources in members.items() if len(sources) > 1)

    numbers = {name: number for number, name in enumerate(sorted(members))}
    # The rarest class first: a video asks for one class only, and others have more to ask with.
    for name in sorted(members, key=lambda name: (len(members[name]), name)):
        if side_of[name] == "train":
            _deal_seen(annotations, split, name, members[name])
        else:
            rng = np.random.default_rng([seed, 5, numbers[name]])
            _deal_unseen(annotations, split, side_of[name], name, members[name], rng)
    for pairs in split.queries.values():
        pairs.sort(key=lambda pair: (pair[1], pair[0]))
    return split


def _source(annotations: Annotations, video: int) -> str:
    """A video that names no source is its own; the slash keeps it apart from a name."""
    source = annotations.videos[video].source_id
    return f"/video {video}" if source is None else source


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
    if len(sources) > 1:
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


def _deal_unseen(
    annotations: Annotations,
    split: Split,
    side: str,
    name: str,
    sources: Members,
    rng: np.random.Generator,
) -> None:
    """Half of an unseen class's sources ask, the others help as oracle supports."""
    if not sources:
        split.set_aside.append((f"class {name}", f"no video of it is left for {side}"))
        return

    def leave(video: int, reason: str) -> None:
        what = f"{label(annotations, video)} as a {side} query of {name}"
        split.set_aside.append((what, reason))

    if len(sources) < 2:
        for video in sorted(video for members in sources.values() for video in members):
            leave(
                video,
                "fewer videos than shots: all of this class come from one source, so none is "
                "left as a support",
            )
        return
    asked = dict(split.queries[side])
    order = [sorted(sources)[i] for i in rng.permutation(len(sources))]
    # Videos that ask for another class already can still help this one.
    order.sort(key=lambda source: all(video in asked for video in sources[source]))
    half = (len(order) + 1) // 2
    split.supports[side][name] = sorted(v for source in order[half:] for v in sources[source])
    for video in sorted(v for source in order[:half] for v in sources[source]):
        if video in asked:
            leave(video, f"it is a query of {asked[video]} already")
        else:
            split.queries[side].append((video, name))
