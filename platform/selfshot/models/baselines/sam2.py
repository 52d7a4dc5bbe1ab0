"""SAM 2 on videos, through transformers: masks of one frame followed into others.

Nothing is downloaded: the folder with the weights is the user's. docs/guide/evaluation.md says
which folders there are, what they weigh and under which licence they are.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from selfshot.errors import UserError
from selfshot.ops.masks import Rle, encode_rle

KIND = "sam2_video"
WANTED = (
    "give the folder of a SAM 2 video model, as `hf download facebook/sam2.1-hiera-tiny "
    "--local-dir FOLDER` leaves it (156 MB, Apache-2.0)"
)
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}

PROPOSALS = 32
"""Masks of a frame that are followed at most; each costs a pass of the mask decoder a frame."""


@dataclasses.dataclass(frozen=True)
class FoundTrack:
    """A track in a clip.

    Attributes:
        score: how sure the method is of it, in [0, 1].
        rles: its mask in each frame of the clip; none: it has no pixel there.
    """

    score: float
    rles: Sequence[Rle | None]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A frame and the masks of objects in it that are to be found in other frames.

    Attributes:
        frame: uint8 (H, W, 3).
        masks: bool (objects, H, W), none of them empty.
    """

    frame: UInt8[np.ndarray, "height width 3"]
    masks: Bool[np.ndarray, "objects height width"]


@dataclasses.dataclass(frozen=True)
class _Step:
    """What is kept of a frame: nothing of it is a dense mask.

    Attributes:
        rles: of each object.
        presence: probability that it is there, (objects,).
        inside: sum of the mask's probabilities over its pixels, and their number, (objects,) each.
    """

    rles: list[Rle | None]
    presence: Float[np.ndarray, " objects"]
    inside: tuple[Float[np.ndarray, " objects"], Float[np.ndarray, " objects"]]


def check_folder(folder: Path, setting: str) -> None:
    """See that a folder says that it holds a SAM 2 video model; no weights are read.

    Raises:
        UserError: it is not there, has no settings, or they are of another model.
    """
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} is no folder; {WANTED}", setting=setting)
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{setting}: {folder} has no config.json; {WANTED}", setting=setting
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: {path} cannot be read: {error}; {WANTED}", setting=setting
        ) from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != KIND:
        raise UserError(
            f"{setting}: {folder} holds a model of the kind {kind!r}, not {KIND!r}; {WANTED}",
            setting=setting,
        )


