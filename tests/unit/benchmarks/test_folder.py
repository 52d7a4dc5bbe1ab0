"""A folder of real videos as a benchmark: splits, leaks, what is quarantined, and its clips."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refusals import refused
from selfshot.benchmarks.fingerprint import fingerprint
from selfshot.benchmarks.folder import build_folder
from selfshot.benchmarks.manifest import (
    Benchmark,
    load_benchmark,
    read_corpus,
    read_corpus_labels,
)
from selfshot.config.benchmarks import FolderBenchmark
from selfshot.config.load import load_experiment
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.data.ytvis import load_annotations
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH, LENGTH = 10, 14, 5
CLASSES = ("ant", "bee", "cat", "dog", "elk")
PROJECT = Path(__file__).resolve().parents[3]

Edit = Callable[[dict[str, Any]], None]


def _mask() -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:7, 3:11] = True
    return encode_rle(mask)


def _world(root: Path, videos: list[tuple[str, str]]) -> dict[str, Any]:
    """Videos given as (classes, source), numbered from 1, and three clips; arguments to build.

    Classes are first letters; a source of "" is none.
    """
    numbers = {name[0]: i for i, name in enumerate(CLASSES, start=11)}
    document: dict[str, Any] = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=11)],
        "videos": [],
        "annotations": [],
    }
    for number, (letters, source) in enumerate(videos, start=1):
        names = [f"v{number}/{i}.jpg" for i in range(LENGTH)]
        (root / "frames" / f"v{number}").mkdir(parents=True)
        for name in names:
            colour = (9 * number, 90, 200)
            Image.new("RGB", (WIDTH, HEIGHT), colour).save(root / "frames" / name)
        entry = {"id": number, "width": WIDTH, "height": HEIGHT, "file_names": names}
        document["videos"].append(entry | ({"source_id": source} if source else {}))
        for letter in letters:
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "video_id": number,
                    "category_id": numbers[letter],
                    "segmentations": [_mask() for _ in names],
                }
            )
    (root / "instances.json").write_text(json.dumps(document))
    (root / "clips" / "deep").mkdir(parents=True)
    for name in ("b.mp4", "A.AVI", "deep/c.webm"):
        (root / "clips" / name).write_bytes(name.encode())
    return {
        "annotations": root / "instances.json",
        "frames": root / "frames",
        "corpus": root / "clips",
        "corpus_labels": None,
        "seed": 3,
        "height": 16,
        "width": 24,
        "num_frames": 3,
        "val_classes": ("cat",),
        "test_classes": ("dog",),
        "on_message": lambda message: None,
    }


def _edit(settings: dict[str, Any], change: Edit) -> None:
    document = json.loads(settings["annotations"].read_text())
    change(document)
    settings["annotations"].write_text(json.dumps(document))


PLAIN = [("a", "s1"), ("a", "s2"), ("c", "s3"), ("c", "s4"), ("d", "s5"), ("d", "s6"), ("d", "s7")]


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    return _world(tmp_path, PLAIN)


def _build(settings: dict[str, Any], name: str = "out") -> Benchmark:
    folder = settings["annotations"].parent / name
    made = build_folder(folder, **settings)
    assert load_benchmark(folder) == made
    _check_promises(made, settings)
    return made


def _used(made: Benchmark, split: str) -> set[int]:
    helpers = {video for videos in made.supports[split].values() for video in videos}
    return helpers | {video for video, _ in made.queries[split]}


def _check_promises(made: Benchmark, settings: dict[str, Any]) -> None:
    """What holds of every benchmark: nothing leaks, nothing is lost, and training finds pairs."""
    annotations = load_annotations(settings["annotations"], quarantined=[])
    used = {split: _used(made, split) for split in ("train", "val", "test")}
    sources = {
        split: {annotations.videos[video].source_id or f"#{video}" for video in videos}
        for split, videos in used.items()
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not sources[one] & sources[other]
    unseen = set(made.classes["val"]) | set(made.classes["test"])
    for video in used["train"]:
        shown = {annotations.categories[t.category_id] for t in annotations.tracks_of(video)}
        assert not shown & unseen
    for split in ("val", "test"):
        asked = [video for video, _ in made.queries[split]]
        assert len(asked) == len(set(asked))
        for video, name in made.queries[split]:
            source = annotations.videos[video].source_id
            helpers = [annotations.videos[v].source_id for v in made.supports[split][name]]
            assert helpers
            assert source is None or source not in helpers
    for video, name in made.queries["train"]:
        assert set(made.supports["train"][name]) - {video}
    assert all(videos for by_class in made.supports.values() for videos in by_class.values())
    assert set(made.supports["train"]) == set(made.classes["train"])

    assert set(made.pairs) == {"val", "test"}
    for split, pairs in made.pairs.items():
        assert set(pairs) == {f"{video}:{name}" for video, name in made.queries[split]}
        for key, supports in pairs.items():
            name = key.partition(":")[2]
            pool = made.supports[split][name]
            assert set(supports) <= set(pool) and len(set(supports)) == min(10, len(pool))

    total = sum(map(len, used.values()))
    assert made.counts["videos"] == total + made.counts["videos_quarantined"]
    reasons = " ".join(what for what, _ in made.quarantined)
    for video in set(annotations.videos) - set().union(*used.values()):
        assert f"video {video} " in f"{reasons} "


def _reason(made: Benchmark, video: int) -> str:
    (reason,) = [why for what, why in made.quarantined if what.startswith(f"video {video} ")]
    return reason


def test_sides_of_plain_videos(plain: dict[str, Any]) -> None:
    made = _build(plain)
    assert made.classes == {"train": ("ant",), "val": ("cat",), "test": ("dog",)}
    assert made.queries["train"] == ((1, "ant"), (2, "ant"))
    assert made.supports["train"] == {"ant": (1, 2)}
    assert len(made.queries["val"]) == len(made.supports["val"]["cat"]) == 1
    assert len(made.queries["test"]) == 2  # of three sources, the odd one asks
    assert len(made.supports["test"]["dog"]) == 1
    assert Path(made.frames_root) == plain["frames"].resolve()
    assert Path(made.corpus_root) == plain["corpus"].resolve()
    empty = {what for what, _ in made.quarantined}
    assert empty == {"class bee", "class elk"}


def test_annotations_are_those_of_the_file(plain: dict[str, Any]) -> None:
    _build(plain)
    written = load_annotations(plain["annotations"].parent / "out" / "annotations.json")
    assert written == load_annotations(plain["annotations"])


def test_the_same_seed_gives_the_same_files(plain: dict[str, Any]) -> None:
    _build(plain, "one")
    _build(plain, "two")
    root = plain["annotations"].parent
    names = sorted(path.name for path in (root / "one").iterdir())
    assert names == ["annotations.json", "benchmark.json", "corpus.parquet"]
    for name in names:
        assert (root / "one" / name).read_bytes() == (root / "two" / name).read_bytes()


def test_the_seed_deals_the_sources(plain: dict[str, Any]) -> None:
    dealt = {_build(plain | {"seed": seed}).queries["test"] for seed in range(12)}
    assert len(dealt) == 3


def test_a_video_of_seen_and_unseen_classes_never_trains(tmp_path: Path) -> None:
    settings = _world(tmp_path, [*PLAIN, ("ad", "s8"), ("ac", "s9"), ("cd", "s10")])
    made = _build(settings)
    assert _used(made, "train") == {1, 2}
    assert 8 in _used(made, "test")
    assert 9 in _used(made, "val")
    assert 10 in _used(made, "test")  # of val and test, test has it
    assert made.counts["videos_of_seen_and_unseen"] == 2


def test_a_source_has_one_side(tmp_path: Path) -> None:
    settings = _world(tmp_path, [*PLAIN, ("a", "s5"), ("c", "s5"), ("a", "s3")])
    made = _build(settings)
    assert "s5" in _reason(made, 8) and "test split" in _reason(made, 8)
    assert "not be used for val" in _reason(made, 9)
    assert "val split" in _reason(made, 10)
    assert made.counts["videos_quarantined"] == 3


def test_the_same_frames_under_two_sources_leak(plain: dict[str, Any]) -> None:
    def borrow(document: dict[str, Any]) -> None:
        document["videos"][0]["file_names"] = document["videos"][4]["file_names"]

    _edit(plain, borrow)
    with refused():
        _build(plain)
    assert not (plain["annotations"].parent / "out" / "benchmark.json").exists()


def test_videos_without_a_source_are_their_own(tmp_path: Path) -> None:
    made = _build(_world(tmp_path, [(letters, "") for letters, _ in PLAIN]))
    assert made.counts["videos_quarantined"] == 0
    assert len(made.queries["test"]) == 2


def test_one_source_leaves_no_oracle_support(tmp_path: Path) -> None:
    videos = [*PLAIN, ("e", "s8"), ("e", "s8"), ("b", "s9"), ("b", "s9")]
    made = _build(_world(tmp_path, videos) | {"test_classes": ("dog", "elk")})
    for video in (8, 9):
        assert _reason(made, video).startswith("fewer videos than shots")
    assert "elk" not in made.supports["test"]
    assert "elk" in made.classes["test"]
    # A seen class still pretrains the backbone.
    assert made.supports["train"]["bee"] == (10, 11)
    assert not any(name == "bee" for _, name in made.queries["train"])
    assert "only pretrain" in _reason(made, 10)


def test_a_video_asks_for_one_class(tmp_path: Path) -> None:
    videos = [("a", "s1"), ("a", "s2"), ("c", "s3"), ("de", "s4"), ("de", "s5"), ("d", "s6")]
    for seed in range(6):
        made = _build(
            _world(tmp_path / str(seed), videos) | {"test_classes": ("dog", "elk"), "seed": seed}
        )
        assert {name for _, name in made.queries["test"]} == {"dog", "elk"}


def test_crowds_are_no_targets(tmp_path: Path) -> None:
    settings = _world(tmp_path, [*PLAIN, ("d", "s8")])
    _edit(settings, lambda document: document["annotations"][-1].update(iscrowd=1))
    made = _build(settings)
    assert "no test class is visible" in _reason(made, 8)


def test_an_instance_must_be_seen_by_the_clip(tmp_path: Path) -> None:
    settings = _world(tmp_path, [*PLAIN, ("a", "s8")])

    def hide(document: dict[str, Any]) -> None:
        # Three frames of five are sampled: 0, 2 and 4.
        document["annotations"][-1]["segmentations"] = [None, _mask(), None, _mask(), None]

    _edit(settings, hide)
    made = _build(settings)
    assert _reason(made, 8) == "no train class is visible in the 3 frames of its clip"


def test_broken_videos_are_quarantined(tmp_path: Path) -> None:
    settings = _world(tmp_path, [*PLAIN, *[("a", f"t{i}") for i in range(5)], ("", "t9")])
    frames = settings["frames"]
    (frames / "v8" / "3.jpg").unlink()
    whole = (frames / "v9" / "0.jpg").read_bytes()
    (frames / "v9" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (frames / "v10" / "1.jpg").write_bytes(b"")

    def spoil(document: dict[str, Any]) -> None:
        by_video = {track["video_id"]: track for track in document["annotations"]}
        by_video[11]["segmentations"] = [_mask()]
        del document["videos"][11]["file_names"]

    _edit(settings, spoil)
    made = _build(settings)
    assert _reason(made, 8) == "frame v8/3.jpg: no such image"
    assert "v9/0.jpg: the image cannot be read" in _reason(made, 9)
    assert "v10/1.jpg: the file is empty" in _reason(made, 10)
    assert "one of its instances cannot be read" in _reason(made, 11)
    assert any(what == "videos[11] (id 12)" for what, _ in made.quarantined)
    assert _reason(made, 13) == "no instance is annotated"
    assert made.counts["videos"] == 13
    assert made.counts["videos_quarantined"] == 6


def test_wrong_class_names(plain: dict[str, Any]) -> None:
    with refused("benchmark.val_classes"):
        _build(plain | {"val_classes": ("Cat",), "test_classes": ("dgo", "xylophone")})


def test_classes_of_one_name(plain: dict[str, Any]) -> None:
    _edit(plain, lambda document: document["categories"][1].update(name="ant"))
    with refused():
        _build(plain)


@pytest.mark.parametrize(
    "changed",
    [
        {"val_classes": ("ant", "bee"), "test_classes": ("cat", "dog")},
        {"test_classes": ("elk",)},
    ],
)
def test_a_side_with_nothing_left(
    plain: dict[str, Any], changed: dict[str, Any]
) -> None:
    with refused():
        _build(plain | changed)


def test_no_training_query(tmp_path: Path) -> None:
    with refused("benchmark"):
        _build(_world(tmp_path, PLAIN[1:]))


def test_val_may_be_empty(tmp_path: Path) -> None:
    messages: list[str] = []
    made = _build(_world(tmp_path, PLAIN[:3] + PLAIN[4:]) | {"on_message": messages.append})
    assert made.queries["val"] == ()
    assert any(message.startswith("val: no class") for message in messages)


@pytest.mark.parametrize("field", ["frames", "corpus"])
def test_folders_must_be_there(plain: dict[str, Any], field: str) -> None:
    with refused():
        _build(plain | {field: plain["annotations"]})


def test_clips(plain: dict[str, Any]) -> None:
    made = _build(plain)
    rows = read_corpus(plain["annotations"].parent / "out")
    assert [row["uri"] for row in rows] == ["A.AVI", "b.mp4", "deep/c.webm"]
    assert [row["clip_id"].rpartition("-")[0] for row in rows] == ["A", "b", "deep_c"]
    assert [row["source_id"] for row in rows] == ["A", "b", "deep/c"]
    assert rows[1]["sha256"] == hashlib.sha256(b"b.mp4").hexdigest()
    assert rows[1]["bytes"] == 5
    assert rows[1]["start_s"] is None and rows[1]["end_s"] is None
    assert made.counts["corpus_clips"] == 3


def test_clip_ids_are_safe_and_differ(plain: dict[str, Any]) -> None:
    names = ["b.mov", "deep_c.mkv", "a b;c.mp4", "è.mp4", "é.mp4", "x\u202fPM.mp4", "empty.m4v"]
    for name in names:
        (plain["corpus"] / name).write_bytes(b"")
    _build(plain)
    ids = [row["clip_id"] for row in read_corpus(plain["annotations"].parent / "out")]
    assert len(set(ids)) == len(ids) == 3 + len(names)
    assert all(set(one) <= set("-._") or one.isascii() for one in ids)
    assert not any("/" in one or " " in one or ";" in one for one in ids)


def test_what_is_no_clip(plain: dict[str, Any], tmp_path: Path) -> None:
    clips, outside = plain["corpus"], tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.mp4").write_bytes(b"secret")
    (clips / "notes.txt").write_text("no clip")
    (clips / "folder.mp4").mkdir()
    (clips / "escape.mp4").symlink_to(outside / "secret.mp4")
    (clips / "climb").symlink_to(outside, target_is_directory=True)
    (clips / "nowhere.mp4").symlink_to(clips / "gone.mp4")
    (clips / "ring.mp4").symlink_to(clips / "ring.mp4")
    (clips / "same.mp4").symlink_to(clips / "b.mp4")
    os.mkfifo(clips / "pipe.mp4")
    Path(os.fsdecode(os.fsencode(clips) + b"/\xff.mp4")).write_bytes(b"")
    made = _build(plain)
    rows = read_corpus(tmp_path / "out")
    assert [row["uri"] for row in rows] == ["A.AVI", "b.mp4", "deep/c.webm", "same.mp4"]
    corpus = {what: why for what, why in made.quarantined if what.startswith("corpus: ")}
    assert corpus == {
        "corpus: escape.mp4": "the link leaves the corpus folder",
        "corpus: climb": "links to folders are not followed",
        "corpus: nowhere.mp4": "the link leads nowhere",
        "corpus: ring.mp4": "the link leads nowhere",
        "corpus: pipe.mp4": "it is no file",
        "corpus: ?.mp4": "its name is not UTF-8",
        "corpus: 1 file .txt, such as notes.txt": "only files that end in "
        f"{', '.join(VIDEO_SUFFIXES)} are read",
    }


def test_no_clip_at_all(plain: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with refused("benchmark.corpus"):
        _build(plain | {"corpus": tmp_path / "none"})


def test_labels_are_for_diagnosis_only(plain: dict[str, Any], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("clip,rough_label,source\nb,ant,s1\ndeep/c.webm,,s1\nodd,dog,\n")
    messages: list[str] = []
    made = _build(plain | {"corpus_labels": labels, "on_message": messages.append})
    rows = read_corpus(tmp_path / "out")
    assert read_corpus_labels(tmp_path / "out") == {rows[1]["clip_id"]: "ant"}
    assert [row["source_id"] for row in rows] == ["A", "s1", "s1"]
    assert "ant" not in json.dumps(rows)
    assert made.counts["corpus_classes"] == 1
    assert any("1 rows name no clip" in message and "'odd'" in message for message in messages)


@pytest.mark.parametrize(
    "text",
    [
        "clip,label\n",
        "",
        "clip,rough_label\nb,ant\nb,bee\n",
    ],
)
def test_wrong_labels(plain: dict[str, Any], tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with refused("benchmark.corpus_labels"):
        _build(plain | {"corpus_labels": tmp_path / "labels.csv"})


def test_fingerprint_follows_the_inputs(plain: dict[str, Any]) -> None:
    inputs: Any = ({"annotations": plain["annotations"]}, [plain["frames"], plain["corpus"]])
    seen = {fingerprint(*inputs)}
    assert fingerprint(*inputs) in seen
    (plain["corpus"] / "new.mp4").write_bytes(b"")
    seen.add(fingerprint(*inputs))
    (plain["corpus"] / "new.mp4").write_bytes(b"more")
    seen.add(fingerprint(*inputs))
    (plain["frames"] / "v1" / "0.jpg").unlink()
    seen.add(fingerprint(*inputs))
    _edit(plain, lambda document: document["videos"][0].update(source_id="other"))
    seen.add(fingerprint(*inputs))
    assert len(seen) == 5
    with refused():
        fingerprint({"annotations": plain["frames"] / "none.json"}, inputs[1])


def test_real_videos(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSHOT_SHARED", str(shared))
    experiment = load_experiment(PROJECT / "experiments" / "real_videos.yaml")
    section = experiment.benchmark
    assert isinstance(section, FolderBenchmark)
    settings = section.model_dump(exclude={"kind"}) | {
        "seed": experiment.seed,
        "on_message": lambda message: None,
    }
    made = build_folder(tmp_path, **settings)
    _check_promises(made, settings)
    assert made.counts["videos"] == 26
    used = [len(_used(made, split)) for split in ("train", "val", "test")]
    assert sum(used) + made.counts["videos_quarantined"] == 26
    assert made.counts["corpus_clips"] == 385
    assert {name for _, name in made.queries["test"]} == set(section.test_classes)
    assert experiment.backbone.classes_per_batch <= len(made.classes["train"])
    assert experiment.evaluation.folds <= len(made.queries["test"])


def _film(path: Path, length: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 14, 10, "yuv420p"
        for index in range(length):
            image = np.full((10, 14, 3), 9 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_frames_in_one_file_a_video(tmp_path: Path) -> None:
    settings = _world(tmp_path, [*PLAIN, ("a", "s8"), ("a", "s9"), ("a", "s10")])
    _film(settings["frames"] / "v2.mp4", LENGTH)
    _film(settings["frames"] / "v8.mp4", LENGTH + 2)
    (settings["frames"] / "v9.mp4").write_bytes(b"no video")

    def in_one_file(document: dict[str, Any]) -> None:
        for number in (2, 8, 9, 10):
            names = [f"v{number}.mp4"]
            document["videos"][number - 1] |= {"file_names": names, "length": LENGTH}

    _edit(settings, in_one_file)
    made = _build(settings)
    assert 2 in _used(made, "train")
    assert _reason(made, 8) == "video v8.mp4: it has 7 frames where 5 are expected"
    assert _reason(made, 9) == "video v9.mp4: it cannot be opened as a video"
    assert _reason(made, 10) == "video v10.mp4: No such file or directory"
    assert made.reader(tmp_path / "out").frames(2).shape == (3, 16, 24, 3)
