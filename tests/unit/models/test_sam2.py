"""SAM 2 through transformers, tiny and random: what we add to the library changes no mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from refusals import refused
from selfshot.models.baselines import sam2
from selfshot.models.baselines.sam2 import Prompt, Sam2, check_folder, load_sam2
from selfshot.ops.masks import encode_rle
from tiny_sam2 import DIM, SIDE, save_tiny_sam2

# More frames than the model remembers, and no two sides alike.
TIME, HEIGHT, WIDTH = 11, 37, 53
SIZE = (41, 59)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a network only waits for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Sam2:
    return load_sam2(folder, "evaluation.prompted")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (TIME, 5, 7, 3), np.uint8)
    return small.repeat(8, 1).repeat(8, 2)[:, :HEIGHT, :WIDTH]


def prompts() -> list[Prompt]:
    """Three objects in two supports."""
    frames = np.random.default_rng(1).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[0, 5:20, 7:30] = masks[1, 20:33, 20:50] = masks[2, :11, 40:] = True
    return [Prompt(frames[0], masks[:2]), Prompt(frames[1], masks[2:])]


def by_the_library(model: Sam2, frame: np.ndarray, mask: np.ndarray, clip: np.ndarray) -> Any:
    """An object's track and score by transformers alone: one session, everything kept."""
    network, processor = model.model, model.processor
    session = processor.init_video_session()
    processor.add_inputs_to_inference_session(session, 0, 1, input_masks=mask)
    rles, presence, inside = [], [], []
    for image in (frame, *clip):
        pixels = processor(images=image, return_tensors="pt").pixel_values[0]
        seen = network(inference_session=session, frame=pixels)
        (logits,) = processor.post_process_masks([seen.pred_masks], [SIZE], binarize=False)
        dense = logits[0, 0].double().numpy()
        rles.append(encode_rle(dense > 0) if (dense > 0).any() else None)
        presence.append(1 / (1 + np.exp(-seen.object_score_logits.item())))
        inside += (1 / (1 + np.exp(-dense[dense > 0]))).tolist()
        if len(rles) == 1:
            inside = []  # The support's own frame is no part of the query.
    return rles[1:], np.mean(presence[1:]) * np.mean(inside)


def test_tracks_are_those_of_the_library(model: Sam2, clip: np.ndarray) -> None:
    """Supports share a session and frames are forgotten; each object is found as if alone."""
    found = model.tracks(prompts(), clip, SIZE)
    shown = [(prompt.frame, mask) for prompt in prompts() for mask in prompt.masks]
    assert len(found) == len(shown) == 3
    for track, (frame, mask) in zip(found, shown, strict=True):
        rles, score = by_the_library(model, frame, mask, clip)
        assert track.rles == rles and len(rles) == TIME
        assert track.score == pytest.approx(score, rel=1e-5)
        assert all(rle is None or rle["size"] == list(SIZE) for rle in rles)
    assert len({str(track.rles) for track in found}) == 3, "the prompts decide what is found"


def test_the_order_of_supports_changes_no_track(model: Sam2, clip: np.ndarray) -> None:
    first, second = prompts()
    one = model.tracks([first, second], clip[:3], SIZE)
    other = model.tracks([second, first], clip[:3], SIZE)
    assert [track.rles for track in one] == [track.rles for track in (*other[1:], other[0])]


def test_without_a_prompt_or_a_frame_nothing_is_found(model: Sam2, clip: np.ndarray) -> None:
    assert model.tracks([], clip, SIZE) == [] == model.tracks(prompts(), clip[:0], SIZE)


def test_what_no_later_frame_reads_is_forgotten(
    model: Sam2, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session keeps of a long clip is as much as of a short one, pointers apart."""
    sessions: list[Any] = []
    start = model.processor.init_video_session

    def init(**options: Any) -> Any:
        sessions.append(start(**options))
        return sessions[-1]

    monkeypatch.setattr(model.processor, "init_video_session", init)
    for length in (8, TIME):
        model.tracks(prompts(), clip[:length], SIZE)

    def kept(session: Any) -> int:
        assert not session.processed_frames
        return sum(
            value.numel()
            for outputs in session.output_dict_per_obj.values()
            for frames in outputs.values()
            for seen in frames.values()
            for value in seen.values()
        )

    pointer = DIM + 1  # and the score of its presence
    assert kept(sessions[1]) - kept(sessions[0]) == 3 * (TIME - 8) * pointer


def test_proposals_are_masks_of_the_middle_frame_followed_to_both_ends(
    model: Sam2, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [torch.from_numpy(mask) for prompt in prompts() for mask in prompt.masks]
    asked = []

    def generate(image: Any) -> dict[str, Any]:
        asked.append(np.asarray(image))
        scores = torch.tensor([0.9, 0.97, 0.0, 0.93])
        return {"masks": [*masks[:2], torch.zeros_like(masks[0]), masks[2]], "scores": scores}

    monkeypatch.setitem(model.__dict__, "_generate", generate)
    monkeypatch.setattr(sam2, "PROPOSALS", 2)
    clip = clip[:5]
    found = model.proposals(clip, SIZE)
    np.testing.assert_array_equal(asked, clip[[2]])
    # The two best ones, of which the image's own masks are the prompts.
    prompt = [Prompt(clip[2], np.stack([masks[1].numpy(), masks[2].numpy()]))]
    after, before = model.tracks(prompt, clip[2:], SIZE), model.tracks(prompt, clip[1::-1], SIZE)
    for track, late, early in zip(found, after, before, strict=True):
        assert track.rles == [*early.rles[::-1], *late.rles]


def test_the_pipeline_finds_masks(model: Sam2, clip: np.ndarray) -> None:
    masks = model._generate(Image.fromarray(clip[1]))["masks"]
    found = model.proposals(clip[:3], SIZE)
    assert len(found) == len(masks) > 0
    assert all(len(track.rles) == 3 and 0 <= track.score <= 1 for track in found)


def test_a_single_frame_is_a_clip(model: Sam2, clip: np.ndarray) -> None:
    assert all(len(track.rles) == 1 for track in model.proposals(clip[:1], SIZE))


def _config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing folder": shutil.rmtree,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config that is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "another kind": lambda folder: _config(folder, lambda c: c.update(model_type="dinov2")),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "half the weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 99),
    "a weight is missing": lambda folder: _weights(folder, lambda s: s.pop("no_object_pointer")),
    "weights of another shape": lambda folder: _weights(
        folder, lambda s: s.update(no_object_pointer=torch.zeros(3, 5))
    ),
    "odd settings": lambda folder: _config(folder, lambda c: c.update(num_maskmem="seven")),
    "no processor": lambda folder: (folder / "processor_config.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_folder_is_refused_in_one_line(damage: str, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    DAMAGES[damage](bad)
    with refused("evaluation.proposals") as caught:
        load_sam2(bad, "evaluation.proposals")
    assert "\n" not in str(caught.value) and str(bad) in str(caught.value)


def test_weights_are_not_read_to_see_what_a_folder_holds(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    check_folder(tmp_path, "evaluation.prompted")


def test_the_folders_own_preprocessing_is_used(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "processor_config.json"
    path.write_text(path.read_text().replace("0.485", "0.25"))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    one, two = (
        load_sam2(some, "evaluation.prompted").processor(images=image, return_tensors="pt")
        for some in (folder, other)
    )
    assert one.pixel_values.shape == two.pixel_values.shape == (1, 3, SIDE, SIDE)
    assert not torch.equal(one.pixel_values[:, 0], two.pixel_values[:, 0])