def load_sam2(folder: Path, setting: str, device: str = "cpu") -> Sam2:
    """The model of a folder, with its own preprocessing.

    Raises:
        UserError: the folder is of something else, or its files cannot be read.
    """
    check_folder(folder, setting)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Sam2VideoModel, Sam2VideoProcessor
    from transformers.utils import logging

    # A worker's log is no place for bars, nor for reports of what is told as an error below.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        processor = Sam2VideoProcessor.from_pretrained(folder, **_LOCAL)
        model, report = Sam2VideoModel.from_pretrained(
            folder, **_LOCAL, **_WEIGHTS, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise UserError(
            f"{setting}: {folder} cannot be loaded: {reason}; {WANTED}", setting=setting
        ) from None
    # The library draws at random what is not there, and only says so.
    drawn = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if drawn:
        raise UserError(
            f"{setting}: {folder} has {len(drawn)} weights too few or of another shape, such as "
            f"{drawn[0]}; {WANTED}",
            setting=setting,
        )
    return Sam2(model.to(device).eval(), processor, folder)


class Sam2:
    """SAM 2, which follows masks through frames and finds masks in one."""

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        """Put it together.

        Args:
            model: `Sam2VideoModel`, in evaluation mode on any device.
            processor: `Sam2VideoProcessor`.
            folder: that both are from; the image model is loaded from it if it is needed.
        """
        self.model, self.processor, self.folder = model, processor, folder

    def tracks(
        self,
        prompts: Sequence[Prompt],
        frames: Iterable[UInt8[np.ndarray, "height width 3"]],
        size: tuple[int, int],
    ) -> list[FoundTrack]:
        """Find the prompts' objects in frames, each by itself.

        A prompt's frame stands before the frames as if it were the first of the same video, so
        that memory attention carries its objects over. Prompts do not see each other.

        Args:
            prompts: where the objects are shown.
            frames: of the clip, in their order.
            size: height and width of the masks wanted.

        Returns:
            for each object of each prompt its track. Its score is the mean over frames of the
            probability that it is there × the mean over its pixels of the mask's probability.
        """
        return _joined(list(self._follow(prompts, frames, size)))

    def proposals(
        self, frames: UInt8[np.ndarray, "time height width 3"], size: tuple[int, int]
    ) -> list[FoundTrack]:
        """Tracks of whatever the middle frame shows: its masks, followed to both ends.

        The masks are those of transformers' pipeline `mask-generation` with its own thresholds,
        the best `PROPOSALS` of them.

        Args:
            frames: of the clip.
            size: height and width of the masks wanted.
        """
        middle = len(frames) // 2
        found = self._generate(Image.fromarray(frames[middle]))
        order = np.argsort(-np.asarray(found["scores"].cpu()), kind="stable")[:PROPOSALS]
        masks = [np.asarray(found["masks"][place], bool) for place in order.tolist()]
        masks = [mask for mask in masks if mask.any()]
        if not masks:
            return []
        prompts = [Prompt(frames[middle], np.stack(masks))]
        before = list(self._follow(prompts, frames[:middle][::-1], size))
        return _joined([*before[::-1], *self._follow(prompts, frames[middle:], size)])

    @functools.cached_property
    def _generate(self) -> Any:
        """The pipeline that finds all masks of an image."""
        from transformers import Sam2Model, pipeline

        return pipeline(
            "mask-generation",
            model=Sam2Model.from_pretrained(self.folder, **_LOCAL, **_WEIGHTS).eval(),
            image_processor=self.processor.image_processor,
            device=self.model.device,
        )

    @torch.inference_mode()
    def _follow(
        self,
        prompts: Sequence[Prompt],
        frames: Iterable[UInt8[np.ndarray, "height width 3"]],
        size: tuple[int, int],
    ) -> Iterator[_Step]:
        session = self.processor.init_video_session(
            inference_device=self.model.device, dtype=self.model.dtype
        )
        for prompt in prompts:
            # All are frame 0. The model seeks no object again in a frame that it was shown in.
            session.cache.clear_all()
            first = session.get_obj_num()
            self.processor.add_inputs_to_inference_session(
                session, frame_idx=0, obj_ids=list(range(first, first + len(prompt.masks))),
                input_masks=list(prompt.masks),
            )  # fmt: skip
            self._see(session, prompt.frame, 0)
        if not prompts:
            return
        for index, frame in enumerate(frames, 1):
            seen = self._see(session, frame, index)
            (logits,) = self.processor.post_process_masks([seen.pred_masks], [size], binarize=False)
            yield _step(logits[:, 0], seen.object_score_logits.flatten().sigmoid())

    def _see(self, session: Any, frame: np.ndarray, index: int) -> Any:
        """Run the model on a frame, and forget what no later frame reads."""
        pixels = self.processor(images=frame, device=self.model.device, return_tensors="pt")
        seen = self.model(session, frame=pixels.pixel_values[0], frame_idx=index)
        session.processed_frames.clear()
        oldest = index - self.model.num_maskmem + 1
        for outputs in session.output_dict_per_obj.values():
            for some in outputs.values():
                some.get(index, {}).pop("high_res_masks", None)
            for name in ("pred_masks", "maskmem_features", "maskmem_pos_enc"):
                outputs["non_cond_frame_outputs"].get(oldest, {}).pop(name, None)
        return seen


def _step(
    logits: Float[Tensor, "objects height width"], presence: Float[Tensor, " objects"]
) -> _Step:
    masks = logits > 0
    sums = (logits.sigmoid() * masks).sum((1, 2)).double().cpu().numpy()
    pixels = masks.sum((1, 2)).double().cpu().numpy()
    rles = [encode_rle(mask) if mask.any() else None for mask in masks.cpu().numpy()]
    return _Step(rles, presence.double().cpu().numpy(), (sums, pixels))


def _joined(steps: Sequence[_Step]) -> list[FoundTrack]:
    """The tracks of all objects over the frames."""
    if not steps:
        return []
    presence = np.mean([step.presence for step in steps], axis=0)
    sums, pixels = (np.sum([step.inside[part] for step in steps], axis=0) for part in (0, 1))
    scores = (presence * sums / pixels.clip(1)).tolist()
    return [
        FoundTrack(score, [step.rles[place] for step in steps])
        for place, score in enumerate(scores)
    ]
