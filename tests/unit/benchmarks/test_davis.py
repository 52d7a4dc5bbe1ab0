"""DAVIS-style folders: masks by the number of the object, void, classes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refusals import refused
from selfshot.benchmarks.davis import build_davis, class_of_name, read_classes, read_sequences
from selfshot.benchmarks.manifest import load_benchmark
from selfshot.data.ytvis import Annotations, load_annotations
from selfshot.ops.masks import decode_rle

HEIGHT, WIDTH = 12, 20
PALETTE = [level for index in range(256) for level in (index, 255 - index, 7 * index % 256)]


def quiet(message: str) -> None:
    """Nobody listens."""


def indexed(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels.astype(np.uint8))
    image.putpalette(PALETTE)  # That makes it an image of mode P.
    return image


def numbered(*objects: tuple[int, slice]) -> np.ndarray:
    """Pixels in which each object takes some columns of the middle rows."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, columns in objects:
        pixels[3:9, columns] = number
    return pixels


def write(root: Path, sequence: str, masks: list[np.ndarray | None]) -> None:
    """A sequence's frames, and PNGs for those that have one."""
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / sequence).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(masks):
        frame = Image.new("RGB", (WIDTH, HEIGHT), (20 * number, 90, 200))
        # No two recordings have the same bytes.
        frame.save(root / "JPEGImages" / sequence / f"{number:05d}.jpg", comment=sequence)
        if pixels is not None:
            indexed(pixels).save(root / "Annotations" / sequence / f"{number:05d}.png")


