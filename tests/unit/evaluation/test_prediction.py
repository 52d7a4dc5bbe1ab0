"""Videos of any length: windows, links between them, and what is written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfshot.config.vis import VisConfig
from selfshot.data.frames import FrameReader
from selfshot.data.ytvis import Annotations, Prediction, Video, load_results
from selfshot.evaluation.linking import TrackLinker, windows_of
from selfshot.evaluation.prediction import SupportCache, Windows, distinct, predict_video
from selfshot.models.backbone import SmallBackbone
from selfshot.models.features import ClipFeatures
from selfshot.models.vis import SelfShotVIS
from selfshot.ops.masks import decode_rle, encode_rle

HEIGHT, WIDTH = 20, 28


@given(st.integers(1, 90), st.integers(1, 13), st.integers(0, 12))
def test_windows_cover_a_video(length: int, size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    found = windows_of(length, size, overlap)
    assert sorted({frame for part in found for frame in part}) == list(range(length))
    assert {len(part) for part in found} == {min(size, length)}
    for one, other in itertools.pairwise(found):
        assert one.start < other.start and one.stop - other.start >= overlap


def _scene(length: int) -> np.ndarray:
    """Masks (2, T, H, W): one thing moves right, one down and is gone from frame 9 on."""
    masks = np.zeros((2, length, HEIGHT, WIDTH), bool)
    for t in range(length):
        masks[0, t, 2:6, t % 22 : t % 22 + 6] = True
        if t < 9:
            masks[1, t, 8 + t : 11 + t, 20:25] = True
    return masks


class Seeing:
    """A model that finds the scene's masks, in an order of its own in each window."""

    def __init__(self, scene: np.ndarray) -> None:
        self.scene = scene
        self.windows: list[list[int]] = []

    def encode(self, frames: torch.Tensor, *, is_support: bool) -> ClipFeatures:
        numbers = frames[0, :, 0, 0, 0]
        return ClipFeatures(numbers[None], None, None, frames, (len(numbers), 1, 1))

    def predict(self, query: ClipFeatures, supports: Any) -> dict[str, Any]:
        numbers = query.tokens[0].tolist()
        order = [0, 1, 2] if len(self.windows) % 2 else [2, 1, 0]
        self.windows.append(numbers)
        masks = np.concatenate([self.scene[:, numbers], np.zeros_like(self.scene[:1, numbers])])
        logits = torch.from_numpy(np.where(masks[order], 9.0, -9.0).astype(np.float32))[None]
        foreground = torch.zeros(1, 3, len(numbers), 2)
        features = torch.eye(3)[order][:, None].expand(-1, len(numbers), -1)[None]
        return {"mask_logits": logits, "foreground_logits": foreground, "instances": features}


def _video(folder: Path, length: int) -> Video:
    """Frames that hold their own number."""
    for t in range(length):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), t, np.uint8)).save(folder / f"{t:03d}.png")
    return Video(7, WIDTH, HEIGHT, length, tuple(f"{t:03d}.png" for t in range(length)))


@pytest.mark.parametrize(("length", "window", "overlap"), [(23, 8, 2), (9, 8, 1), (5, 8, 2)])
def test_tracks_through_windows(tmp_path: Path, length: int, window: int, overlap: int) -> None:
    video, scene = _video(tmp_path, length), _scene(length)
    model: Any = Seeing(scene)
    results = tmp_path / "results.json"
    count = predict_video(
        model, video, FrameReader(tmp_path), None, results,
        Windows((HEIGHT, WIDTH), window, overlap, min_score=0.2),
    )  # fmt: skip
    assert count == 2, "what has no pixel starts no track"
    assert max(map(len, model.windows)) <= window
    annotations = Annotations({7: video}, {1: "common"}, ())
    found = load_results(results, annotations)
    assert len(found) == 2 and all(len(p.segmentations) == length for p in found)
    for prediction in found:
        ours = np.stack(
            [
                np.zeros((HEIGHT, WIDTH), bool) if rle is None else decode_rle(rle, HEIGHT, WIDTH)
                for rle in prediction.segmentations
            ]
        )
        assert any(np.array_equal(ours, one) for one in scene), "one track is one thing"
    assert not list(tmp_path.glob(".*")), "nothing is left behind"


def test_every_third_frame(tmp_path: Path) -> None:
    video, scene = _video(tmp_path, 11), _scene(11)
    model: Any = Seeing(scene)
    predict_video(
        model, video, FrameReader(tmp_path), None, tmp_path / "r.json",
        Windows((HEIGHT, WIDTH), 3, 1, every=3, min_score=0.2),
    )  # fmt: skip
    assert model.windows == [[0, 3, 6], [3, 6, 9]]
    (best, *_) = json.loads((tmp_path / "r.json").read_text())
    areas = [decode_rle(s, HEIGHT, WIDTH) if s else None for s in best["segmentations"]]
    looked_at = [0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]
    thing = 0 if areas[10] is not None else 1
    for t, frame in enumerate(looked_at):
        mask = areas[t] if areas[t] is not None else np.zeros((HEIGHT, WIDTH), bool)
        np.testing.assert_array_equal(mask, scene[thing, frame])


