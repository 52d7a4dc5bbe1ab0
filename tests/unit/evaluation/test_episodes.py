"""Episodes: folds of queries, their ground truth, and outputs as tracks of whole videos."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refusals import refused
from selfshot.benchmarks.manifest import Benchmark, first_of_each_class, query_key, write_corpus
from selfshot.data.clips import ClipReader
from selfshot.data.ytvis import (
    Annotations,
    Prediction,
    Track,
    Video,
    load_results,
    save_annotations,
)
from selfshot.evaluation import baselines, episodes
from selfshot.evaluation.confidence import support_confidence
from selfshot.evaluation.validation import Validation
from selfshot.evaluation.video_ap import episode_scores
from selfshot.models.baselines.sam2 import FoundTrack, Prompt, Sam2
from selfshot.models.features import ClipFeatures
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.models.video_encoder import region_vectors
from selfshot.models.vis import masks_at
from selfshot.ops.masks import decode_rle, encode_rle, rle_area, rle_to_box
from tiny_sam2 import save_tiny_sam2

HEIGHT, WIDTH, FRAMES = 32, 48, 5
CATEGORIES = {1: "cat", 2: "dog", 3: "emu"}


def benchmark(queries: list[tuple[int, str]], seed: int = 0, **more: Any) -> Benchmark:
    return Benchmark(
        name="tiny",
        kind="sprites",
        seed=seed,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        classes={"train": (), "val": (), "test": tuple(CATEGORIES.values())},
        queries={"train": (), "val": (), "test": tuple(queries)},
        supports={"train": {}, "val": {}, "test": {}},
        **more,
    )


def many_queries() -> list[tuple[int, str]]:
    counts = {"cat": 7, "dog": 11, "emu": 5}
    names = [name for name, count in counts.items() for _ in range(count)]
    return [(100 + number, name) for number, name in enumerate(names)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_folds_are_disjoint_whole_and_stratified(count: int) -> None:
    queries = many_queries()
    dealt = benchmark(queries).folds("test", count, None)
    assert len(dealt) == count
    flat = [pair for fold in dealt for pair in fold]
    assert sorted(flat) == sorted(queries) and len({video for video, _ in flat}) == len(queries)
    sizes = [len(fold) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1
    for name in CATEGORIES.values():
        of_class = [Counter(label for _, label in fold)[name] for fold in dealt]
        assert max(of_class) - min(of_class) <= 1


def test_folds_depend_on_the_seed_alone() -> None:
    queries = many_queries()
    dealt = benchmark(queries).folds("test", 3, None)
    assert dealt == benchmark(queries).folds("test", 3, None)
    assert dealt != benchmark(queries, seed=1).folds("test", 3, None)
    assert benchmark(queries).folds("val", 2, None) == [[], []]


def test_a_video_that_asks_for_several_classes_has_one_fold() -> None:
    queries = [(video, name) for video in range(9) for name in ("cat", "dog")]
    dealt = benchmark(queries).folds("test", 3, None)
    assert sorted(pair for fold in dealt for pair in fold) == sorted(queries)
    assert [len(fold) for fold in dealt] == [6, 6, 6]
    for fold in dealt:
        assert {Counter(video for video, _ in fold)[video] for video, _ in fold} == {2}


def test_a_video_of_several_queries_has_the_truth_of_each() -> None:
    annotations = small_annotations()
    shown_by = {v: {t.category_id for t in annotations.tracks_of(v)} for v in annotations.videos}
    video = next(v for v, shown in shown_by.items() if len(shown) > 1)
    shown = shown_by[video]
    fold = [(video, CATEGORIES[category]) for category in sorted(shown)]
    truth = episodes.episode_truth(annotations, fold)
    assert truth.tracks == annotations.tracks_of(video) and set(truth.categories) == shown
    first = episodes.episode_truth(annotations, fold[:1])
    (one,) = {track.category_id for track in first.tracks}
    assert CATEGORIES[one] == fold[0][1]


def test_folds_that_are_cut_keep_every_class() -> None:
    whole = benchmark(many_queries()).folds("test", 2, None)
    for most in (3, 5, 7):
        cut = benchmark(many_queries()).folds("test", 2, most)
        for fold, before in zip(cut, whole, strict=True):
            assert len(fold) == len(set(fold)) == most and set(fold) <= set(before)
            assert {name for _, name in fold} == set(CATEGORIES.values())
    assert benchmark(many_queries()).folds("test", 2, 100) == whole


def test_the_first_query_of_each_class_then_the_second() -> None:
    queries = [(1, "emu"), (2, "cat"), (3, "emu"), (4, "emu"), (5, "dog"), (6, "cat")]
    order = [(2, "cat"), (5, "dog"), (1, "emu"), (6, "cat"), (3, "emu"), (4, "emu")]
    for count in (0, 1, 4, 6, 9):
        assert first_of_each_class(queries, lambda query: query[1], count) == order[:count]
    assert first_of_each_class([], str, 3) == []


def moving_square(number: int, length: int, absent: int | None = None) -> np.ndarray:
    """An 8 × 8 square that moves to the right from one frame to the next."""
    masks = np.zeros((length, HEIGHT, WIDTH), bool)
    for frame in range(length):
        if frame != absent:
            left = 2 * frame + 8 * (number % 3)
            masks[frame, 8 * number % 24 :, left : left + 8] = True
            masks[frame, 8 * number % 24 + 8 :] = False
    return masks


def track(number: int, video: int, category: int, masks: np.ndarray) -> Track:
    rles = tuple(encode_rle(mask) if mask.any() else None for mask in masks)
    return Track(
        id=number,
        video_id=video,
        category_id=category,
        segmentations=rles,
        boxes=tuple(None if rle is None else tuple(rle_to_box(rle)) for rle in rles),
        areas=tuple(None if rle is None else float(rle_area(rle)) for rle in rles),
        iscrowd=False,
    )


def video(number: int, length: int) -> Video:
    names = tuple(f"{number}/{frame:03d}.jpg" for frame in range(length))
    return Video(
        id=number, width=WIDTH, height=HEIGHT, length=length, file_names=names, source_id=None
    )


LENGTHS = {1: FRAMES, 2: FRAMES, 3: 3, 4: 13, 5: FRAMES}
QUERIES = [(1, "cat"), (2, "dog"), (3, "cat"), (4, "dog"), (5, "emu")]


def small_annotations() -> Annotations:
    """A track of the query's class in every video, two in the first, and one of another class."""
    own = {1: 1, 2: 2, 3: 1, 4: 2, 5: 3}
    tracks = [
        track(10 + number, number, own[number], moving_square(number, length, absent=1))
        for number, length in LENGTHS.items()
    ]
    tracks += [
        track(21, 1, 1, moving_square(0, LENGTHS[1])),
        track(22, 1, 2, moving_square(2, LENGTHS[1])),
        track(23, 2, 3, moving_square(0, LENGTHS[2])),
    ]
    videos = {number: video(number, length) for number, length in LENGTHS.items()}
    return Annotations(videos=videos, categories=CATEGORIES, tracks=tuple(tracks))


