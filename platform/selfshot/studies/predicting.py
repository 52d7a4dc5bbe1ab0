"""A trained experiment applied to a video of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from selfshot.benchmarks.manifest import Benchmark, load_benchmark
from selfshot.config.schema import Experiment
from selfshot.data.corpus_manifest import Manifest, find_clips, open_manifest
from selfshot.data.frames import FrameReader
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.images import IMAGE_SUFFIXES, image_names, image_size, is_image, read_image
from selfshot.data.video import VIDEO_SUFFIXES, VideoError, probe
from selfshot.data.ytvis import Annotations, Video, load_results, save_results
from selfshot.errors import UserError
from selfshot.evaluation.prediction import (
    CATEGORY,
    SupportCache,
    Windows,
    distinct,
    predict_video,
)
from selfshot.evaluation.rendering.heatmaps import draw_attention
from selfshot.evaluation.rendering.sheets import SupportClip, SupportRow
from selfshot.evaluation.rendering.videos import Pictures, Selection, show_videos
from selfshot.models.device import device_for
from selfshot.models.vis import SelfShotVIS
from selfshot.models.weights import load_vis
from selfshot.studies.finished import stage_folders
from selfshot.studies.own_corpus import own_index, read_found
from selfshot.studies.retrieving import retrieval_stages, retrieve_clips

RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class NamedClip:
    """A clip that a person named, or a support that was found.

    Attributes:
        name: for the picture: of its file or of its clip.
        frames: uint8 (T, H, W, 3).
    """

    name: str
    frames: np.ndarray


def open_video(path: Path) -> tuple[Video, FrameReader]:
    """A video file, or a folder of images in the natural order of their names.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    if path.is_dir():
        try:
            return _folder_of_frames(path), FrameReader(path)
        except VideoError as error:
            raise UserError(f"--video: {error}", setting="--video") from None
    if not path.is_file():
        raise UserError(
            f"--video: {path} does not exist (allowed: a video, a folder of frames)",
            setting="--video",
        )
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(
            f"--video: {path} is no video (allowed: {', '.join(VIDEO_SUFFIXES)})", setting="--video"
        )
    try:
        # First in a process of its own: a broken file can end the one that decodes it.
        _decoder(1, (8, 8)).decode(Clip(str(path)))
        facts = probe(path)
    except VideoError as error:
        raise UserError(f"--video: {path}: {error.reason}", setting="--video") from None
    video = Video(1, facts.width, facts.height, facts.num_frames, (path.name,))
    return video, FrameReader(path.parent)


def _folder_of_frames(path: Path) -> Video:
    """A folder's images as a video of the first one's size.

    Raises:
        VideoError: there is none, their order is not clear, or the first cannot be read.
    """
    names = image_names(path)
    if not names:
        raise VideoError(
            f"it holds no images ({', '.join(IMAGE_SUFFIXES)}); give a video file, or a folder of "
            "its frames",
            path,
        )
    height, width = image_size(path / names[0])
    return Video(1, width, height, len(names), tuple(names))


def _decoder(num_frames: int, size: tuple[int, int]) -> GuardedDecoder:
    height, width = size
    return GuardedDecoder(num_frames=num_frames, height=height, width=width, time_limit_s=60.0)


def read_clips(
    paths: Sequence[Path], num_frames: int, size: tuple[int, int], option: str
) -> list[NamedClip]:
    """Clips that a person names: videos or folders of frames, sampled evenly, or single images.

    Args:
        paths: of them.
        num_frames: of each but single images, which are one.
        size: height and width of a frame.
        option: what named them, for messages.

    Raises:
        UserError: one of them cannot be read.
    """
    decoder = _decoder(num_frames, size)
    found = []
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{option}: {path} does not exist (allowed: a video, an image or a folder of "
                "frames)",
                setting=option,
            )
        try:
            if path.is_dir():
                video = _folder_of_frames(path)
                frames = FrameReader(path).read(video, _middles(num_frames, video.length), *size)
            elif is_image(path):
                frames = read_image(path, *size)[None]
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                frames = decoder.decode(Clip(str(path)))
            else:
                allowed = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
                raise VideoError(f"it is neither an image nor a video (allowed: {allowed})", path)
        except VideoError as error:
            raise UserError(
                f"{option}: {error}; leave it out, or replace it", setting=option
            ) from None
        found.append(NamedClip(path.name, frames))
    decoder.close()
    return found


def _middles(num_frames: int, length: int) -> np.ndarray:
    """The middle frame of each of `num_frames` equal parts of a video of `length` frames."""
    return ((np.arange(num_frames) + 0.5) / num_frames * length).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Supports:
    """Where a video's supports come from.

    Attributes:
        files: files or folders of them; none: they are retrieved.
        corpus: folder of clips from which they are retrieved; none: the experiment's corpus.
        shots: how many are retrieved; none: the largest of `supports.shots`.
        without: ids of clips that are passed over.
    """

    files: Sequence[Path] = ()
    corpus: Path | None = None
    shots: int | None = None
    without: Sequence[str] = ()