def test_memory_is_bounded_by_a_window(tmp_path: Path) -> None:
    linker = TrackLinker(tmp_path, min_iou=0.3, min_score=0.2)
    for start in range(0, 300, 6):
        window = range(start, start + 8)
        masks = np.ones((2, 8, 3, 5), bool)
        masks[1, :, :, 2:] = False
        rles = [[encode_rle(mask) for mask in one] for one in masks]
        linker.add(window, masks, [0.5, 0.4], np.eye(2, dtype=np.float32), rles)
        assert linker._masks is not None and linker._masks.shape == (2, 8, 3, 5)
    assert [track.frames for track in linker.tracks] == [400, 400]
    assert linker.tracks[0].score == pytest.approx(0.5)


def test_a_thing_that_jumps_is_another_track(tmp_path: Path) -> None:
    linker = TrackLinker(tmp_path, min_iou=0.3, min_score=0.2)
    for start in (0, 3):
        masks = np.zeros((1, 4, 5, 7), bool)
        masks[0, :, :, start : start + 2] = True
        linker.add(
            range(start, start + 4), masks, [0.5], np.ones((1, 2), np.float32),
            [[encode_rle(mask) for mask in masks[0]]],
        )  # fmt: skip
    assert len(linker.tracks) == 2


def test_a_support_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    section = VisConfig(
        heads=2, encoder_layers=1, fuser_layers=1, decoder_layers=1, ffn_dim=8, dropout=0.0,
        num_instances=2, deformable=False, query_positions=True, support_positions=True,
    )  # fmt: skip
    model = SelfShotVIS(SmallBackbone(8, 12), section).eval()
    clips = {
        name: np.random.default_rng(n).integers(0, 256, (frames, 32, 32, 3)).astype(np.uint8)
        for n, (name, frames) in enumerate([("a", 2), ("b", 3), ("c", 1)])
    }
    asked: list[str] = []

    def read(name: str) -> np.ndarray:
        asked.append(name)
        return clips[name]

    cache = SupportCache(model)
    query = model.encode(torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8), is_support=False)
    for names in (["a", "b"], ["b", "c"], ["c", "a", "b"]):
        with torch.inference_mode():
            kept = model.predict(query, cache.features(names, read))
            fresh = model.predict(query, SupportCache(model).features(names, clips.__getitem__))
        assert torch.equal(kept["mask_logits"], fresh["mask_logits"])
    assert asked == ["a", "b", "c"]
    assert cache.features([], read) is None


def _bar(left: int, width: int, frames: int = 3) -> tuple[Any, ...]:
    mask = np.zeros((11, 23), bool)
    mask[2:7, left : left + width] = True
    return (encode_rle(mask),) * frames


def test_a_track_that_covers_what_a_surer_one_covers_is_left_out() -> None:
    """Widths 10 and 7 share 7 of 10 columns (0.7), 10 and 4 share 4 of 10 (0.4)."""
    tracks = [
        Prediction(1, 1, 0.3, _bar(0, 7)),
        Prediction(1, 1, 0.9, _bar(0, 10)),
        Prediction(1, 1, 0.2, _bar(0, 4)),
        Prediction(1, 1, 0.8, _bar(12, 6)),
        Prediction(1, 1, 0.1, (None,) * 3),
        Prediction(1, 1, 0.05, (None,) * 3),
    ]
    kept = distinct(tracks)
    # What has no pixel covers nothing, so it is like nothing.
    assert [one.score for one in kept] == [0.9, 0.8, 0.2, 0.1, 0.05]
    assert distinct(tracks[::-1]) == kept
    assert [one.score for one in distinct(tracks, 0.75)] == [0.9, 0.8, 0.3, 0.2, 0.1, 0.05]
    assert distinct([]) == []


def test_tracks_at_other_times_are_not_the_same() -> None:
    """The same place in 3 of 5 and in the other 2 frames; and in 3 and in all 5: IoU is 3 / 5."""
    bar, none = _bar(3, 9, 1), (None,)
    early, late, whole = bar * 3 + none * 2, none * 3 + bar * 2, bar * 5
    tracks = [Prediction(1, 1, score, some) for score, some in ((0.9, early), (0.8, late))]
    assert distinct(tracks) == tracks
    both = [Prediction(1, 1, 0.9, early), Prediction(1, 1, 0.5, whole)]
    assert distinct(both, 0.6) == both[:1] and distinct(both, 0.61) == both