def reader_of(annotations: Annotations, root: Path = Path()) -> ClipReader:
    return ClipReader(annotations, root, num_frames=FRAMES, height=HEIGHT, width=WIDTH)


CATEGORY_IDS = {name: number for number, name in CATEGORIES.items()}


def test_the_truth_of_an_episode_is_the_class_that_is_asked_for() -> None:
    truth = episodes.episode_truth(small_annotations(), [(1, "cat"), (2, "dog")])
    assert set(truth.videos) == {1, 2} and truth.categories == {1: "cat", 2: "dog"}
    assert sorted(t.id for t in truth.tracks) == [11, 12, 21]
    other = episodes.episode_truth(small_annotations(), [(1, "dog")])
    assert [t.id for t in other.tracks] == [22]


def test_a_longer_video_takes_each_frame_from_the_nearest_sampled_one() -> None:
    annotations = small_annotations()
    reader = reader_of(annotations)
    assert reader.frame_indices(4).tolist() == [1, 3, 6, 9, 11]
    logits = torch.full((1, 1, FRAMES, HEIGHT // 4, WIDTH // 4), -9.0)
    for frame in range(FRAMES):
        logits[0, 0, frame, frame] = 9.0  # one row of cells a frame says which it is
    outputs = {"foreground_logits": torch.zeros(1, 1, FRAMES, 2), "mask_logits": logits}
    (found,) = episodes._tracks(outputs, reader, [(4, "dog")], CATEGORY_IDS)
    assert (found.video_id, found.category_id) == (4, 2) and found.score == pytest.approx(
        0.5, abs=1e-4
    )
    rows = [
        int(np.flatnonzero(decode_rle(rle, HEIGHT, WIDTH)[:, 0]).mean()) // 4
        for rle in found.segmentations
        if rle is not None
    ]
    #      frame  0  1  2  3  4  5  6  7  8  9 10 11 12; between two, the earlier one
    assert rows == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]


def test_a_score_is_foreground_times_how_clear_the_mask_is() -> None:
    generator = torch.Generator().manual_seed(0)
    foreground = torch.randn(2, 3, 5, 2, generator=generator)
    masks = 3 * torch.randn(2, 3, 5, 7, 11, generator=generator)
    masks[1, 2] = -4.0  # no pixel at all
    valid = torch.tensor([[True] * 5, [True, True, False, True, False]])
    scores = episodes.track_scores(foreground, masks, valid)
    for b, i in np.ndindex(2, 3):
        shown = [t for t in range(5) if valid[b, t]]
        logits = foreground[b, i].double().numpy()
        sure = np.mean([1 / (1 + np.exp(logits[t, 1] - logits[t, 0])) for t in shown])
        inside = [
            1 / (1 + np.exp(-value))
            for t in shown
            for value in masks[b, i, t].double().numpy().ravel()
            if value > 0
        ]
        clear = np.mean(inside) if inside else 0.0
        assert scores[b, i].item() == pytest.approx(sure * clear, abs=1e-6)
    assert scores[1, 2] == 0


def test_confidence_is_the_mean_score_of_the_supports_of_a_row() -> None:
    chosen = {"7:cat": {"self_shot_scores": [0.9, 0.5, 0.1], "random_scores": [-0.2, -0.4]}}

    def confidence(kind: str, shots: int, extra: int = 0) -> float:
        row = {"supports": kind, "shots": shots, "extra": extra}
        return support_confidence(chosen, 7, "cat", row)

    assert confidence("self_shot", 1) == 0.9
    assert confidence("self_shot", 1, 1) == pytest.approx(0.7)
    assert confidence("self_shot", 5) == pytest.approx(0.5), "supports that repeat count once"
    assert confidence("random", 2) == 0, "a clip that is unlike its query is not trusted"
    assert confidence("oracle", 2) == confidence("none", 0) == 1
    del chosen["7:cat"]["random_scores"]
    assert confidence("random", 1) == 1, "nothing was compared"


def test_tracks_of_trusted_supports_come_first(folder: Path) -> None:
    """Each track's score is times c ** power, whoever its supports are; its masks stay."""
    reader = benchmark(QUERIES).reader(folder)
    annotations = reader.annotations
    chosen = {
        key: {"self_shot": [4, 1], "self_shot_scores": [0.9 - 0.1 * n, 0.1], "oracle": [4, 1]}
        for n, key in enumerate(json.loads((folder / "supports.json").read_text()))
    }
    fold = benchmark(QUERIES).folds("test", 1, None)[0]
    rows = [{"supports": kind, "shots": 1, "extra": 0} for kind in ("self_shot", "oracle")]

    def predicted(power: float) -> dict[str, list[Prediction]]:
        model: Any = {"vis": Perfect(annotations)}
        return episodes.predict_rows(model, fold, rows, chosen, reader, reader_support, power)

    class Reader:
        def clip(self, support: int) -> np.ndarray:
            return reader.frames(support)[reader.valid_frames(support)]

    reader_support: Any = Reader()
    plain, scaled = predicted(0.0), predicted(2.0)
    names = {category: name for name, category in CATEGORY_IDS.items()}
    assert len(plain["self_shot_1+0"]) == len(scaled["self_shot_1+0"]) > 0
    for one, other in zip(plain["self_shot_1+0"], scaled["self_shot_1+0"], strict=True):
        key = query_key(one.video_id, names[one.category_id])
        assert other.score == pytest.approx(one.score * chosen[key]["self_shot_scores"][0] ** 2)
        assert other.segmentations == one.segmentations
    assert plain["oracle_1+0"] == scaled["oracle_1+0"]


def test_masks_are_enlarged_one_instance_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the videos' own size those of all instances together may not fit."""
    annotations = small_annotations()
    logits = torch.randn(2, 3, FRAMES, 7, 5, generator=torch.Generator().manual_seed(0))
    outputs = {"foreground_logits": torch.zeros(2, 3, FRAMES, 2), "mask_logits": logits}
    together = masks_at(logits, HEIGHT, WIDTH)
    sizes = []

    def enlarge(given: torch.Tensor, height: int, width: int) -> torch.Tensor:
        sizes.append(given.shape)
        return masks_at(given, height, width)

    monkeypatch.setattr(episodes, "masks_at", enlarge)
    fold = [(1, "cat"), (2, "dog")]
    found = episodes._tracks(outputs, reader_of(annotations), fold, CATEGORY_IDS)
    assert sizes == 6 * [(FRAMES, 7, 5)]
    for one, masks in zip(found, together.flatten(0, 1), strict=True):
        shown = [decode_rle(rle, HEIGHT, WIDTH) for rle in one.segmentations if rle is not None]
        np.testing.assert_array_equal(np.stack(shown), masks.numpy())


def test_a_shorter_video_leaves_the_padding_out() -> None:
    annotations = small_annotations()
    logits = torch.full((1, 2, FRAMES, HEIGHT // 4, WIDTH // 4), -9.0)
    logits[0, 0, 0, 2] = 9.0
    logits[0, :, 3:] = 9.0  # padding is foreground all over
    foreground = torch.zeros(1, 2, FRAMES, 2)
    foreground[0, 0, :3, 0], foreground[0, 0, 3:, 0] = 2.0, -50.0
    outputs = {"foreground_logits": foreground, "mask_logits": logits}
    found = episodes._tracks(outputs, reader_of(annotations), [(3, "cat")], CATEGORY_IDS)
    assert [len(p.segmentations) for p in found] == [3, 3]
    assert found[0].segmentations[0] is not None and found[0].segmentations[1:] == (None, None)
    assert found[1].segmentations == (None, None, None)
    sure = torch.tensor(2.0).sigmoid().item() * torch.tensor(9.0).sigmoid().item()
    assert found[0].score == pytest.approx(sure)
    assert found[1].score == 0, "it has no pixel outside the padding"


def test_what_moves_stands_in_for_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row `zero_shot_motion` asks no model, and gives results of the same form."""
    model = Perfect(small_annotations())
    monkeypatch.setattr(episodes, "load_vis", lambda path: model)
    rows = [{"supports": "zero_shot_motion", "shots": 0, "extra": 0}]
    result = episodes.evaluate_fold(config_of(folder) | {"rows": rows})
    assert result["queries"] == 5 and not model.supports
    assert result["rows"][0]["name"] == "zero_shot_motion_0+0"
    assert result["rows"][0]["AP50"] == 0, "frames of one colour do not move"
    clip = np.zeros((1, 6, 32, 40, 3), np.uint8)
    for t in range(6):
        clip[0, t, 8:18, 6 * t : 6 * t + 8] = 200
    outputs = episodes._moving(clip, 2)
    assert outputs["mask_logits"].shape == (1, 2, 6, 32, 40)
    assert outputs["foreground_logits"].shape == (1, 2, 6, 2)
    assert (outputs["mask_logits"][0, 0] > 0).any()
    assert not (outputs["mask_logits"][0, 1] > 0).any()


def test_percent_leaves_what_has_no_ground_truth() -> None:
    scores = {"AP": 0.25, "AP50": -1.0, "pooled": {"AP": 1.0, "AP50": -1.0}}
    assert episodes._percent(scores) == {
        "AP": 25.0,
        "AP50": -1.0,
        "pooled": {"AP": 100.0, "AP50": -1.0},
    }


def test_supports_of_a_row() -> None:
    crops = [{"video": 7, "start": 0.1, "end": 0.6}]
    chosen = {
        "7:cat": {
            "self_shot": ["a", "b", "c"],
            "oracle": [4, 5, 6],
            "query_itself": [7],
            "temporal_crops": crops,
            "semi_shot_2": [4, 5, "a"],
        }
    }

    def supports(kind: str, shots: int, extra: int = 0) -> list[Any]:
        row = {"supports": kind, "shots": shots, "extra": extra}
        return episodes._supports(chosen, 7, "cat", row)

    assert supports("self_shot", 1, 1) == ["a", "b"]
    assert supports("oracle", 2) == [4, 5]
    assert supports("query_itself", 1) == [7]
    assert supports("temporal_crops", 1) == crops
    assert supports("semi_shot", 2, 1) == [4, 5, "a"]


class Perfect:
    """A model that answers with the annotated masks; it knows a clip by its colour."""

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations
        self.reader, self.num_instances = reader_of(annotations), 3
        self.supports: list[tuple[int, ...] | None] = []
        self.lengths: dict[bool, set[int]] = {True: set(), False: set()}

    def to(self, device: str) -> Perfect:
        return self

    def encode(self, frames: torch.Tensor, *, is_support: bool) -> ClipFeatures:
        self.lengths[is_support].add(frames.shape[1])
        colours = frames[:, 0, 0, 0, :1].float()
        # The features are the colour of each clip.
        return ClipFeatures(colours[:, None], None, colours, colours, (1, 1, 1))

    def predict(self, query: ClipFeatures, supports: Any) -> dict[str, Any]:
        self.supports.append(None if supports is None else tuple(supports.tokens.shape[:2]))
        count = len(query.tokens)
        masks = torch.full((count, 3, FRAMES, HEIGHT, WIDTH), -9.0)
        foreground = torch.zeros(count, 3, FRAMES, 2)
        foreground[..., 1] = 9.0
        for b, colour in enumerate(query.tokens[:, 0, 0].tolist()):
            number = round(colour / 20)
            wanted = CATEGORY_IDS[dict(QUERIES)[number]]
            tracks = [t for t in self.annotations.tracks_of(number) if t.category_id == wanted]
            for slot, one in enumerate(tracks):
                foreground[b, slot, :, 0] = 18.0
                for frame, index in enumerate(self.reader.frame_indices(number)):
                    rle = one.segmentations[index]
                    if rle is not None:
                        dense = torch.from_numpy(decode_rle(rle, HEIGHT, WIDTH).copy())
                        masks[b, slot, frame][dense] = 9.0
        return {"foreground_logits": foreground, "mask_logits": masks}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A benchmark folder whose videos are of one colour each, without a corpus clip."""
    save_annotations(tmp_path / "annotations.json", small_annotations(), {})
    for number, length in LENGTHS.items():
        (tmp_path / "frames" / str(number)).mkdir(parents=True)
        for frame in range(length):
            pixels = np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "frames" / f"{number}/{frame:03d}.jpg")
    write_corpus(tmp_path, [])
    benchmark(QUERIES).save(tmp_path)
    chosen = {
        query_key(number, name): {
            "oracle": [n for n in LENGTHS if n != number],
            "query_itself": [number],
        }
        for number, name in QUERIES
    }
    (tmp_path / "supports.json").write_text(json.dumps(chosen))
    return tmp_path


def config_of(folder: Path, **more: Any) -> dict[str, Any]:
    rows = [
        {"supports": "none", "shots": 0, "extra": 0},
        {"supports": "query_itself", "shots": 1, "extra": 0},
        {"supports": "oracle", "shots": 2, "extra": 1},
    ]
    return {
        "benchmark": str(folder),
        "models": {"vis": "perfect"},
        "rows": rows,
        "supports": str(folder / "supports.json"),
        "split": "test",
        "fold": 0,
        "folds": 1,
        "max_queries": None,
        "predictions": str(folder / "predictions"),
        **more,
    }


def test_perfect_masks_give_perfect_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Perfect(small_annotations())
    monkeypatch.setattr(episodes, "load_vis", lambda path: model)
    result = episodes.evaluate_fold(config_of(folder))
    assert result["queries"] == 5 and result["fold"] == 0
    assert [row["name"] for row in result["rows"]] == ["none_0+0", "query_itself_1+0", "oracle_2+1"]
    for row in result["rows"]:
        # Video 4 is longer than a clip: its masks stand still between sampled frames.
        assert row["AP50"] == pytest.approx(100) and row["pooled"]["AP50"] == pytest.approx(100)
        assert 50 < row["AP"] <= 100 and row["AR10"] <= 100
    # Of one length together (the shorter one alone), three rows each: none, one, and 2 + 1.
    groups = [model.supports[i : i + 3] for i in range(0, len(model.supports), 3)]
    assert sorted(group[1][0] for group in groups) == [1, 4]
    assert all(group == [None, (n, 1), (n, 3)] for group in groups for n in [group[1][0]])
    annotations = small_annotations()
    for row in result["rows"]:
        path = folder / "predictions" / f"{row['name']}.fold0.json"
        again = load_results(path, annotations)
        fold = benchmark(QUERIES).folds("test", 1, None)[0]
        truth = episodes.episode_truth(annotations, fold)
        assert 100 * episode_scores(truth, again)["AP"] == pytest.approx(row["AP"])


def test_rows_that_were_predicted_before_are_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def predict_rows(models: Any, fold: Any, rows: Any, *given: Any) -> Any:
        asked.extend(episodes.row_name(row) for row in rows)
        return predicted(models, fold, rows, *given)

    predicted = episodes.predict_rows
    monkeypatch.setattr(episodes, "predict_rows", predict_rows)
    monkeypatch.setattr(episodes, "load_vis", lambda path: Perfect(small_annotations()))

    def evaluated(name: str, vis: str = "a", **more: Any) -> dict[str, Any]:
        asked.clear()
        kept = {"store": str(tmp_path / "kept"), "keys": {"vis": vis}}
        into = str(tmp_path / name)
        return episodes.evaluate_fold(config_of(folder, kept=kept, predictions=into, **more))

    first = evaluated("first")
    assert asked == ["none_0+0", "query_itself_1+0", "oracle_2+1"]
    again = evaluated("again")
    assert asked == [] and again == first
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()

    # Other supports of a row make another one of it, and leave the others.
    chosen = json.loads((folder / "supports.json").read_text())
    changed = {key: of | {"oracle": of["oracle"][::-1]} for key, of in chosen.items()}
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    assert evaluated("changed", supports=str(tmp_path / "changed.json"))["queries"] == 5
    assert asked == ["oracle_2+1"]
    for change in ({"vis": "b"}, {"max_queries": 3}, {"support_frames": 1}):
        evaluated("other", **change)
        assert len(asked) == 3, change

    # What was damaged or half written is predicted again.
    masks = sorted((tmp_path / "kept").rglob("predictions.json"))
    scores = sorted((tmp_path / "kept").rglob("manifest.json"))
    assert len(scores) == len(masks) == 13
    for path in masks:
        path.write_bytes(path.read_bytes()[:-2])
    assert evaluated("mended") == first and len(asked) == 3
    for path in scores:
        path.write_text("{")
    assert evaluated("mended") == first and len(asked) == 3
    assert evaluated("mended") == first and asked == []


def test_supports_as_single_middle_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Perfect(small_annotations())
    monkeypatch.setattr(episodes, "load_vis", lambda path: model)
    result = episodes.evaluate_fold(config_of(folder, support_frames=1))
    assert model.lengths == {True: {1}, False: {3, FRAMES}}, "queries stay whole, without padding"
    assert all(row["AP50"] == pytest.approx(100) for row in result["rows"])


def test_the_middle_frame_of_a_support(folder: Path) -> None:
    whole = benchmark(QUERIES).reader(folder)
    for number, length in LENGTHS.items():
        pixels = np.arange(HEIGHT, dtype=np.uint8)[:, None, None].repeat(WIDTH, 1).repeat(3, 2)
        Image.fromarray(pixels).save(folder / "frames" / f"{number}/{length // 2:03d}.jpg")
    middle = benchmark(QUERIES).support_reader(folder, whole, 1)
    for number in LENGTHS:
        (frame,) = middle.frames(number)
        assert np.abs(frame.astype(int) - pixels).max() < 9, "JPEG is near"
    assert whole.num_frames == FRAMES


def test_rows_of_crops_and_of_labelled_and_found_supports(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "supports.json"
    chosen = json.loads(path.read_text())
    for key, of_query in chosen.items():
        video = int(key.partition(":")[0])
        others = of_query["oracle"]
        of_query["spatial_crops"] = [{"video": video, "box": [0.1 * n, 0, 1, 1]} for n in (0, 1)]
        of_query["temporal_crops"] = [{"video": video, "start": 0, "end": n / 3} for n in (1, 2)]
        of_query["semi_shot_1"] = [others[0], {"video": others[1], "start": 0, "end": 1}]
        of_query["semi_shot_2"] = others[:2]
    path.write_text(json.dumps(chosen))
    model = Perfect(small_annotations())
    monkeypatch.setattr(episodes, "load_vis", lambda path: model)
    rows = [
        {"supports": "temporal_crops", "shots": 2, "extra": 0},
        {"supports": "spatial_crops", "shots": 1, "extra": 0},
        {"supports": "semi_shot", "shots": 1, "extra": 1},
        {"supports": "semi_shot", "shots": 2, "extra": 0},
    ]
    result = episodes.evaluate_fold(config_of(folder, rows=rows))
    assert [row["name"] for row in result["rows"]] == [
        "temporal_crops_2+0", "spatial_crops_1+0", "semi_shot_1+1", "semi_shot_2+0"
    ]  # fmt: skip
    # Equally long queries go together; each batch has the four rows' numbers of supports.
    assert [count for _, count in model.supports] == [2, 1, 2, 2] * (len(model.supports) // 4)
    assert sum(size for size, _ in model.supports[::4]) == len(QUERIES)


def test_a_fold_without_a_query_has_no_figure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "load_vis", lambda path: Perfect(small_annotations()))
    result = episodes.evaluate_fold(config_of(folder, folds=7, fold=6))
    assert result["queries"] == 0
    assert all(row["AP50"] == -1 == row["pooled"]["AP50"] for row in result["rows"])


def test_a_prompted_model_is_shown_the_objects_of_the_oracle_supports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole row on a tiny SAM 2: prompts, tracks, result file, scores, and the row kept."""
    weights = save_tiny_sam2(tmp_path / "sam2")
    rng = np.random.default_rng(0)
    for path in sorted((folder / "frames").rglob("*.jpg")):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    asked: list[list[Prompt]] = []
    tracks = Sam2.tracks

    def noted(self: Sam2, prompts: Any, clip: Any, size: Any) -> list[FoundTrack]:
        asked.append(prompts)
        found = tracks(self, prompts, clip, size)
        assert size == (HEIGHT, WIDTH) and len(clip) in (3, FRAMES) and len(found) >= len(prompts)
        return found

    monkeypatch.setattr(Sam2, "tracks", noted)
    monkeypatch.setattr(episodes, "load_vis", lambda path: Perfect(small_annotations()))
    rows = [{"supports": "prompted", "shots": 2, "extra": 0}]

    def evaluated(name: str, digest: str) -> dict[str, Any]:
        asked.clear()
        return episodes.evaluate_fold(
            config_of(
                folder, rows=rows, predictions=str(tmp_path / name),
                baselines={"prompted": str(weights), "keys": {"prompted": digest}},
                kept={"store": str(tmp_path / "kept"), "keys": {"vis": "a"}},
            )
        )  # fmt: skip

    result = evaluated("first", "a")
    torch.set_num_threads(threads)
    (row,) = result["rows"]
    assert row["name"] == "prompted_2+0" and 0 <= row["AP50"] <= 100 and result["queries"] == 5
    annotations = small_annotations()
    reader = reader_of(annotations, folder / "frames")
    chosen = json.loads((folder / "supports.json").read_text())
    fold = [pair for some in episodes._of_one_length(
        benchmark(QUERIES).folds("test", 1, None)[0], reader) for pair in some]  # fmt: skip
    assert len(asked) == len(fold)
    for (number, name), prompts in zip(fold, asked, strict=True):
        shown = []
        for support in chosen[query_key(number, name)]["oracle"][:2]:
            own = reader.tracks(support, stride=1, category_id=CATEGORY_IDS[name]).masks > 0
            if own.any():
                largest = own.sum((0, 2, 3)).argmax()
                shown.append((reader.frames(support)[largest], own[:, largest]))
        assert len(prompts) == len(shown)
        for prompt, (frame, masks) in zip(prompts, shown, strict=True):
            np.testing.assert_array_equal(prompt.frame, frame)
            np.testing.assert_array_equal(prompt.masks, masks[masks.any((1, 2))])
    found = load_results(tmp_path / "first" / "prompted_2+0.fold0.json", annotations)
    videos = {one.video_id for one in found}
    assert videos and videos <= {
        number for (number, _), prompts in zip(fold, asked, strict=True) if prompts
    }
    assert all(len(one.segmentations) == LENGTHS[one.video_id] for one in found)
    # Kept by the digest of the weights.
    assert evaluated("again", "a") == result and asked == []
    monkeypatch.setattr(Sam2, "tracks", lambda self, prompts, clip, size: asked.append([]) or [])
    assert evaluated("others", "b")["rows"][0]["AP50"] == 0 and len(asked) == 5


class Colours(torch.nn.Module):
    """An encoder whose tokens are the mean colours of 4 × 4 pixels, all of them foreground."""

    def regions(self, frames: torch.Tensor, regions: torch.Tensor | None) -> Any:
        planes = frames[0].permute(0, 3, 1, 2).float()
        tokens = torch.nn.functional.avg_pool2d(planes, 4).permute(0, 2, 3, 1)[None]
        return region_vectors(tokens, torch.ones_like(tokens[..., 0]), regions)


class Still:
    """Supports that are frames of one colour."""

    def clip(self, support: str) -> np.ndarray:
        colours = {"red": (250, 20, 20), "blue": (20, 20, 250)}
        return np.full((2, HEIGHT, WIDTH, 3), colours[support], np.uint8)


def test_what_looks_like_the_supports_ranks_first() -> None:
    clip = np.full((FRAMES, HEIGHT, WIDTH, 3), 128, np.uint8)
    squares = {"red": (slice(0, 8), slice(8, 24)), "blue": (slice(16, 32), slice(20, 40))}
    found = []
    for score, (name, (rows, columns)) in zip((0.9, 0.4), squares.items(), strict=True):
        clip[:, rows, columns] = Still().clip(name)[0, 0, 0]
        mask = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
        mask[1:, rows, columns] = True
        found.append(FoundTrack(score, [encode_rle(m) if m.any() else None for m in mask]))
    # Another find of the blue one, less sure, and a track without a pixel.
    found += [FoundTrack(0.3, found[1].rles), FoundTrack(0.95, [None] * FRAMES)]
    encoder = FrozenEncoder(Colours())
    reader: Any = Still()
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        proposals = [found[place] for place in order]
        for supports, first in ((["red"], 0), (["blue"], 1), (["blue", "blue", "red"], 1)):
            some = baselines.Baselines(reader, encoder=encoder).ranked(clip, proposals, supports)
            assert len(some) == 2
            best = max(some, key=lambda one: one.score)
            assert best.rles == found[first].rles
            vectors = [np.array(Still().clip(s)[0, 0, 0], float) for s in (*squares, *supports)]
            unit = [vector / np.linalg.norm(vector) for vector in vectors]
            expected = (1 + np.mean([unit[first] @ one for one in unit[2:]])) / 2
            assert best.score == pytest.approx(expected, abs=1e-5)
    assert baselines.Baselines(reader, encoder=encoder).ranked(clip, found[3:], ["red"]) == []


def test_distinct_tracks_in_numpy() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (17, 2))
    dense = np.zeros((17, 3, 23, 29), bool)
    for mask, (top, left) in zip(dense, corners, strict=True):
        mask[:2, top : top + 9, left : left + 11] = True
    scores = rng.permutation(17) / 17
    tracks = [
        FoundTrack(float(score), [encode_rle(m) if m.any() else None for m in masks])
        for score, masks in zip(scores, dense, strict=True)
    ]
    kept: list[int] = []
    for place in np.argsort(-scores).tolist():
        shared = [(dense[place] & dense[other]).sum() for other in kept]
        whole = [(dense[place] | dense[other]).sum() for other in kept]
        if all(a / b <= 0.5 for a, b in zip(shared, whole, strict=True)):
            kept.append(place)
    assert 1 < len(kept) < 17
    for order in (range(17), rng.permutation(17).tolist()):
        found = baselines.best_distinct([tracks[place] for place in order])
        assert [one.score for one in found] == [tracks[place].score for place in kept]
    assert baselines.best_distinct([]) == []


@pytest.mark.parametrize("sam2", [False, True])
def test_proposals_are_ranked_by_their_similarity_to_retrieved_supports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sam2: bool
) -> None:
    """The whole row: tracks of the network without the fuser, or those of another model."""
    model, annotations = Perfect(small_annotations()), small_annotations()
    path = folder / "supports.json"
    chosen = json.loads(path.read_text())
    for of_query in chosen.values():
        of_query |= {"self_shot": of_query["oracle"], "self_shot_scores": [0.5] * 4}
    path.write_text(json.dumps(chosen))
    encoder = FrozenEncoder(Colours())
    proposed: list[int] = []

    class Proposer:
        def proposals(self, clip: np.ndarray, size: tuple[int, int]) -> list[FoundTrack]:
            proposed.append(len(clip))
            whole = encode_rle(np.ones(size, bool))
            return [FoundTrack(0.5, [whole] * len(clip))]

    monkeypatch.setattr(episodes, "load_vis", lambda path: model)
    monkeypatch.setattr(baselines, "load_encoder", lambda path: encoder)
    monkeypatch.setattr(baselines, "load_sam2", lambda folder, setting, device: Proposer())
    rows = [{"supports": "proposals_similarity", "shots": k, "extra": 0} for k in (1, 3)]
    keys = {"proposals_similarity": ["a", None]}
    given = {"encoder": "phi", "keys": keys} | ({"proposals": "sam2"} if sam2 else {})
    result = episodes.evaluate_fold(
        config_of(
            folder, rows=rows, baselines=given, confidence=2.0,
            models={"vis": "perfect", **({} if sam2 else {"no_fuser": "perfect"})},
        )
    )  # fmt: skip
    assert [row["name"] for row in result["rows"]] == [
        "proposals_similarity_1+0", "proposals_similarity_3+0"
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["AP50"] == (0 if sam2 else pytest.approx(100))
        found = load_results(folder / "predictions" / f"{row['name']}.fold0.json", annotations)
        # All greys have one direction: as like as can be, times the confidence.
        assert {round(one.score, 4) for one in found} == {0.25}
        assert len(found) == (5 if sam2 else 6)
    assert len(proposed) == (5 if sam2 else 0), "once for both numbers of shots"
    assert not any(model.supports), "the network reads no support"


class Judged:
    """What is trained: a module with a model."""

    def __init__(self, model: Perfect, reads_supports: bool) -> None:
        self.model = model
        self.model.reads_supports = reads_supports  # type: ignore[attr-defined]


def of_validation(folder: Path) -> None:
    """Let the benchmark's queries be of the validation classes, with fixed pairs."""
    others = {
        query_key(number, name): tuple(n for n in LENGTHS if n != number)
        for number, name in QUERIES
    }
    made = benchmark([], pairs={"val": others, "test": {}})
    made = dataclasses.replace(made, queries={**made.queries, "val": tuple(QUERIES)})
    made.save(folder)


def test_a_validation_scores_the_same_few_queries_each_time(folder: Path) -> None:
    of_validation(folder)
    validation = Validation(str(folder), queries=3, shots=2)
    assert len(validation.fold) == 3 and set(validation.fold) <= set(QUERIES)
    model = Perfect(small_annotations())
    for _ in range(2):
        scores = validation(Judged(model, reads_supports=True))
        assert scores["val_AP50"] == pytest.approx(100) and 50 < scores["val_AP"] <= 100
    assert {shape[1] for shape in model.supports if shape is not None} == {2}
    model = Perfect(small_annotations())
    assert validation(Judged(model, reads_supports=False))["val_AP50"] == pytest.approx(100)
    assert set(model.supports) == {None}


def test_a_validation_without_queries(folder: Path) -> None:
    with refused("vis.validate_every"):
        Validation(str(folder), queries=3, shots=1)