def retrieve_supports(
    experiment: Experiment,
    folders: dict[str, Path],
    benchmark: Benchmark,
    clip: UInt8[np.ndarray, "time height width 3"],
    wanted: Supports,
    device: str,
    on_message: Callable[[str], None],
) -> list[NamedClip]:
    """A clip's own supports from a corpus, as the stage `supports` finds them; see `predict`."""
    size, folder = (benchmark.height, benchmark.width), folders["benchmark"]
    if wanted.corpus is None:
        manifest = open_manifest(str(folder / "corpus.parquet"))
        place = f"the corpus of {experiment.name}"
    else:
        encoder = folders["encoder"] / "export"
        made, manifest = own_index(experiment, wanted.corpus, encoder, size, on_message)
        folders, place = {**folders, "index": made}, str(wanted.corpus)
    _check_without(wanted.without, manifest)
    count = wanted.shots or max(experiment.supports.shots)
    (found,) = retrieve_clips(
        experiment, folders, clip[None], count + len(wanted.without), device
    )
    kept = [
        (clip_id, score)
        for clip_id, score in zip(found.clip_ids, found.scores, strict=True)
        if clip_id not in wanted.without
    ][:count]
    if not kept:
        raise UserError(
            f"--video: {place} holds nothing but near duplicates of it, and what --without "
            "names; give --supports, or raise supports.duplicate_cosine",
            setting="--video",
        )
    num_frames = experiment.vis.support_frames or benchmark.num_frames
    limit_s = experiment.embedding.decode_timeout_s
    frames = read_found(manifest, [clip_id for clip_id, _ in kept], num_frames, size, limit_s)
    return [
        NamedClip(f"{clip_id} {score:.2f}", one)
        for (clip_id, score), one in zip(kept, frames, strict=True)
    ]


def _check_without(names: Sequence[str], manifest: Manifest) -> None:
    known = find_clips(manifest, set(names)) if names else {}
    for name in names:
        if name not in known:
            raise UserError(
                f"--without: {name} is no clip of the corpus; give an id as the line `supports:` "
                "has it",
                setting="--without",
            )


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How a video is looked at, and what is drawn of it.

    Attributes:
        overlap: frames that consecutive windows share; none: a quarter of a window.
        every: only each so many-th frame is looked at.
        min_score: of an instance that starts a track, and of what is drawn.
        top: tracks that are drawn.
        fps: frames in a second of the video.
        formats: of the pictures.
        attention: draw where the instances of the first window look, before and after the fuser.
    """

    overlap: int | None = None
    every: int = 1
    min_score: float = 0.1
    top: int = 5
    fps: float = 8.0
    formats: Sequence[str] = ("mp4", "png")
    attention: bool = False


def predict(
    experiment: Experiment,
    path: Path,
    out: Path,
    wanted: Wanted,
    *,
    supports: Supports = Supports(),
    on_message: Callable[[str], None] = lambda text: None,
) -> int:
    """Segment and track in a video what it has in common with its supports, and draw it.

    Args:
        experiment: whose trained model, and whose corpus.
        path: a video file, or a folder of frames.
        out: folder for `results.json`, the video, the contact sheet and the page.
        wanted: how it is looked at and drawn.
        supports: where its supports come from. A folder of clips is embedded at the first call.
        on_message: receives what is done.

    Returns:
        the number of tracks in `results.json`.

    Raises:
        UserError: a stage is not done, or a file cannot be read.
    """
    stages = ["benchmark", "vis", *([] if supports.files else retrieval_stages(experiment))]
    folders = stage_folders(experiment, stages)
    benchmark = load_benchmark(folders["benchmark"])
    size = (benchmark.height, benchmark.width)
    device = device_for(experiment.compute.use_gpu, on_message)
    video, frames = open_video(path)
    if supports.files:
        num_frames = experiment.vis.support_frames or benchmark.num_frames
        chosen = read_clips(supports.files, num_frames, size, "--supports")
    else:
        try:
            clip = frames.read(video, _middles(benchmark.num_frames, video.length), *size)
        except VideoError as error:
            raise UserError(f"--video: {error}", setting="--video") from None
        chosen = retrieve_supports(
            experiment, folders, benchmark, clip, supports, device, on_message
        )
    on_message(f"supports: {', '.join(one.name for one in chosen)}")
    model = load_vis(folders["vis"] / "export").to(device)
    if wanted.attention and not isinstance(model, SelfShotVIS):
        raise UserError(
            f"--attention: vis.method: {experiment.vis.method} has no fuser whose attention could "
            "be drawn; leave --attention out",
            setting="--attention",
        )
    overlap = max(1, benchmark.num_frames // 4) if wanted.overlap is None else wanted.overlap
    by_name = {f"{number}": one.frames for number, one in enumerate(chosen)}
    features = SupportCache(model).features(list(by_name), by_name.__getitem__)
    try:
        out.mkdir(parents=True, exist_ok=True)
        predict_video(
            model,
            video,
            frames,
            features,
            out / RESULTS,
            Windows(
                size,
                benchmark.num_frames,
                overlap,
                every=wanted.every,
                min_score=wanted.min_score,
            ),
            on_window=lambda done, all_: on_message(f"window {done} of {all_}"),
        )
    except VideoError as error:
        raise UserError(f"--video: {error}", setting="--video") from None
    except OSError as error:
        raise UserError(
            f"--out: {out} cannot be written: {error.strerror}", setting="--out"
        ) from None
    annotations = Annotations({video.id: video}, {CATEGORY: "common"}, ())
    found = load_results(out / RESULTS, annotations)
    kept = distinct(found)
    if len(kept) < len(found):
        on_message(f"{len(found) - len(kept)} tracks cover what a surer one covers: left out")
        save_results(out / RESULTS, kept)
    if wanted.attention and isinstance(model, SelfShotVIS):
        first = np.arange(0, video.length, wanted.every)[: benchmark.num_frames]
        draw_attention(model, frames.read(video, first, *size), features, out / "attention")
    row = SupportRow("supports", tuple(SupportClip(one.name, one.frames) for one in chosen))
    show_videos(
        annotations,
        frames,
        Pictures(out, wanted.formats, wanted.fps, title=f"{path.name}, by {experiment.name}"),
        [video.id],
        results=Selection(kept, wanted.min_score, wanted.top),
        supports=lambda _: [row],
    )
    frames.close()
    return len(kept)
