"""Episodes: what is mirrored or reversed is mirrored or reversed in everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfshot.data.clips import ClipReader
from selfshot.data.episodes import episode_batch
from selfshot.data.ytvis import Annotations, Track, Video
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH, NUM_FRAMES = 32, 40, 4
MASK_STRIDE, TOKEN_STRIDE = 2, 8
LENGTHS = {1: 4, 2: 3, 3: 4}
CAT, DOG = 2, 5


def _dense(video: int, category: int) -> np.ndarray:
    """A rectangle on the grid of mask cells that moves; the cat of video 1 is absent once."""
    masks = np.zeros((LENGTHS[video], HEIGHT, WIDTH), bool)
    for frame in range(len(masks)):
        top, left = (4, 4 * frame + 4 * video) if category == CAT else (20, 28 - 4 * frame)
        masks[frame, top : top + 12, left : left + 8] = True
    if video == 1 and category == CAT:
        masks[2] = False
    return masks


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ClipReader:
    """Red is cat, green is dog, and blue tells the video and the frame."""
    root = tmp_path_factory.mktemp("frames")
    videos, tracks = {}, []
    for video, length in LENGTHS.items():
        names = tuple(f"{video}_{frame}.png" for frame in range(length))
        videos[video] = Video(video, WIDTH, HEIGHT, length, names)
        cat, dog = _dense(video, CAT), _dense(video, DOG)
        for frame, name in enumerate(names):
            blue = np.full((HEIGHT, WIDTH), 40 * video + frame, np.uint8)
            pixels = np.stack([cat[frame] * np.uint8(255), dog[frame] * np.uint8(255), blue], -1)
            Image.fromarray(pixels).save(root / name)
        for category, masks in ((CAT, cat), (DOG, dog)):
            rles = tuple(encode_rle(mask) if mask.any() else None for mask in masks)
            nothing = (None,) * length
            tracks.append(Track(len(tracks) + 1, video, category, rles, nothing, nothing))
    annotations = Annotations(videos, {CAT: "cat", DOG: "dog"}, tuple(tracks))
    return ClipReader(annotations, root, num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH)


def _cells(pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """Channels in [0, 1] (T, h, w, 3) averaged over cells."""
    shares = pixels.float().movedim(-1, 1) / 255
    return torch.nn.functional.avg_pool2d(shares, stride).movedim(1, -1)


def _boxes(masks: np.ndarray) -> np.ndarray:
    """From the first pixel's first edge to the last pixel's last edge: centre and size, as shares.

    An empty mask has the box 0.
    """
    boxes = np.zeros((*masks.shape[:-2], 4))
    for place in np.ndindex(*masks.shape[:-2]):
        ys, xs = np.nonzero(masks[place])
        if len(ys):
            x0, x1 = xs.min() / masks.shape[-1], (xs.max() + 1) / masks.shape[-1]
            y0, y1 = ys.min() / masks.shape[-2], (ys.max() + 1) / masks.shape[-2]
            boxes[place] = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    return boxes


def _check(batch: dict[str, Any], categories: list[int]) -> None:
    """Everything in a batch says the same of its pixels."""
    for i, (category, target) in enumerate(zip(categories, batch["targets"], strict=True)):
        channel = {CAT: 0, DOG: 1}[category]
        masks = target["masks"]
        assert masks.shape == (1, NUM_FRAMES, HEIGHT // MASK_STRIDE, WIDTH // MASK_STRIDE)
        torch.testing.assert_close(
            masks[0], _cells(batch["query"][i], MASK_STRIDE)[..., channel], rtol=0, atol=1e-6
        )
        assert torch.equal(target["present"], masks.flatten(2).any(-1))
        np.testing.assert_allclose(target["boxes_cxcywh"], _boxes(masks.numpy() > 0), atol=1e-6)
        torch.testing.assert_close(
            batch["common"][i], _cells(batch["query"][i], TOKEN_STRIDE)[..., channel]
        )
        # Padding repeats the neighbouring valid frame, at either end.
        valid = target["valid_frames"].tolist()
        for place, is_valid in enumerate(valid):
            if not is_valid:
                beside = place - 1 if valid[0] else place + 1
                assert torch.equal(batch["query"][i, place], batch["query"][i, beside])


def test_as_they_are_without_a_generator(reader: ClipReader) -> None:
    batch = episode_batch(reader, [1, 2], [[2, 3], [1, 3]], [CAT, DOG])
    assert batch["query"].shape == (2, NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert batch["supports"].shape == (2, 2, NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert batch["query"].dtype == batch["supports"].dtype == torch.uint8
    assert batch["query"][..., 0, 0, 2].tolist() == [[40, 41, 42, 43], [80, 81, 82, 82]]
    assert batch["supports"][:, :, 0, 0, 0, 2].tolist() == [[80, 120], [40, 120]]
    assert batch["targets"][0]["present"].tolist() == [[True, True, False, True]]
    assert batch["targets"][1]["valid_frames"].tolist() == [True, True, True, False]
    _check(batch, [CAT, DOG])


def test_mirrored_and_reversed_consistently(reader: ClipReader) -> None:
    plain = episode_batch(reader, [1, 2], [[3], [3]], [CAT, CAT])
    seen, supports_seen = set(), set()
    for seed in range(12):
        rngs = [np.random.default_rng([seed, query]) for query in range(2)]
        batch = episode_batch(reader, [1, 2], [[3], [3]], [CAT, CAT], rngs)
        _check(batch, [CAT, CAT])
        for i in range(2):
            backward = bool((batch["query"][i, :, 0, 0, 2].diff().int() > 128).any())
            length = int(plain["targets"][i]["valid_frames"].sum())
            order = [max(length - 1 - t, 0) if backward else t for t in range(NUM_FRAMES)]
            expected, ours = plain["query"][i][order], batch["query"][i]
            mirrored = not torch.equal(ours, expected)
            assert torch.equal(ours.flip(2) if mirrored else ours, expected)
            assert batch["targets"][i]["valid_frames"][:length].all(), "padding stays last"
            seen.add((i, backward, mirrored))
            shot, whole = batch["supports"][i, 0], plain["supports"][i, 0]
            assert torch.equal(shot, whole) or torch.equal(shot, whole.flip(2))
            supports_seen.add(torch.equal(shot, whole))
    assert len(seen) == 8 and supports_seen == {True, False}


def test_the_same_generator_gives_the_same_batch(reader: ClipReader) -> None:
    a, b = (
        episode_batch(reader, [3], [[1, 2]], [DOG], [np.random.default_rng(5)]) for _ in range(2)
    )
    assert torch.equal(a["query"], b["query"]) and torch.equal(a["supports"], b["supports"])


def test_no_support_and_no_target(reader: ClipReader) -> None:
    rngs = [np.random.default_rng(query) for query in range(2)]
    batch = episode_batch(reader, [1, 3], [[], []], [99, 99], rngs)
    assert batch["supports"].shape == (2, 0, NUM_FRAMES, HEIGHT, WIDTH, 3)
    size = (HEIGHT // MASK_STRIDE, WIDTH // MASK_STRIDE)
    assert batch["targets"][0]["masks"].shape == (0, NUM_FRAMES, *size)
    assert batch["targets"][0]["boxes_cxcywh"].shape == (0, NUM_FRAMES, 4)
    assert not batch["common"].any()


def test_overlapping_instances_cover_a_token_once(reader: ClipReader) -> None:
    tracks = reader.annotations.tracks
    doubled = Annotations(
        reader.annotations.videos, reader.annotations.categories, (*tracks, tracks[0])
    )
    twice = ClipReader(
        doubled, reader.frames_root, num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH
    )
    batch = episode_batch(twice, [1], [[3]], [CAT])
    assert batch["targets"][0]["masks"].shape[0] == 2
    assert torch.equal(batch["common"], episode_batch(reader, [1], [[3]], [CAT])["common"])


def test_lists_of_different_lengths(reader: ClipReader) -> None:
    with pytest.raises(ValueError):
        episode_batch(reader, [1, 2], [[3]], [CAT, CAT])
