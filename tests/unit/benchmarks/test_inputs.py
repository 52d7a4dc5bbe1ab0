"""What people bring: ids of other types, objects without a pixel, wrong frames, few clips."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refusals import refused
from selfshot import cli
from selfshot.benchmarks.annotated import read_annotated
from selfshot.benchmarks.folder import build_folder
from selfshot.benchmarks.manifest import Benchmark
from selfshot.data.ytvis import load_annotations
from selfshot.errors import UserError

CLASSES = ("ant", "bee", "cat")
VIDEOS = [([name], f"{name}{n}") for name in CLASSES for n in range(4)]
SPLITS = {"val_classes": ("bee",), "test_classes": ("cat",)}

Edit = Callable[[dict[str, Any]], object]
World = Callable[..., dict[str, Any]]


def _edit(path: Path, change: Edit) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _build(settings: dict[str, Any]) -> Benchmark:
    return build_folder(settings["annotations"].parent / "out", **settings, **SPLITS)


def _all(section: str, key: str, change: Callable[[Any], Any]) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        for entry in document[section]:
            entry[key] = change(entry[key])

    return edit


NONE_CAN_BE_READ = [
    (_all("videos", "id", str), r"none of its videos can be read: videos\[0\]: id: '1' is not "),
    (_all("videos", "id", float), r"videos\[0\]: id: 1.0 is not allowed \(an integer\) \(and 11 m"),
    (_all("videos", "width", float), r"videos\[0\] \(id 1\): width: 14.0 is not allowed"),
    (_all("videos", "id", lambda i: i + 2**63), r"id: 9223372036854775809 is not allowed \(an int"),
    (_all("videos", "id", lambda i: True), "id: True is not allowed"),
    (_all("videos", "height", lambda h: float("nan")), r"height: nan is not allowed"),
    (
        _all("categories", "id", str),
        r"none of its categories can be read: categories\[0\]: id: '1'",
    ),
    (_all("annotations", "video_id", str), r"annotations\[0\] \(id 1\): video_id: '1' is not "),
    (_all("annotations", "category_id", float), r"category_id: 1.0 is not allowed .* \(and 11 "),
    (lambda document: document.update(annotations=[]), "annotations: the list is empty"),
    (lambda document: document["categories"][1].update(id=1), r"categories\[1\] .*: id: 1 is a"),
    (lambda document: document["categories"][1].update(name="ant"), "are all named 'ant'; make"),
    (lambda document: document.update(videos=[]), "videos: the list is empty"),
    (lambda document: document.update(categories=[]), "categories: the list is empty"),
    (lambda document: document.pop("categories"), '"categories": nothing is not allowed'),
]


@pytest.mark.parametrize(("edit", "message"), NONE_CAN_BE_READ)
def test_entries_that_all_cannot_be_read(
    world: World, tmp_path: Path, monkeypatch: Any, capsys: Any, edit: Edit, message: str
) -> None:
    """The entry and its value are named, by the build and by `validate`."""
    settings = world(CLASSES, VIDEOS)
    _edit(settings["annotations"], edit)
    with refused():
        _build(settings)
    monkeypatch.chdir(tmp_path)
    code = cli.main(["validate", str(_experiment(tmp_path))])
    said = capsys.readouterr().err
    assert code == 2
    with refused():
        raise UserError(said.replace("\n", " "))


def _experiment(root: Path, more: str = "") -> Path:
    (root / "e.yaml").write_text(
        "name: e\nbenchmark: {kind: folder, annotations: train.json, frames: frames, corpus: clips,"
        " val_classes: [bee], test_classes: [cat]}\n"
        f"encoder: {{videos_per_batch: 2, queue_length: 0}}\n{more}"
    )
    return root / "e.yaml"


@pytest.mark.parametrize("other", [str, float])
def test_an_instance_that_names_its_video_in_another_type(
    world: World, other: Callable[[int], Any]
) -> None:
    """Its video is not taught without it."""
    settings = world(CLASSES, [*VIDEOS, (["ant", "ant"], "two")])
    _edit(settings["annotations"], lambda d: d["annotations"][-1].update(video_id=other(13)))
    found = read_annotated(settings["annotations"])
    assert list(found.faults) == [13]
    assert "video_id" in found.faults[13] and "is not allowed (an integer)" in found.faults[13]


def test_two_videos_of_one_id(world: World) -> None:
    settings = world(CLASSES, VIDEOS)
    _edit(settings["annotations"], lambda d: d["videos"][1].update(id=1))
    found = read_annotated(settings["annotations"])
    assert "several videos have the id 1" in found.faults[1]
    made = _build(settings)
    assert made.counts["videos_quarantined"] == 2


def test_reasons_are_shown_where_no_video_can_be_used(world: World) -> None:
    settings = world(CLASSES, VIDEOS)
    _edit(settings["annotations"], _all("videos", "width", lambda width: 10))
    _edit(settings["annotations"], _all("videos", "height", lambda height: 14))
    masks = [{"size": [14, 10], "counts": [40, 100]}]
    _edit(settings["annotations"], _all("annotations", "segmentations", lambda _: masks))
    with refused("benchmark"):
        _build(settings)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_with_a_byte_order_mark(world: World, encoding: str) -> None:
    settings = world(CLASSES, VIDEOS)
    text = settings["annotations"].read_text()
    expected = load_annotations(settings["annotations"])
    settings["annotations"].write_bytes(text.encode(encoding))
    assert load_annotations(settings["annotations"]) == expected
    settings["annotations"].write_bytes(codecs.BOM_UTF8 + b'{"a": "\xff"}')
    with refused():
        load_annotations(settings["annotations"])


class TestInstancesWithoutAPixel:
    BOX = [3, 2, 8, 5]

    def _spoil(self, number: int, masks: list[Any], **more: Any) -> Edit:
        def edit(document: dict[str, Any]) -> None:
            document["annotations"][number] |= {"segmentations": masks, **more}

        return edit

    @pytest.mark.parametrize(
        ("masks", "more", "boxed"),
        [
            ([[]], {"bboxes": [BOX], "areas": [40.0]}, True),
            ([None], {"bboxes": [BOX]}, True),
            ([None], {"bboxes": [[3, 2, 0, 5]]}, False),
            ([None], {}, False),
            ([{"size": [10, 14], "counts": [140]}], {}, False),
            ([[[20, 12, 30, 12, 30, 20]]], {}, False),
            ([None], {"bboxes": [BOX], "iscrowd": 1}, True),
        ],
        ids=["empty list", "null", "flat box", "nowhere", "no run", "outside", "crowd"],
    )
    def test_they_are_counted_and_left_out(
        self, world: World, masks: list[Any], more: dict[str, Any], boxed: bool
    ) -> None:
        said: list[str] = []
        settings = world(CLASSES, [*VIDEOS, (["ant", "ant"], "two")], on_message=said.append)
        _edit(settings["annotations"], self._spoil(13, masks, **more))
        made = _build(settings)
        assert made.counts["tracks_without_pixels"] == 1 and made.counts["tracks"] == 14
        (reason,) = [why for what, why in made.quarantined if what == "annotation 14 of video 13"]
        assert reason.startswith("its masks have no pixel in any frame")
        assert ("boxes" in reason) == boxed
        told = "1 of 14 instances have no pixel in any frame and are left out" + "; 1 of " * boxed
        assert any(told in line for line in said)
        written = load_annotations(settings["annotations"].parent / "out" / "annotations.json")
        assert len(written.tracks) == 13 and len(written.tracks_of(13)) == 1
        assert made.statistics["mean_instances"] == 1.0
        assert 13 in made.videos["train"]

    def test_a_video_that_holds_one_of_an_unseen_class_never_trains(self, world: World) -> None:
        settings = world(CLASSES, [*VIDEOS, (["ant", "cat"], "both")])
        _edit(settings["annotations"], self._spoil(13, [None], bboxes=[self.BOX]))
        made = _build(settings)
        assert 13 not in made.videos["train"]

    def test_frames_with_a_box_and_no_mask_are_told(self, world: World, tmp_path: Path) -> None:
        said: list[str] = []
        settings = world(CLASSES, VIDEOS, on_message=said.append)

        def edit(document: dict[str, Any]) -> None:
            document["videos"][0] |= {"length": 2, "file_names": ["ant0/00000.jpg"] * 2}
            document["annotations"][0]["segmentations"].append(None)
            document["annotations"][0]["bboxes"] = [self.BOX, self.BOX]

        _edit(settings["annotations"], edit)
        assert _build(settings).counts["tracks_without_pixels"] == 0
        assert any(line.startswith("1 instances have frames with a box and no") for line in said)


class TestFrames:
    def test_a_frame_of_another_size_costs_its_video(self, world: World) -> None:
        settings = world(CLASSES, VIDEOS)
        Image.new("RGB", (10, 14)).save(settings["frames"] / "ant0" / "00000.jpg")
        made = _build(settings)
        (reason,) = [why for what, why in made.quarantined if what.startswith("video 1 ")]
        assert reason == (
            "frame ant0/00000.jpg: the frame is 10 × 14 pixels and its video is 14 × 10 (width × "
            "height)"
        )

    @pytest.mark.parametrize("padded", [True, False])
    def test_frames_that_are_listed_as_text_sorts_them(
        self, world: World, monkeypatch: Any, tmp_path: Path, capsys: Any, padded: bool
    ) -> None:
        said: list[str] = []
        settings = world(CLASSES, VIDEOS, on_message=said.append)
        names = sorted(f"ant0/{n:02d}.jpg" if padded else f"ant0/{n}.jpg" for n in range(11))
        for name in names:
            Image.new("RGB", (14, 10)).save(settings["frames"] / name)

        def edit(document: dict[str, Any]) -> None:
            document["videos"][0] |= {"length": 11, "file_names": names}
            document["annotations"][0]["segmentations"] *= 11

        _edit(settings["annotations"], edit)
        _build(settings)
        told = "1 videos list their frames as 0, 1, 10, 2, such as video 1"
        assert any(told in line for line in said) != padded
        monkeypatch.chdir(tmp_path)
        words = ["--annotations", "train.json", "--frames", "frames", "--format", "png"]
        assert cli.main(["show", *words, "--video", "1"]) == 0
        assert (told in capsys.readouterr().err) != padded

    def test_names_with_backslashes(self, world: World) -> None:
        settings = world(CLASSES, VIDEOS)
        _edit(
            settings["annotations"],
            _all("videos", "file_names", lambda names: [names[0].replace("/", "\\")]),
        )
        with refused("benchmark"):
            _build(settings)


class TestFewClips:
    def _say(self, capsys: Any, *words: object) -> tuple[int, str]:
        code = cli.main([*map(str, words)])
        caught = capsys.readouterr()
        return code, caught.out + caught.err

    def test_an_empty_corpus(
        self, world: World, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        settings = world(CLASSES, VIDEOS)
        monkeypatch.chdir(tmp_path)
        for clip in settings["corpus"].iterdir():
            clip.rename(clip.with_suffix(".txt"))
        code, said = self._say(capsys, "validate", _experiment(tmp_path))
        assert code == 2 and "benchmark.corpus: clips holds no clip" in said and "line 2" in said

    @pytest.mark.parametrize("command", ["validate", "run"])
    def test_a_batch_that_the_corpus_cannot_fill(
        self, world: World, tmp_path: Path, monkeypatch: Any, capsys: Any, command: str
    ) -> None:
        world(CLASSES, VIDEOS)
        monkeypatch.chdir(tmp_path)
        wide = "--set", "encoder.videos_per_batch=4"
        code, said = self._say(capsys, command, _experiment(tmp_path), *wide)
        assert code == 2
        assert "encoder.videos_per_batch: 4 is more than the 2 clips of the corpus; lower" in said
        assert not (tmp_path / "runs").exists()
        assert self._say(capsys, "validate", _experiment(tmp_path))[0] == 0

    def test_a_corpus_that_was_built_before(
        self, world: World, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        world(CLASSES, VIDEOS)
        monkeypatch.chdir(tmp_path)
        assert self._say(capsys, "corpus", "build", "--videos", "clips", "--out", "built")[0] == 0
        built = "--set", "benchmark.corpus=built"
        assert self._say(capsys, "validate", _experiment(tmp_path), *built)[0] == 0
        code, said = self._say(
            capsys, "validate", "e.yaml", *built, "--set", "encoder.videos_per_batch=4"
        )
        assert code == 2 and "more than the 2 clips of the corpus" in said

    def test_clips_that_the_builder_leaves_out(
        self, world: World, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        """Of two clips one is a query's source: it is said before the backbone is trained."""
        world(CLASSES, VIDEOS)
        monkeypatch.chdir(tmp_path)

        def edit(document: dict[str, Any]) -> None:
            for video in document["videos"]:
                video["source_id"] = "one" if video["id"] in (9, 10, 11) else f"s{video['id']}"

        _edit(tmp_path / "train.json", edit)
        code, said = self._say(capsys, "run", _experiment(tmp_path, "backbone: {pretrain: false}"))
        assert code == 2 and "is more than the 1 clips of the corpus" in said

    def test_quarantined_entries_are_told(
        self, world: World, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        world(CLASSES, VIDEOS)
        monkeypatch.chdir(tmp_path)
        _edit(tmp_path / "train.json", lambda d: d["videos"][2].update(width=14.0))
        code, said = self._say(capsys, "validate", _experiment(tmp_path))
        assert code == 0 and "2 of its entries would be quarantined: videos[2] (id 3): " in said


def test_blanks_in_a_csv(world: World, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("clip, rough_label\none , ant\n")
    made = _build(world(CLASSES, VIDEOS, corpus_labels=tmp_path / "labels.csv"))
    assert made.counts["corpus_classes"] == 1
    (tmp_path / "labels.csv").write_text("clip,rough_label\none,ant\n", encoding="utf-16")
    with refused("benchmark.corpus_labels"):
        _build(world(CLASSES, VIDEOS, corpus_labels=tmp_path / "labels.csv"))


def test_no_instance_has_a_pixel(world: World) -> None:
    settings = world(CLASSES, VIDEOS)
    _edit(settings["annotations"], _all("annotations", "segmentations", lambda masks: [None]))
    with refused("benchmark"):
        _build(settings)


@pytest.mark.parametrize("text", ["clip;rough_label\none;ant\n", "clip\trough_label\n"])
def test_a_csv_of_other_separators(world: World, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")
    settings = world(CLASSES, VIDEOS, corpus_labels=tmp_path / "labels.csv")
    with refused("benchmark.corpus_labels"):
        _build(settings)
