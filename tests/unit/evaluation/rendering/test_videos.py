"""Animations, contact sheets and the page: what is written, where, and that it can be read."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refusals import refused
from selfshot.data.frames import FrameReader
from selfshot.data.ytvis import Annotations, Prediction, Track, Video
from selfshot.evaluation.rendering import animations
from selfshot.evaluation.rendering.painting import colour_of
from selfshot.evaluation.rendering.sheets import SupportClip, SupportRow
from selfshot.evaluation.rendering.videos import (
    Drawn,
    Panel,
    Pictures,
    Selection,
    file_stem,
    panel_size,
    sheet_indices,
    show_videos,
    tile_size,
    video_name,
    video_sheet,
)
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH, LENGTH = 50, 71, 7
HOSTILE = "<img src=x onerror=alert(1)>"


def _mask(frame: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:45, 10 + 3 * frame : 30 + 3 * frame] = True
    return mask


@pytest.fixture
def world(tmp_path: Path) -> tuple[Annotations, FrameReader]:
    """Three videos of a track each: a plain one, one with a hostile name, one of a single frame."""
    videos, tracks = {}, []
    for number, folder, length in ((4, "swan", LENGTH), (9, HOSTILE, 2), (11, "still", 1)):
        (tmp_path / "frames" / folder).mkdir(parents=True)
        names = tuple(f"{folder}/{index}.png" for index in range(length))
        for index, name in enumerate(names):
            pixels = np.full((HEIGHT, WIDTH, 3), 60 + 20 * index, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "frames" / name)
        videos[number] = Video(number, WIDTH, HEIGHT, length, names)
        rles = tuple(encode_rle(_mask(index)) for index in range(length))
        nothing = (None,) * length
        tracks.append(Track(number + 100, number, 1, rles, nothing, nothing))
    categories = {1: "<b>cat</b>", 2: "dog"}
    return Annotations(videos, categories, tuple(tracks)), FrameReader(tmp_path / "frames")


def _show(
    world: tuple[Annotations, FrameReader],
    out: Path,
    videos: Sequence[int] | None = None,
    formats: Sequence[str] = ("mp4", "png"),
    title: str = "",
    **options: Any,
) -> tuple[list[Drawn], list[tuple[str, str]]]:
    annotations, frames = world
    pictures = Pictures(out, formats, 6.0, title)
    return show_videos(annotations, frames, pictures, videos or list(annotations.videos), **options)


def _decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def _results(score: float = 0.75) -> list[Prediction]:
    rles = tuple(encode_rle(_mask(index)) for index in range(LENGTH))
    return [Prediction(4, 2, score, rles), Prediction(4, 1, 0.1, (None,) * LENGTH)]


def test_a_video_has_every_frame_once(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    drawn, left_out = _show(world, tmp_path / "out", formats=("mp4", "gif", "png"))
    assert not left_out and [len(one.files) for one in drawn] == [3, 3, 3]
    shown = _decoded(tmp_path / "out" / drawn[0].files["mp4"])
    height, width = panel_size(world[0].videos[4])
    assert len(shown) == LENGTH and shown.shape[1] >= height and shown.shape[2] >= width
    assert shown.shape[1] % 2 == shown.shape[2] % 2 == 0
    background = shown[:, -40:-10, -40:-10].mean((1, 2, 3))
    np.testing.assert_allclose(background, 60 + 20 * np.arange(LENGTH), atol=4)
    with Image.open(tmp_path / "out" / drawn[0].files["gif"]) as gif:
        assert gif.n_frames == LENGTH and gif.info["duration"] == 170
    assert len(_decoded(tmp_path / "out" / drawn[2].files["mp4"])) == 1


def test_the_instance_is_in_the_video_in_its_colour(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    drawn, _ = _show(world, tmp_path / "out", videos=[4], formats=("mp4",))
    shown = _decoded(tmp_path / "out" / drawn[0].files["mp4"]).astype(int)
    height, width = panel_size(world[0].videos[4])
    bar = shown.shape[1] - height
    colour = np.array(colour_of(104))
    for frame in (0, LENGTH - 1):
        row, column = bar + 40 * height // HEIGHT, (20 + 3 * frame) * width // WIDTH
        ground = 60 + 20 * frame
        moved = shown[frame, row, column] - ground
        assert np.dot(moved, colour - ground) > 0.8 * np.linalg.norm(moved) * np.linalg.norm(
            colour - ground
        )


def test_without_h264(
    world: tuple[Annotations, FrameReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = av.codecs_available - {"libx264"}
    monkeypatch.setattr(animations.av, "codecs_available", others)
    drawn, _ = _show(world, tmp_path / "out", videos=[4], formats=("mp4",))
    path = tmp_path / "out" / drawn[0].files["mp4"]
    assert len(_decoded(path)) == LENGTH
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


@pytest.mark.parametrize("size", [(50, 71), (360, 640), (64, 64), (1080, 1920), (900, 20), (1, 1)])
@pytest.mark.parametrize("num_panels", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 40])
def test_a_contact_sheet_has_its_size(size: tuple[int, int], num_panels: int, length: int) -> None:
    video = Video(1, size[1], size[0], length, ())
    indices = sheet_indices(video, num_panels)
    assert indices[0] == 0 and indices[-1] == length - 1
    assert len(indices) == min(length, 12 if num_panels == 1 else 8)
    height, width = tile_size(video)
    assert height <= 240 and width <= 320
    frames = [(index, np.zeros((5, 5, 3), np.uint8)) for index in indices]
    sheet = video_sheet("title", video, [Panel("panel", ())] * num_panels, (), frames)
    columns = min(4, len(indices))
    lines = -(-len(indices) // columns) * num_panels
    assert sheet.height == 34 + lines * (22 + height + 6)
    # A caption is not cut to the width of slivers.
    least = columns * (width + 6) + 6
    assert sheet.width == least if least > 60 else least < sheet.width < 60


def test_results_stand_beside_the_truth(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    alone, _ = _show(world, tmp_path / "out", videos=[4], formats=("mp4",))
    both, _ = _show(
        world, tmp_path / "both", videos=[4], formats=("mp4",), results=Selection(_results())
    )
    one = _decoded(tmp_path / "out" / alone[0].files["mp4"])
    two = _decoded(tmp_path / "both" / both[0].files["mp4"])
    assert one.shape[:2] == two.shape[:2] and two.shape[2] > 2 * one.shape[2] - 8
    assert "ground truth: 1 instance" in alone[0].facts
    assert both[0].facts[2:4] == ("ground truth: 1 instance", "results: 2 predictions")


def test_results_alone_where_nothing_is_annotated(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    bare = dataclasses.replace(world[0], tracks=())
    drawn, _ = _show(
        (bare, world[1]), tmp_path / "o", videos=[4], results=Selection(_results(), 0.5)
    )
    assert drawn[0].facts[2:] == ("results: best 1 of 2 predictions",)
    drawn, _ = _show(
        (bare, world[1]), tmp_path / "o", videos=[4], results=Selection(_results(), 0.9)
    )
    assert drawn[0].facts[2:] == ("results: none of 2 predictions",)


def test_supports_stand_beside_the_query(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    green = np.zeros((3, 20, 30, 3), np.uint8)
    green[..., 1] = 220
    rows = [SupportRow("oracle supports", (SupportClip("cat", green, True),) * 2)]
    rows.append(SupportRow("random supports", (SupportClip("gone", None),)))
    plain, _ = _show(world, tmp_path / "plain", videos=[4])
    drawn, _ = _show(world, tmp_path / "out", videos=[4], supports=lambda number: rows)
    for kind in ("mp4", "png"):
        with_them = _first(tmp_path / "out" / drawn[0].files[kind])
        without = _first(tmp_path / "plain" / plain[0].files[kind])
        share = _green(with_them)
        assert share > 1000 and _green(without) == 0, kind


def _first(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    return _decoded(path)[0]


def _green(picture: np.ndarray) -> int:
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return int(((green > 180) & (red < 60) & (blue < 60)).sum())


def test_hostile_names_are_text_on_the_page(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    _show(world, tmp_path / "out", title='"><script>alert(2)</script>', formats=("png",))
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and "<b>cat" not in page
    for name in (HOSTILE, "<b>cat</b>", '"><script>alert(2)</script>'):
        assert html.escape(name) in page.replace("&#34;", "&quot;")


def test_nothing_is_written_outside_the_folder(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    annotations, frames = world
    (tmp_path / "frames" / "0.png").write_bytes((tmp_path / "frames/still/0.png").read_bytes())
    names = ["../../evil", "/etc/evil", "..", "a\\..\\..\\evil", "x" * 400, ".hidden", "nul\0"]
    videos = {}
    for place, name in enumerate([*names, *names]):
        number = 10**40 + place if place >= len(names) else place
        videos[number] = Video(number, WIDTH, HEIGHT, 1, ("0.png",), source_id=name)
    stems = [file_stem(video) for video in videos.values()]
    assert len(set(stems)) == len(stems)
    before = sorted(tmp_path.rglob("*"))
    drawn, left_out = _show(
        (dataclasses.replace(annotations, videos=videos, tracks=()), frames), tmp_path / "out"
    )
    assert not left_out
    added = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    expected = [name for one in drawn for name in one.files.values()]
    assert sorted(added) == sorted(
        [tmp_path / "out", tmp_path / "out" / "index.html"]
        + [tmp_path / "out" / name for name in expected]
    )


def test_a_link_in_the_folder_is_replaced_and_not_followed(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("keep me")
    name = f"{file_stem(world[0].videos[4])}.png"
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    _show(world, tmp_path / "out", videos=[4], formats=("png",))
    assert (tmp_path / "precious").read_text() == "keep me"
    assert not (tmp_path / "out" / name).is_symlink()


def test_a_video_that_cannot_be_read_is_left_out(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    (tmp_path / "frames" / "swan" / "5.png").unlink()
    seen: list[str] = []
    drawn, left_out = _show(
        world, tmp_path / "out", formats=("mp4", "gif", "png"), on_video=seen.append
    )
    assert len(drawn) == 2 and seen[0] == "4 · swan" and len(seen) == 3
    ((name, reason),) = left_out
    assert name == "4 · swan" and reason.endswith("5.png: no such image")
    assert not [path for path in os.listdir(tmp_path / "out") if "swan" in path]
    assert "5.png: no such image" in (tmp_path / "out" / "index.html").read_text()


def test_a_folder_that_cannot_be_written(
    world: tuple[Annotations, FrameReader], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with refused():
        _show(world, tmp_path / "file")
    with refused():
        _show(world, tmp_path / "file" / "below")
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    with refused():
        _show(world, tmp_path / "out", videos=[11])


def test_names_of_videos() -> None:
    images = Video(1, 5, 5, 2, ("a/b/0.jpg", "a/b/1.jpg"), "s")
    assert video_name(images) == "a/b" and file_stem(images) == "1_a_b"
    one_file = Video(-2, 5, 5, 2, ("a/b.webm",), "s")
    assert video_name(one_file) == "a/b" and file_stem(one_file) == "-2_a_b"
    assert video_name(Video(3, 5, 5, 1, ("0.jpg",), "s")) == "s"
    assert file_stem(Video(3, 5, 5, 1, ())) == "3"


def test_frames_in_one_file_a_video(world: tuple[Annotations, FrameReader], tmp_path: Path) -> None:
    annotations, frames = world
    with animations.Animation(tmp_path / "frames" / "swan.mp4", "mp4", 25.0) as swan:
        for index in range(LENGTH):
            swan.add(Image.new("RGB", (WIDTH - 1, HEIGHT), (60 + 20 * index,) * 3))
    (tmp_path / "frames" / "cut.mp4").write_bytes(b"no video")
    videos = dict(annotations.videos)
    videos[4] = dataclasses.replace(videos[4], file_names=("swan.mp4",))
    videos[9] = dataclasses.replace(videos[9], file_names=("cut.mp4",))
    drawn, left_out = _show(
        (dataclasses.replace(annotations, videos=videos), frames), tmp_path / "o"
    )
    frames.close()
    assert [one.name for one in drawn] == ["4 · swan", "11 · still"]
    assert left_out[0][0] == "9 · cut" and "cannot be opened as a video" in left_out[0][1]
    background = _decoded(tmp_path / "o" / drawn[0].files["mp4"])[:, -40:-10, -40:-10]
    np.testing.assert_allclose(background.mean((1, 2, 3)), 60 + 20 * np.arange(LENGTH), atol=6)
