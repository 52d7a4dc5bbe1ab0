"""Drawing annotations and results over their frames: a film and a contact sheet a video, a page."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import av
import jinja2
import numpy as np

from selfshot.config.printable import printable
from selfshot.data.frames import FrameReader
from selfshot.data.video import VideoError
from selfshot.data.ytvis import Annotations, Prediction, Video
from selfshot.errors import UserError
from selfshot.evaluation.drawing import plain, prediction_instances, track_instances
from selfshot.evaluation.films import Film, Gif, Mp4
from selfshot.evaluation.layout import (
    Panel,
    Scene,
    SupportRow,
    contact_sheet,
    sheet_indices,
    tile_size,
)

FORMATS = ("mp4", "gif", "png")
_TEMPLATES = Path(__file__).parent / "templates"


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


def show_videos(
    annotations: Annotations,
    frames: FrameReader,
    out: Path,
    *,
    videos: Sequence[int],
    formats: Sequence[str],
    fps: float,
    results: Selection | None = None,
    supports: Callable[[int], Sequence[SupportRow]] | None = None,
    title: str = "",
    on_video: Callable[[str], None] = lambda name: None,
) -> tuple[list[Drawn], list[tuple[str, str]]]:
    """Draw videos, and a page `index.html` to browse them.

    A video of which a frame cannot be read is left out, and named with its reason.

    Args:
        annotations: the tracks that are drawn, and what the results refer to.
        frames: reads the frames.
        out: made if need be; files of the same names are written over.
        videos: ids of the videos to draw, in this order.
        formats: some of `FORMATS`; png is the contact sheet.
        fps: of the films.
        results: drawn beside the annotations, or alone where nothing is annotated.
        supports: gives the supports of a video, shown beside it.
        title: of the page.
        on_video: is told each video's name when it is done with.

    Returns:
        What was drawn, and what was left out with the reason.

    Raises:
        UserError: a file cannot be written.
    """
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
                drawn.append(_show_one(annotations, video, panels, rows, frames, out, formats, fps))
            except VideoError as error:
                left_out.append((_title(video), str(error)))
            on_video(_title(video))
        _write_page(out, title, drawn, left_out)
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--out: {out} cannot be written: {reason}; give a folder that can be written, with "
            "room on its disk"
        ) from None
    return drawn, left_out


def video_name(video: Video) -> str:
    """What a person calls a video: its folder, its file or its source; empty where none is told."""
    if video.video_file is not None:
        return str(PurePosixPath(video.video_file).with_suffix(""))
    folder = str(PurePosixPath(video.file_names[0]).parent) if video.file_names else "."
    return folder if folder != "." else video.source_id or ""


def file_stem(video: Video) -> str:
    """A name for a video's files that cannot leave their folder and is no other video's."""
    number = str(video.id)
    if len(number) > 20:
        number = hashlib.sha256(number.encode()).hexdigest()[:20]
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
    out: Path,
    formats: Sequence[str],
    fps: float,
) -> Drawn:
    """Draw one video in every format, reading each frame once.

    Raises:
        VideoError: a frame cannot be read; nothing is left of the video's files then.
    """
    stem = file_stem(video)
    files = {kind: f"{stem}.{kind}" for kind in FORMATS if kind in formats}
    on_sheet = sheet_indices(video, len(panels)) if "png" in formats else []
    moves = bool({"mp4", "gif"} & set(formats))
    names = annotations.categories
    classes = dict.fromkeys(names[t.category_id] for t in annotations.tracks_of(video.id))
    facts = (
        f"{video.width} × {video.height} pixels",
        _counted(video.length, "frame"),
        *(panel.caption for panel in panels),
        ", ".join(plain(name) for name in classes),
    )
    with contextlib.ExitStack() as stack:
        paths = {kind: stack.enter_context(_whole(out / name)) for kind, name in files.items()}
        scene = Scene(video, panels, rows) if moves else None
        films = _films(stack, paths, scene, fps)
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
                for film in films:
                    film.add(picture)
        if "png" in paths:
            title = " · ".join((_title(video), *facts[:2]))
            sheet = contact_sheet(title, video, panels, rows, kept)
            sheet.save(paths["png"], "PNG", compress_level=1)
    return Drawn(_title(video), tuple(filter(None, facts)), files)


def _films(
    stack: contextlib.ExitStack, paths: dict[str, Path], scene: Scene | None, fps: float
) -> list[Film]:
    """The films to draw, which are closed with the stack, before their files are put in place."""
    films: list[Film] = []
    if scene is not None and "mp4" in paths:
        films.append(Mp4(paths["mp4"], fps, scene.size))
    if scene is not None and "gif" in paths:
        films.append(Gif(paths["gif"], fps))
    for film in films:
        stack.push(_closing(film))
    return films


def _closing(film: Film) -> Callable[..., None]:
    """Closes a film; what goes wrong in that must not hide what went wrong before."""

    def leave(kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            film.close()
        else:
            with contextlib.suppress(Exception):
                film.close()

    return leave


def _one_by_one(
    frames: FrameReader, video: Video, indices: Sequence[int], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    for piece in frames.pieces(video, indices, *size):
        yield from piece


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write a file, which has its name when all went well, and is gone otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    with _whole(out / "index.html") as partial:
        # Names may hold half of a surrogate pair, which UTF-8 has no bytes for.
        partial.write_text(page, encoding="utf-8", errors="replace")


def _title(video: Video) -> str:
    return " · ".join(part for part in (str(video.id), plain(video_name(video), 80)) if part)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
