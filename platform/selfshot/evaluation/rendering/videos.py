"""Annotations and results over their frames: animations, contact sheets and a page of them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import av
import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from selfshot.config.printable import printable
from selfshot.data.frames import FrameReader
from selfshot.data.video import VideoError
from selfshot.data.ytvis import Annotations, Prediction, Video
from selfshot.errors import UserError
from selfshot.evaluation.rendering.animations import Animation
from selfshot.evaluation.rendering.painting import (
    Instance,
    Painter,
    plain,
    prediction_instances,
    text_picture,
    track_instances,
)
from selfshot.evaluation.rendering.sheets import (
    BAR,
    GAP,
    GROUND,
    INK,
    SupportRow,
    below,
    beside,
    captioned,
    contact_sheet,
    resized,
)
from selfshot.files import atomic_file, digest_bytes

FORMATS = ("mp4", "gif", "png")
_TEMPLATES = Path(__file__).parent / "templates"
# Panels: small videos are enlarged towards the least height, large ones are fitted into the most.
_LEAST_HEIGHT, _MOST_HEIGHT, _MOST_WIDTH = 240, 540, 960
_TILE_WIDTH, _TILE_HEIGHT = 320, 240  # a frame of a contact sheet is fitted into this
_SUPPORT_HEIGHT = 96  # on a contact sheet
_MOST_SUPPORT_HEIGHT = 168  # beside a video
_COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Panel:
    """A copy of the video with some instances drawn on it."""

    caption: str
    instances: tuple[Instance, ...]


class Scene:
    """Draws frames of one video: a panel beside the other, then the supports."""

    def __init__(
        self, video: Video, panels: Sequence[Panel], supports: Sequence[SupportRow]
    ) -> None:
        """Makes the supports' pictures.

        Args:
            video: whose frames.
            panels: at least one.
            supports: rows of them; may be empty.
        """
        self.panel_size = panel_size(video)
        self.length = video.length
        mask_size = (video.height, video.width)
        self._panels = [
            (panel.caption, Painter(panel.instances, mask_size, self.panel_size))
            for panel in panels
        ]
        room = (BAR + self.panel_size[0]) // max(len(supports), 1) - BAR - GAP
        height = min(max(room, 24), _MOST_SUPPORT_HEIGHT)
        self._supports = [
            (row.caption, [clip.pictures(height) for clip in row.clips]) for row in supports
        ]

    def draw(self, pixels: UInt8[np.ndarray, "height width 3"], frame: int) -> Image.Image:
        """A frame of the video, of the panels' size, with everything that belongs to it."""
        columns = []
        for caption, painter in self._panels:
            picture = Image.fromarray(pixels)
            painter.paint(picture, frame)
            columns.append(captioned(caption, picture))
        rows = [
            captioned(caption, beside([clip[frame * len(clip) // self.length] for clip in clips]))
            for caption, clips in self._supports
        ]
        return beside([*columns, below(rows)] if rows else columns)


def panel_size(video: Video) -> tuple[int, int]:
    """Height and width of a panel, in pixels."""
    scale = min(_MOST_HEIGHT / video.height, _MOST_WIDTH / video.width)
    if scale > 1:
        scale = min(scale, math.ceil(max(_LEAST_HEIGHT / video.height, 1)))
    return max(round(video.height * scale), 2), max(round(video.width * scale), 2)


def tile_size(video: Video) -> tuple[int, int]:
    """Height and width of a frame on a contact sheet, in pixels."""
    scale = min(_TILE_HEIGHT / video.height, _TILE_WIDTH / video.width)
    return max(round(video.height * scale), 2), max(round(video.width * scale), 2)


def sheet_indices(video: Video, num_panels: int) -> list[int]:
    """The frames that a contact sheet shows: evenly spaced, the first and the last with them."""
    count = _COLUMNS * (3 if num_panels == 1 else 2)
    return np.unique(np.linspace(0, video.length - 1, count).round().astype(int)).tolist()


def video_sheet(
    title: str,
    video: Video,
    panels: Sequence[Panel],
    supports: Sequence[SupportRow],
    frames: Sequence[tuple[int, UInt8[np.ndarray, "height width 3"]]],
) -> Image.Image:
    """Frames of a video in a grid; each panel has a line of it under the other's.

    Args:
        title: written above.
        video: whose frames.
        panels: at least one.
        supports: shown above the frames by their middle frames; may be empty.
        frames: index and pixels of each frame to show, in any size.
    """
    height, width = tile_size(video)
    painters = [
        Painter(panel.instances, (video.height, video.width), (height, width)) for panel in panels
    ]
    rows = [
        (row.caption, [clip.middle(_SUPPORT_HEIGHT) for clip in row.clips]) for row in supports
    ]
    for start in range(0, len(frames), _COLUMNS):
        for panel, painter in zip(panels, painters, strict=True):
            tiles = []
            for index, pixels in frames[start : start + _COLUMNS]:
                picture = resized(pixels, (width, height))
                number = text_picture(str(index), 11, INK, GROUND)
                picture.paste(number, (width - number.width, 0))
                painter.paint(picture, index)  # labels may cover the number, and not the reverse
                tiles.append(picture)
            rows.append((panel.caption, tiles))
    return contact_sheet(rows, title)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What of a results file is drawn: the `top` best of each video that reach `min_score`."""

    predictions: Sequence[Prediction]
    min_score: float = 0.0
    top: int = 5


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A video that has been drawn.

    Attributes:
        name: what a person calls it.
        facts: of the video, in a few words each.
        files: for each format the file's name in the folder.
    """

    name: str
    facts: tuple[str, ...]
    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is written, and where.

    Attributes:
        out: made if need be; files of the same names are written over.
        formats: some of `FORMATS`; png is the contact sheet.
        fps: frames in a second of the animations.
        title: of the page.
    """

    out: Path
    formats: Sequence[str]
    fps: float
    title: str = ""


def show_videos(
    annotations: Annotations,
    frames: FrameReader,
    pictures: Pictures,
    videos: Sequence[int],
    *,
    results: Selection | None = None,
    supports: Callable[[int], Sequence[SupportRow]] | None = None,
    on_video: Callable[[str], None] = lambda name: None,
) -> tuple[list[Drawn], list[tuple[str, str]]]:
    """Draw videos, and a page `index.html` to browse them.

    A video of which a frame cannot be read is left out, and named with its reason.

    Args:
        annotations: the tracks that are drawn, and what the results refer to.
        frames: reads the frames.
        pictures: what is written, and where.
        videos: ids of the videos to draw, in this order.
        results: drawn beside the annotations, or alone where nothing is annotated.
        supports: gives the supports of a video, shown beside it.
        on_video: receives each video's name when it is done with.

    Returns:
        What was drawn, and what was left out with the reason.

    Raises:
        UserError: a file cannot be written.
    """
    out = pictures.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        of_video: dict[int, list[Prediction]] = {}
        for prediction in results.predictions if results else ():
            of_video.setdefault(prediction.video_id, []).append(prediction)
        drawn, left_out = [], []
        for number in videos:
            video = annotations.videos[number]
            panels = _panels(annotations, video, results, of_video.get(number, ()))
            rows = supports(number) if supports else ()
            try:
                drawn.append(_show_one(annotations, video, panels, rows, frames, pictures))
            except VideoError as error:
                left_out.append((_title(video), str(error)))
            on_video(_title(video))
        _write_page(out, pictures.title, drawn, left_out)
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--out: {out} cannot be written: {reason}; give a folder that can be written, with "
            "room on its disk",
            setting="--out",
        ) from None
    return drawn, left_out


def video_name(video: Video) -> str:
    """What a person calls a video: its folder, its file or its source; empty without any."""
    if video.video_file is not None:
        return str(PurePosixPath(video.video_file).with_suffix(""))
    folder = str(PurePosixPath(video.file_names[0]).parent) if video.file_names else "."
    return folder if folder != "." else video.source_id or ""


def file_stem(video: Video) -> str:
    """A name for a video's files that cannot leave their folder and is no other video's."""
    number = str(video.id)
    if len(number) > 20:
        number = digest_bytes(number.encode())[:20]
    name = re.sub(r"[^A-Za-z0-9]+", "_", video_name(video)).strip("_")[:60]
    return f"{number}_{name}" if name else number


def _panels(
    annotations: Annotations,
    video: Video,
    results: Selection | None,
    predictions: Sequence[Prediction],
) -> list[Panel]:
    """The annotations, the results, or both."""
    tracks = annotations.tracks_of(video.id)
    panels = []
    if annotations.tracks or results is None:
        instances = track_instances(tracks, annotations.categories)
        panels.append(Panel(f"ground truth: {_counted(len(tracks), 'instance')}", tuple(instances)))
    if results is not None:
        instances = prediction_instances(
            predictions,
            tracks,
            annotations.categories,
            min_score=results.min_score,
            top=results.top,
        )
        count = _counted(len(predictions), "prediction")
        if len(instances) < len(predictions):
            count = f"best {len(instances)} of {count}" if instances else f"none of {count}"
        panels.append(Panel(f"results: {count}", tuple(instances)))
    return panels


def _show_one(
    annotations: Annotations,
    video: Video,
    panels: Sequence[Panel],
    rows: Sequence[SupportRow],
    frames: FrameReader,
    pictures: Pictures,
) -> Drawn:
    """Draw one video in every format, reading each frame once.

    Raises:
        VideoError: a frame cannot be read; nothing is left of the video's files then.
    """
    stem = file_stem(video)
    files = {kind: f"{stem}.{kind}" for kind in FORMATS if kind in pictures.formats}
    on_sheet = sheet_indices(video, len(panels)) if "png" in pictures.formats else []
    moves = bool({"mp4", "gif"} & set(pictures.formats))
    names = annotations.categories
    classes = dict.fromkeys(names[t.category_id] for t in annotations.tracks_of(video.id))
    facts = (
        f"{video.width} × {video.height} pixels",
        _counted(video.length, "frame"),
        *(panel.caption for panel in panels),
        ", ".join(plain(name) for name in classes),
    )
    with contextlib.ExitStack() as stack:
        paths = {
            kind: stack.enter_context(atomic_file(pictures.out / name))
            for kind, name in files.items()
        }
        scene = Scene(video, panels, rows) if moves else None
        animations = [
            stack.enter_context(Animation(paths[kind], kind, pictures.fps))
            for kind in ("mp4", "gif")
            if kind in paths
        ]
        indices = range(video.length) if scene else on_sheet
        kept = []
        for index, pixels in zip(
            indices,
            _one_by_one(frames, video, indices, scene.panel_size if scene else tile_size(video)),
            strict=True,
        ):
            if index in on_sheet:
                kept.append((index, pixels.copy()))
            if scene:
                picture = scene.draw(pixels, index)
                for animation in animations:
                    animation.add(picture)
        if "png" in paths:
            title = " · ".join((_title(video), *facts[:2]))
            sheet = video_sheet(title, video, panels, rows, kept)
            sheet.save(paths["png"], "PNG", compress_level=1)
    return Drawn(_title(video), tuple(filter(None, facts)), files)


def _one_by_one(
    frames: FrameReader, video: Video, indices: Sequence[int], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    for piece in frames.pieces(video, indices, *size):
        yield from piece


def _write_page(
    out: Path, title: str, drawn: Sequence[Drawn], left_out: Sequence[tuple[str, str]]
) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = quote
    page = environment.get_template("browse.html.jinja").render(
        title=title, drawn=drawn, left_out=left_out
    )
    with atomic_file(out / "index.html") as partial:
        # Names may hold half of a surrogate pair, which UTF-8 has no bytes for.
        partial.write_text(page, encoding="utf-8", errors="replace")


def _title(video: Video) -> str:
    return " · ".join(part for part in (str(video.id), plain(video_name(video), 80)) if part)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
