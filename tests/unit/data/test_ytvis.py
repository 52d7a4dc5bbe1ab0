"""The YouTube-VIS format: what is read, what is refused, and that nothing else can happen."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusals import refused
from selfshot.data.ytvis import (
    Prediction,
    Quarantined,
    load_annotations,
    load_results,
    resolve_frame,
    save_annotations,
    save_results,
)
from selfshot.errors import UserError
from selfshot.ops.masks import decode_rle, encode_rle, rle_area, rle_to_box

HEIGHT, WIDTH, LENGTH = 5, 7, 3


def _mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[1:3, 2:5] = True
    return mask


RLE = encode_rle(_mask())
SQUARE = [[2.0, 1.0, 5.0, 1.0, 5.0, 3.0, 2.0, 3.0]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [11, 2, 3, 2, 3, 2, 12]}


def _annotations() -> dict[str, Any]:
    return {
        "info": {"description": "three frames of two classes"},
        "videos": [
            {
                "id": 7,
                "width": WIDTH,
                "height": HEIGHT,
                "length": LENGTH,
                "file_names": [f"swan/{i}.jpg" for i in range(LENGTH)],
                "source_id": "lake",
            },
            {"id": 3, "width": WIDTH, "height": HEIGHT, "file_names": ["bear/0.jpg"]},
        ],
        "categories": [{"id": 2, "name": "swan"}, {"id": 5, "name": "bear"}],
        "annotations": [
            {
                "id": 1,
                "video_id": 7,
                "category_id": 2,
                "iscrowd": 0,
                "segmentations": [RLE, None, RLE],
                "bboxes": [[2.0, 1.0, 3.0, 2.0], None, [2.0, 1.0, 3.0, 2.0]],
                "areas": [6, None, 6],
            },
            {
                "id": 2,
                "video_id": 7,
                "category_id": 5,
                "iscrowd": 1,
                "segmentations": [SQUARE, RUNS, []],
            },
        ],
    }


def _results() -> list[dict[str, Any]]:
    return [
        {"video_id": 7, "category_id": 2, "score": 0.5, "segmentations": [RLE, None, RUNS]},
        {"video_id": 3, "category_id": 5, "score": 1, "segmentations": [SQUARE]},
    ]


@pytest.fixture
def annotation_file(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(_annotations()))
    return path


def _write(folder: Path, content: object) -> Path:
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    return path


def test_every_form_of_mask_is_read(annotation_file: Path) -> None:
    annotations = load_annotations(annotation_file)
    assert annotations.categories == {2: "swan", 5: "bear"}
    assert annotations.videos[7].source_id == "lake"
    assert annotations.videos[3].length == 1
    first, second = annotations.tracks_of(7)
    assert annotations.tracks_of(3) == () == annotations.tracks_of(99)
    assert first.segmentations == (RLE, None, RLE)
    assert second.segmentations == (RLE, RLE, None)
    assert second.boxes == ((2.0, 1.0, 3.0, 2.0), (2.0, 1.0, 3.0, 2.0), None)
    assert second.areas == (6.0, 6.0, None)
    assert second.iscrowd and not first.iscrowd
    np.testing.assert_array_equal(decode_rle(second.segmentations[1], HEIGHT, WIDTH), _mask())


def test_there_and_back(annotation_file: Path, tmp_path: Path) -> None:
    annotations = load_annotations(annotation_file)
    copied = tmp_path / "copy.json"
    save_annotations(copied, annotations, {"seed": 3})
    assert load_annotations(copied) == annotations
    assert json.loads(copied.read_text())["info"] == {"seed": 3}

    predictions = load_results(_write(tmp_path, _results()), annotations)
    assert predictions[0] == Prediction(7, 2, 0.5, (RLE, None, RLE))
    save_results(copied, predictions)
    assert load_results(copied, annotations) == predictions
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "annotations.json",
        "changed.json",
        "copy.json",
    ]


def test_the_reader_measures_masks(annotation_file: Path, tmp_path: Path) -> None:
    annotations = load_annotations(annotation_file)
    first, second = load_results(_write(tmp_path, _results()), annotations)
    other = annotations.tracks_of(7)[1]
    for one in (first, second, other):
        assert one.extents is not None
        for rle, extent in zip(one.segmentations, one.extents.T.tolist(), strict=True):
            if rle is None:
                assert extent == [0, 0, 0]
            else:
                x, _, width, _ = rle_to_box(rle)
                assert extent == [rle_area(rle), x, x + width]
    # They would be wrong after the masks have been replaced.
    assert dataclasses.replace(first, segmentations=(None, RLE, None)).extents is None


def test_counts_as_bytes_are_written_as_text(annotation_file: Path, tmp_path: Path) -> None:
    annotations = load_annotations(annotation_file)
    in_bytes = {**RLE, "counts": RLE["counts"].encode()}
    save_results(tmp_path / "results.json", [Prediction(7, 2, 0.5, (in_bytes, None, None))])
    (prediction,) = load_results(tmp_path / "results.json", annotations)
    assert prediction.segmentations == (RLE, None, None)


def test_the_real_annotations(shared: Path) -> None:
    annotations = load_annotations(shared / "data" / "vis_real" / "instances.json")
    assert len(annotations.videos) == 26
    assert len(annotations.tracks) == 29
    assert sum(video.length for video in annotations.videos.values()) == 663
    root = shared / "data" / "vis_real" / "frames"
    for video in annotations.videos.values():
        assert resolve_frame(root, video.file_names[0]).is_file()


def _changed(where: tuple[Any, ...], value: Any) -> Any:
    content: Any = _annotations() if isinstance(where[0], str) else _results()
    place = content
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    return content


BAD_ANNOTATIONS = [
    (("videos",), None, '"videos"'),
    (("annotations",), {}, '"annotations"'),
    (("videos", 0), 5, r"videos\[0\]: 5 is not allowed"),
    (("videos", 0, "id"), "7", r"videos\[0\]: id: '7' is not allowed \(an integer\)"),
    (("videos", 0, "id"), 3, r"videos\[1\] \(id 3\): id: 3 is already used"),
    (("videos", 0, "width"), 0, "width: 0 is not allowed"),
    (("videos", 0, "height"), True, "height: True is not allowed"),
    (("videos", 0, "width"), 10**10, "more than"),
    (("videos", 0, "length"), 2, "length: 2 differs from the 3 file_names"),
    (("videos", 0, "file_names"), "swan", "file_names: 'swan' is not allowed"),
    (("videos", 0, "file_names", 1), "../a.jpg", r"file_names\[1\]: .* leaves the frames' root"),
    (("videos", 0, "file_names", 1), "/etc/passwd", "leaves the frames' root"),
    (("videos", 0, "file_names", 1), "a/../../b.jpg", "leaves the frames' root"),
    (("videos", 0, "file_names", 1), "..\\a.jpg", "leaves the frames' root"),
    (("videos", 0, "file_names", 1), "C:\\a.jpg", "leaves the frames' root"),
    (("videos", 0, "file_names", 1), "", "not allowed"),
    (("videos", 0, "file_names", 1), None, "not allowed"),
    (("categories", 0, "name"), "", "name: '' is not allowed"),
    (("categories", 0, "id"), 5, r"categories\[1\] \(id 5\): id: 5 is already used"),
    (("annotations", 1, "id"), 1, r"annotations\[1\] \(id 1\): id: 1 is already used"),
    (("annotations", 0, "video_id"), 8, r"video_id: 8 is not in .* \(known: 3, 7\)"),
    (("annotations", 0, "category_id"), 1, "category_id: 1 is not in"),
    (("annotations", 0, "iscrowd"), 2, "iscrowd: 2"),
    (("annotations", 0, "segmentations"), [RLE], "segmentations: 1 entries for video 7 of 3"),
    (("annotations", 0, "segmentations"), None, "segmentations: None"),
    (("annotations", 0, "segmentations", 2), {"size": [7, 5], "counts": "1"}, "frame 2: size"),
    (("annotations", 0, "segmentations", 2), RLE | {"counts": "1"}, "frame 2: counts: .* fill"),
    (("annotations", 0, "segmentations", 1), [[1, 2]], "frame 1: polygon"),
    (("annotations", 0, "segmentations", 1), "x", "frame 1: segmentation: 'x'"),
    (("annotations", 0, "bboxes"), [None], "bboxes: 1 entries"),
    (("annotations", 0, "bboxes", 0), [1, 2, 3], r"bboxes\[0\]"),
    (("annotations", 0, "bboxes", 0), [1, 2, -3, 4], r"bboxes\[0\]"),
    (("annotations", 0, "bboxes", 0), [1, 2, float("nan"), 4], r"bboxes\[0\]"),
    (("annotations", 0, "areas", 0), -1, r"areas\[0\]"),
    (("annotations", 0, "areas", 0), 10**400, r"areas\[0\]"),
]
BAD_RESULTS = [
    ((0,), None, r"results\[0\]: None is not allowed"),
    ((0, "video_id"), 4, "video_id: 4 is not in"),
    ((0, "category_id"), 4, "category_id: 4 is not in"),
    ((0, "score"), float("nan"), "score: nan is not allowed"),
    ((0, "score"), float("inf"), "score: inf is not allowed"),
    ((0, "score"), "0.5", "score: '0.5' is not allowed"),
    ((0, "score"), True, "score: True"),
    ((0, "score"), None, "score: None"),
    ((1, "segmentations"), [None, None], "segmentations: 2 entries for video 3 of 1 frames"),
    ((1, "segmentations", 0), RLE | {"size": [WIDTH, HEIGHT]}, "frame 0: size"),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD_ANNOTATIONS)
def test_wrong_annotations_are_named(
    tmp_path: Path, where: tuple[Any, ...], value: Any, message: str
) -> None:
    path = _write(tmp_path, _changed(where, value))
    with refused() as caught:
        load_annotations(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("where", "value", "message"), BAD_RESULTS)
def test_wrong_results_are_named(
    annotation_file: Path, tmp_path: Path, where: tuple[Any, ...], value: Any, message: str
) -> None:
    annotations = load_annotations(annotation_file)
    path = _write(tmp_path, _changed(where, value))
    with refused() as caught:
        load_results(path, annotations)
    assert str(caught.value).startswith(f"{path}: results[{where[0]}]")
    assert str(caught.value).endswith("; correct or remove the entry")


def test_wrong_entries_are_quarantined_with_what_refers_to_them(tmp_path: Path) -> None:
    content = _annotations()
    content["videos"][1]["width"] = None
    content["annotations"][0]["video_id"] = 3
    quarantined: list[Quarantined] = []
    annotations = load_annotations(_write(tmp_path, content), quarantined=quarantined)
    assert list(annotations.videos) == [7]
    assert [track.id for track in annotations.tracks] == [2]
    assert [one.entry for one in quarantined] == ["videos[1] (id 3)", "annotations[0] (id 1)"]
    assert quarantined[0].reason == "width: None is not allowed (an integer ≥ 1)"


def test_wrong_results_are_quarantined(annotation_file: Path, tmp_path: Path) -> None:
    results = _results()
    results[0]["score"] = float("nan")
    quarantined: list[Quarantined] = []
    path = _write(tmp_path, results)
    predictions = load_results(path, load_annotations(annotation_file), quarantined=quarantined)
    assert [prediction.video_id for prediction in predictions] == [3]
    assert [one.entry for one in quarantined] == ["results[0]"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short(annotation_file: Path, share: float) -> None:
    text = annotation_file.read_text()
    annotation_file.write_text(text[: int(len(text) * share)])
    with refused():
        load_annotations(annotation_file)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff{}",
        b"[" * 200_000,
        b'{"videos": ' + b"1" * 5000 + b"}",
        b"[]",
        b"null",
    ],
)
def test_what_is_no_annotation_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "strange.json"
    path.write_bytes(content)
    with refused():
        load_annotations(path)


def test_annotations_given_as_results(annotation_file: Path) -> None:
    annotations = load_annotations(annotation_file)
    with refused():
        load_results(annotation_file, annotations)


def test_no_file(tmp_path: Path) -> None:
    with refused():
        load_annotations(tmp_path / "nowhere.json")
    with refused():
        load_annotations(tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "a..b/c.jpg", "ä/ö.jpg", "./a.jpg"])
def test_names_below_the_root(tmp_path: Path, name: str) -> None:
    assert resolve_frame(tmp_path, name).is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["/a.jpg", "../a.jpg", "a/../b.jpg", "a\0.jpg", "", "\\a.jpg"])
def test_names_that_leave_the_root(tmp_path: Path, name: str) -> None:
    with refused():
        resolve_frame(tmp_path, name)


# Fuzz: take a good file, change anything anywhere, and nothing but a UserError may come of it.

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([RLE, RUNS, SQUARE, RLE["counts"], [HEIGHT, WIDTH], [RLE] * LENGTH]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "size", "counts", "video_id", "length"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


def _mutate(data: st.DataObject, content: Any) -> Any:
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = content
        while True:
            steps: list[Any] = list(place if isinstance(place, dict) else range(len(place)))
            if not steps:
                break
            step = data.draw(st.sampled_from(steps))
            inner = place[step]
            if isinstance(inner, dict | list) and data.draw(st.integers(0, 3)):
                place = inner
                continue
            if isinstance(place, dict) and data.draw(st.booleans()):
                del place[step]
            else:
                place[step] = copy.deepcopy(
                    data.draw(values)
                )  # The next change must not reach ours.
            break
    return content


fuzz = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(st.data())
def test_changed_annotations_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = _write(tmp_path, _mutate(data, _annotations()))
    quarantined: list[Quarantined] = []
    try:
        lenient = load_annotations(path, quarantined=quarantined)
    except UserError:
        return
    for track in lenient.tracks:
        video = lenient.videos[track.video_id]
        assert len(track.segmentations) == len(track.boxes) == len(track.areas) == video.length
        for rle in track.segmentations:
            if rle is not None and video.height * video.width < 1000:
                decode_rle(rle, video.height, video.width)
    if quarantined:
        with pytest.raises(UserError):
            load_annotations(path)
    else:
        assert load_annotations(path) == lenient


@fuzz
@given(st.data())
def test_changed_results_are_read_or_refused(
    annotation_file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    annotations = load_annotations(annotation_file)
    path = _write(tmp_path, _mutate(data, _results()))
    quarantined: list[Quarantined] = []
    try:
        predictions = load_results(path, annotations, quarantined=quarantined)
    except UserError:
        return
    for prediction in predictions:
        assert len(prediction.segmentations) == annotations.videos[prediction.video_id].length
    if quarantined:
        with pytest.raises(UserError):
            load_results(path, annotations)


@fuzz
@given(st.binary(max_size=60))
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bytes.json"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load_annotations(path)


@fuzz
@given(st.data())
def test_changed_characters_are_read_or_refused(
    annotation_file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    annotations = load_annotations(annotation_file)
    is_results = data.draw(st.booleans())
    content = bytearray(json.dumps(_results() if is_results else _annotations()).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 3))
        likely = st.sampled_from([b'"', b"[", b"}", b",", b"NaN", b"-1e999", b"\x80", b"null"])
        content[start:end] = data.draw(st.binary(max_size=3) | likely)
    path = tmp_path / "bytes.json"
    path.write_bytes(content)
    try:
        if is_results:
            for prediction in load_results(path, annotations, quarantined=[]):
                video = annotations.videos[prediction.video_id]
                assert len(prediction.segmentations) == video.length
                assert np.isfinite(prediction.score)
        else:
            load_annotations(path, quarantined=[])
    except UserError:
        return
