"""Φ, its momentum twin and the queue: what teaches an encoder without labels (section 4)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfshot.models.video_encoder import update_momentum
from selfshot.ops.nce import mil_nce_loss
from selfshot.ops.rank import rank_loss

NO_VIDEO = -1
"""Video id of an empty place of the queue."""


class EncoderTraining(nn.Module):
    """Φ, its momentum twin Φ̃ and the queue of keys, with the loss of Eq. 1 or 2, or MoCo's."""

    queue: Tensor
    queue_videos: Tensor
    queue_ages: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        loss: str,
        temperature: float,
        queue_length: int,
        head: nn.Module | None = None,
        positives: str = "all",
        positive_cosine: float = 1.0,
    ) -> None:
        """Build it.

        Args:
            encoder: Φ, a `ClipEncoder`.
            loss: `rank` (Eq. 2), `nce` (Eq. 1) or `moco` (one positive).
            temperature: of the loss.
            queue_length: keys of earlier batches that are kept.
            head: projects the vectors that the loss compares; none: it compares Φ's own.
            positives: `all` other crops of a clip, or the `farthest` of them alone, which most
                likely is of another shot.
            positive_cosine: an anchor takes part if its farthest positive's key is less near to
                its own key than this: crops that are alike teach how a clip looks, and not what
                it shows. 1: every anchor does.
        """
        super().__init__()
        self.encoder = encoder
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.head: nn.Module = nn.Identity() if head is None else head
        self.momentum_head = copy.deepcopy(self.head).requires_grad_(False)
        self.loss, self.temperature = loss, temperature
        self.positives, self.positive_cosine = positives, positive_cosine
        dim = int(getattr(encoder if head is None else head, "dim"))  # noqa: B009
        self.register_buffer("queue", torch.zeros(queue_length, dim))
        self.register_buffer("queue_videos", torch.full((queue_length,), NO_VIDEO))
        self.register_buffer("queue_ages", torch.zeros(queue_length, dtype=torch.int64))
        self.fresh: list[tuple[Tensor, Tensor]] = []

    def _embed_twice(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Φ and Φ̃ of the clips; a frozen backbone is run once for both, or was run before."""
        features: Any = batch.get("features")
        if features is None:
            features = self.encoder.features(batch["frames"].flatten(0, 1))  # type: ignore[operator]
        anchors = self.head(self.encoder.embed(features))  # type: ignore[operator]
        with torch.no_grad():
            keys = self.momentum_head(self.momentum_encoder.embed(features))  # type: ignore[operator]
        return anchors, keys

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch.

        Every crop is an anchor; the other crops of its video are its positives, or with MoCo's
        loss only the next one, and the rest take no part. Negatives are the other videos of the
        batch, gathered over all ranks, and the queue; a key of the anchor's own video is never
        a negative.

        Args:
            batch: `frames` uint8 (V, crops, T, H, W, 3) and `videos` (V,), numbers of the
                clips. In place of `frames` there may be `features` of Φ, of V × crops clips in
                that order. `share`, of a part of a batch: what its outputs are multiplied by.
        """
        anchors, keys = self._embed_twice(batch)
        crops = len(anchors) // len(batch["videos"])
        videos = batch["videos"].repeat_interleave(crops)
        keys, key_videos, offset = _gather(keys, videos)
        self.fresh.append((keys.detach(), key_videos))

        every_key = torch.cat([keys, self.queue.to(keys.dtype)])
        every_video = torch.cat([key_videos, self.queue_videos])
        same = videos[:, None] == every_video[None]
        itself = torch.arange(len(anchors), device=anchors.device)
        if self.loss == "moco":
            positive = torch.zeros_like(same)
            following = itself - itself % crops + (itself + 1) % crops
            positive[itself, following + offset] = True
        else:
            positive = same.clone()
            positive[:, len(keys) :] = False
            positive[itself, itself + offset] = False
        negative = ~same & (every_video != NO_VIDEO)[None]
        teaching, counted = positive, None
        if self.positives == "farthest" or self.positive_cosine < 1:
            similarity = keys[itself + offset] @ every_key.T
            least, farthest = similarity.masked_fill(~positive, torch.inf).min(1)
            if self.positives == "farthest":
                teaching = torch.zeros_like(positive)
                teaching[itself, farthest] = True
            counted = least < self.positive_cosine
        loss = self._loss(anchors, every_key, teaching, negative, counted)
        with torch.no_grad():
            cosine = anchors @ keys.T
            nearest = cosine.masked_fill(~(positive | negative)[:, : len(keys)], -2).argmax(1)
            hits = positive.gather(1, nearest[:, None]).float().mean()
            embedding_std = anchors.std(0).mean() * anchors.shape[1] ** 0.5
            filled = self.queue_videos != NO_VIDEO
            age = (self.queue_ages * filled).sum() / filled.sum().clamp_min(1)
        # `embedding_std` is 1 for directions drawn at random and 0 when all clips collapse to one.
        outputs = {
            "loss": loss, "nearest_is_positive": hits, "embedding_std": embedding_std,
            "queue_age": age,
        }  # fmt: skip
        if counted is not None:
            outputs["anchors"] = counted.float().mean()
        share = batch.get("share", 1)
        return outputs if share == 1 else {name: x * share for name, x in outputs.items()}

    def _loss(
        self,
        anchors: Tensor,
        keys: Tensor,
        positive: Tensor,
        negative: Tensor,
        counted: Tensor | None,
    ) -> Tensor:
        """The mean over the anchors that count, of all ranks: they do not have as many each."""
        share = 1.0
        if counted is not None:
            total = counted.sum()
            world = 1
            if dist.is_available() and dist.is_initialized():
                world = dist.get_world_size()
                dist.all_reduce(total)
            if not counted.any():
                return anchors.sum() * 0.0
            share = float(counted.sum() * world / total)
            anchors, positive, negative = (x[counted] for x in (anchors, positive, negative))
        loss = rank_loss if self.loss == "rank" else mil_nce_loss
        return share * loss(anchors, keys, positive, negative, temperature=self.temperature)

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Move Φ̃; put the step's keys in front of the queue and drop the oldest."""
        update_momentum(self.momentum_encoder, self.encoder, momentum)
        update_momentum(self.momentum_head, self.head, momentum)
        length = len(self.queue)
        if length and self.fresh:
            keys = torch.cat([keys for keys, _ in self.fresh]).to(self.queue.dtype)
            videos = torch.cat([videos for _, videos in self.fresh])
            self.queue_ages += 1
            for buffer, new in (
                (self.queue, keys),
                (self.queue_videos, videos),
                (self.queue_ages, torch.ones_like(videos)),
            ):
                buffer.copy_(torch.cat([new, buffer])[:length])
        self.fresh = []


def _gather(keys: Tensor, videos: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keys and videos of all ranks in rank order, and where this rank's begin."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys, videos, 0
    size = dist.get_world_size()
    all_keys = [torch.empty_like(keys) for _ in range(size)]
    all_videos = [torch.empty_like(videos) for _ in range(size)]
    dist.all_gather(all_keys, keys.contiguous())
    dist.all_gather(all_videos, videos.contiguous())
    return torch.cat(all_keys), torch.cat(all_videos), dist.get_rank() * len(keys)