ONE = numbered((1, slice(2, 8)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences each of bears, cows and dogs, two frames long."""
    for name in ("bear", "bear-2", "cow", "cow-02", "dog", "dog2"):
        write(tmp_path, name, [ONE, ONE])
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").write_bytes(b"one")
    return tmp_path


def arguments(root: Path) -> dict[str, Any]:
    return {
        "frames": root / "JPEGImages",
        "masks": root / "Annotations",
        "classes": None,
        "corpus": root / "clips",
        "corpus_labels": None,
        "val_classes": ("cow",),
        "test_classes": ("dog",),
        "seed": 0,
        "height": 32,
        "width": 40,
        "num_frames": 2,
        "on_message": quiet,
    }


def test_sequences_become_a_benchmark(
    root: Path, check_promises: Callable[..., None], written: Callable[[Path], Annotations]
) -> None:
    made = build_davis(root / "out", **arguments(root))
    assert load_benchmark(root / "out") == made
    check_promises(made, written(root / "out"))
    assert made.classes == {"train": ("bear",), "val": ("cow",), "test": ("dog",)}
    assert set(made.inputs) == {"masks", "frames", "corpus"}
    assert made.statistics["mean_length"] == 2 and made.statistics["train_videos"] == 2
    frames = made.reader(root / "out").frames(1)
    assert frames.shape == (2, 32, 40, 3)
    again = build_davis(root / "again", **arguments(root))
    assert again == made
    indexed(numbered((1, slice(2, 9)))).save(root / "Annotations" / "bear" / "00000.png")
    assert build_davis(root / "other", **arguments(root)).inputs["masks"] != made.inputs["masks"]


def test_objects_are_the_pixels_of_their_number(tmp_path: Path) -> None:
    first = numbered((1, slice(0, 5)), (7, slice(5, 9)), (255, slice(9, 12)))
    second = numbered((7, slice(6, 10)), (3, slice(12, 20)))
    write(tmp_path, "zoo", [first, None, second])
    classes = {("zoo", 1): "ant", ("zoo", 7): "bee", ("zoo", 3): "ant"}
    found = read_sequences(tmp_path / "JPEGImages", tmp_path / "Annotations", classes, quiet)
    (video,) = found.annotations.videos.values()
    # A frame without a PNG is no frame of the video, and void is nobody.
    assert video.file_names == ("zoo/00000.jpg", "zoo/00002.jpg")
    assert (video.height, video.width, video.source_id) == (HEIGHT, WIDTH, "zoo")
    by_number = dict(zip((1, 3, 7), found.annotations.tracks, strict=True))
    names = {n: found.annotations.categories[t.category_id] for n, t in by_number.items()}
    assert names == {1: "ant", 3: "ant", 7: "bee"}
    for number, track in by_number.items():
        masks = zip((first, second), track.segmentations, track.areas, strict=True)
        for pixels, rle, area in masks:
            there = pixels == number
            assert (rle is None) == (not there.any())
            if rle is not None:
                assert (decode_rle(rle, HEIGHT, WIDTH) == there).all() and area == there.sum()


def test_frames_of_any_format_in_natural_order(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder / "zoo").mkdir(parents=True)
    suffixes = {0: "png", 2: "webp", 10: "TIFF"}
    exif = Image.Exif()
    exif[274] = 6  # Stored sideways: the masks are of the upright frame.
    for number, suffix in suffixes.items():
        frame = Image.new("RGB", (HEIGHT, WIDTH))
        frame.save(tmp_path / "JPEGImages" / "zoo" / f"{number}.{suffix}", exif=exif)
        indexed(numbered((1, slice(0, number + 1)))).save(
            tmp_path / "Annotations" / "zoo" / f"{number}.PNG"
        )
    found = read_sequences(tmp_path / "JPEGImages", tmp_path / "Annotations", None, quiet)
    (video,) = found.annotations.videos.values()
    assert video.file_names == ("zoo/0.png", "zoo/2.webp", "zoo/10.TIFF")
    assert (video.height, video.width) == (HEIGHT, WIDTH)
    areas = found.annotations.tracks[0].areas
    assert list(areas) == sorted(areas) and len(set(areas)) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bear", "bear"), ("dogs-jump-02", "dogs-jump"), ("480p/cow12", "cow"), ("2023", "2023")],
)
def test_a_name_says_the_class(name: str, expected: str) -> None:
    assert class_of_name(name) == expected


def test_deep_folders_and_two_sizes_of_one_sequence(tmp_path: Path) -> None:
    write(tmp_path, "480p/bear", [ONE])
    write(tmp_path, "1080p/bear", [ONE])
    found = read_sequences(tmp_path / "JPEGImages", tmp_path / "Annotations", None, quiet)
    assert {video.source_id for video in found.annotations.videos.values()} == {"bear"}
    assert list(found.annotations.categories.values()) == ["bear"]


class TestBrokenSequences:
    """One that cannot be used is quarantined with its reason, and the others are built."""

    def _reason(self, root: Path) -> str:
        made = build_davis(root / "out", **arguments(root))
        assert made.counts["videos"] == 7 and made.counts["videos_quarantined"] == 1
        (reason,) = [why for what, why in made.quarantined if what == "sequence bear-3"]
        return reason

    def test_a_mask_of_another_size(self, root: Path) -> None:
        write(root, "bear-3", [ONE, ONE])
        indexed(ONE[:, :10]).save(root / "Annotations" / "bear-3" / "00001.png")
        assert self._reason(root) == (
            "bear-3/00001.png: the mask is 10 × 12 pixels, and the frame has 20 × 12"
        )

    def test_an_image_that_is_not_indexed(self, root: Path) -> None:
        write(root, "bear-3", [ONE])
        Image.fromarray(255 * ONE).save(root / "Annotations" / "bear-3" / "00000.png")
        assert self._reason(root) == (
            "bear-3/00000.png: an image of mode L is not allowed (an indexed PNG, mode P)"
        )

    def test_a_mask_without_a_frame(self, root: Path) -> None:
        write(root, "bear-3", [ONE, ONE])
        (root / "JPEGImages" / "bear-3" / "00001.jpg").unlink()
        assert self._reason(root).startswith("bear-3/00001.png: no frame 00001 in")

    def test_a_png_that_is_cut_short(self, root: Path) -> None:
        write(root, "bear-3", [ONE])
        path = root / "Annotations" / "bear-3" / "00000.png"
        path.write_bytes(path.read_bytes()[:60])
        assert "bear-3/00000.png: the image cannot be read" in self._reason(root)


def test_reasons_where_no_sequence_can_be_used(root: Path) -> None:
    for mask in (root / "Annotations").rglob("*.png"):
        mask.write_bytes(b"")
    with refused("benchmark.masks"):
        build_davis(root / "out", **arguments(root))


class TestClassesCsv:
    def _write(self, root: Path, text: str) -> Path:
        (root / "classes.csv").write_text(text)
        return root / "classes.csv"

    def test_it_names_every_object(self, root: Path) -> None:
        write(root, "dog", [numbered((1, slice(0, 5)), (2, slice(8, 12)))])
        names = {"bear": "ant", "bear-2": "ant", "cow": "bee", "cow-02": "bee", "dog": "cat",
                 "dog2": "cat"}  # fmt: skip
        lines = [f"{sequence},1,{name}" for sequence, name in names.items()]
        path = self._write(root, "\n".join(["sequence,object,class", *lines, "dog,2,ant"]))
        settings = arguments(root) | {
            "classes": path, "val_classes": ("bee",), "test_classes": ("cat",)
        }  # fmt: skip
        made = build_davis(root / "out", **settings)
        assert made.classes == {"train": ("ant",), "val": ("bee",), "test": ("cat",)}
        assert made.counts["videos_of_seen_and_unseen"] == 1 and "classes" in made.inputs

    def test_an_object_that_no_line_names(self, root: Path) -> None:
        path = self._write(root, "sequence,object,class\nbear,1,ant\n")
        with refused("benchmark.classes"):
            build_davis(root / "out", **arguments(root) | {"classes": path})

    def test_it_may_name_sources(self, root: Path) -> None:
        lines = [
            "bear,1,bear,", "bear-2,1,bear,", "cow,1,cow,", "cow-02,1,cow,film", "dog,1,dog,film",
            "dog2,1,dog,",
        ]  # fmt: skip
        path = self._write(root, "\n".join(["sequence,object,class,source", *lines]))
        made = build_davis(root / "out", **arguments(root) | {"classes": path})
        reasons = [why for _, why in made.quarantined]
        assert any("its source, film, is in the test split" in reason for reason in reasons)
        assert made.queries["val"] == ()

    @pytest.mark.parametrize(
        "text",
        [
        "sequence,class\n",
        "",
        "sequence,object,class\nbear,0,ant\n",
        "sequence,object,class\nbear,255,ant\n",
        "sequence,object,class\nbear,one,ant\n",
        "sequence,object,class\nbear,1,\n",
        "sequence,object,class\nbear,1,ant\nbear,1,bee\n",
        "sequence,object,class,source\nbear,1,ant,film\nbear,2,ant,other\n",
    ],
    )
    def test_wrong_lines(self, root: Path, text: str) -> None:
        with refused():
            read_classes(self._write(root, text))


def test_wrong_folders(root: Path, tmp_path: Path) -> None:
    with refused():
        build_davis(root / "out", **arguments(root) | {"masks": root / "none"})
    (tmp_path / "empty").mkdir()
    with refused("benchmark.masks"):
        build_davis(root / "out", **arguments(root) | {"masks": tmp_path / "empty"})
    with refused():
        build_davis(root / "out", **arguments(root) | {"test_classes": ("dgo",)})


def test_real_masks_come_back(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "vis_real"
    truth = load_annotations(data / "instances.json")
    names = {}
    for video in list(truth.videos.values())[:6]:
        sequence = Path(video.file_names[0]).parent.name
        tracks = truth.tracks_of(video.id)
        for number, track in enumerate(tracks, start=1):
            names[sequence, number] = truth.categories[track.category_id]
        (tmp_path / "masks" / sequence).mkdir(parents=True)
        for frame, name in enumerate(video.file_names):
            pixels = np.zeros((video.height, video.width), np.uint8)
            for number, track in enumerate(tracks, start=1):
                rle = track.segmentations[frame]
                if rle is not None:
                    pixels[decode_rle(rle, video.height, video.width)] = number
            target = tmp_path / "masks" / sequence / Path(name).with_suffix(".png").name
            indexed(pixels).save(target)
    found = read_sequences(data / "frames", tmp_path / "masks", names, quiet)
    assert len(found.annotations.videos) == 6 and not found.quarantined
    by_source = {video.source_id: video.id for video in found.annotations.videos.values()}
    compared = 0
    for video in list(truth.videos.values())[:6]:
        tracks = truth.tracks_of(video.id)
        mine = found.annotations.tracks_of(by_source[Path(video.file_names[0]).parent.name])
        assert found.annotations.videos[mine[0].video_id].file_names == video.file_names
        if len(tracks) > 1:
            continue  # Where masks overlap, a PNG keeps the last of them.
        for one, other in zip(tracks[0].segmentations, mine[0].segmentations, strict=True):
            empty = one is None or not decode_rle(one, video.height, video.width).any()
            assert (other is None) == empty
            if other is not None:
                size = (video.height, video.width)
                assert (decode_rle(one, *size) == decode_rle(other, *size)).all()
                compared += 1
    assert compared > 50
