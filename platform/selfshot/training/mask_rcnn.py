"""The loss of Siamese Mask R-CNN on the same episodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from selfshot.models.baselines.siamese_mask_rcnn import SiameseMaskRcnn


class MaskRcnnTraining(nn.Module):
    """The model and the sum of torchvision's losses: of proposals, boxes, classes and masks."""

    def __init__(self, model: SiameseMaskRcnn) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch of `episode_batch`; of a part of one (see `split`) its share."""
        share = batch.get("share", 1.0)
        losses = self.model.losses(
            batch["query"], batch["supports"], batch["support_lengths"], batch["targets"]
        )
        terms = {name.removeprefix("loss_"): share * value for name, value in losses.items()}
        logged = {name: value.detach() for name, value in terms.items()}
        return {"loss": sum(terms.values(), batch["common"].new_zeros(())), **logged}

    def split(self, batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
        """A batch in `parts` of as many episodes, each with its share of the frames.

        Regions are drawn anew in each part, so that the sum is the whole's in the mean only.
        """
        if parts == 1:
            return [batch]
        targets = batch["targets"]
        assert len(targets) % parts == 0, "parts of as many episodes"
        frames = [int(target["valid_frames"].sum()) for target in targets]
        size = len(targets) // parts
        return [
            {name: value[start : start + size] for name, value in batch.items()}
            | {"share": sum(frames[start : start + size]) / sum(frames)}
            for start in range(0, len(targets), size)
        ]
