"""Self-supervised training of the video encoder on the unlabelled corpus (section 4)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfshot.benchmarks.manifest import load_benchmark, read_corpus
from selfshot.config.errors import UserError
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.video import VideoError
from selfshot.models.video_encoder import VideoEncoder, update_momentum
from selfshot.models.weights import build_encoder, save_weights
from selfshot.ops.nce import mil_nce_loss
from selfshot.ops.rank import rank_loss
from selfshot.training.loop import schedule

NO_VIDEO = -1
"""Video id of an empty place of the queue."""

DECODE_LIMIT_S = 20.0
"""A clip that takes longer to decode is left out of training."""


class EncoderTraining(nn.Module):
    """Φ, its momentum twin Φ̃ and the queue of keys, with the loss of Eq. 1 or 2."""

    queue: Tensor
    queue_videos: Tensor

    def __init__(
        self,
        encoder: VideoEncoder,
        *,
        loss: str,
        rank_temperature: float,
        rank_form: str,
        nce_temperature: float,
        queue_length: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.loss, self.rank_temperature, self.rank_form = loss, rank_temperature, rank_form
        self.nce_temperature = nce_temperature
        self.register_buffer("queue", torch.zeros(queue_length, encoder.dim))
        self.register_buffer("queue_videos", torch.full((queue_length,), NO_VIDEO))
        self.fresh: tuple[Tensor, Tensor] | None = None

    def _embed_twice(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Φ and Φ̃ of the clips; a frozen trunk is run once for both."""
        frozen = not any(p.requires_grad for p in self.encoder.trunk.parameters())
        tokens, foreground = self.encoder.trunk_tokens(frames)
        anchors = self.encoder.pool(self.encoder.contextualise(tokens), foreground)
        with torch.no_grad():
            slow = self.momentum_encoder
            if not frozen:
                tokens, foreground = slow.trunk_tokens(frames)
            keys = slow.pool(slow.contextualise(tokens), foreground)
        return anchors, keys

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of a batch.

        Every crop is an anchor; the other crops of its video are its positives. Negatives are
        the other videos of the batch, gathered over all ranks, and the queue; a key of the
        anchor's own video is never a negative.

        Args:
            batch: `frames` uint8 (V, crops, T, H, W, 3) and `videos` (V,), numbers of the clips.
        """
        videos = batch["videos"].repeat_interleave(batch["frames"].shape[1])
        anchors, keys = self._embed_twice(batch["frames"].flatten(0, 1))
        keys, key_videos, offset = _gather(keys, videos)
        self.fresh = (keys, key_videos)

        every_key = torch.cat([keys, self.queue])
        every_video = torch.cat([key_videos, self.queue_videos])
        same = videos[:, None] == every_video[None]
        positive = same.clone()
        positive[:, len(keys) :] = False
        itself = torch.arange(len(anchors), device=anchors.device)
        positive[itself, itself + offset] = False
        negative = ~same & (every_video != NO_VIDEO)[None]
        if self.loss == "rank":
            loss = rank_loss(
                anchors,
                every_key,
                positive,
                negative,
                temperature=self.rank_temperature,
                form="ap" if self.rank_form == "ap" else "paper",
            )
        else:
            loss = mil_nce_loss(
                anchors, every_key, positive, negative, temperature=self.nce_temperature
            )
        with torch.no_grad():
            cosine = anchors @ keys.T
            nearest = cosine.masked_fill(~(positive | negative)[:, : len(keys)], -2).argmax(1)
            hits = positive.gather(1, nearest[:, None]).float().mean()
            spread = anchors.std(0).mean() * anchors.shape[1] ** 0.5
        # `spread` is 1 for directions drawn at random and 0 when all clips collapse to one.
        return {"loss": loss, "nearest_is_positive": hits, "spread": spread}

    @torch.no_grad()
    def enqueue(self) -> None:
        """Put the last batch's keys in front and drop the oldest."""
        assert self.fresh is not None
        if len(self.queue):
            keys, videos = self.fresh
            length = len(self.queue)
            self.queue.copy_(torch.cat([keys, self.queue])[:length])
            self.queue_videos.copy_(torch.cat([videos, self.queue_videos])[:length])
        self.fresh = None


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


class EncoderTask:
    """Temporal crops of corpus clips for `EncoderTraining`."""

    def __init__(
        self,
        *,
        benchmark: str,
        backbone: str | None,
        backbone_settings: dict[str, int],
        seed: int,
        steps: int,
        trunk: str,
        dim: int,
        layers: int,
        heads: int,
        loss: str,
        rank_temperature: float,
        rank_form: str,
        nce_temperature: float,
        num_frames: int,
        videos_per_batch: int,
        crops_per_video: int,
        queue_length: int,
        momentum: float,
        learning_rate: float,
    ) -> None:
        """Build it; see `EncoderConfig` for the settings.

        Args:
            benchmark: benchmark folder, of which only the corpus is read.
            backbone: folder of the pretrained backbone, for the trunk of that name.
            backbone_settings: width and dim, for the trunk from scratch.
            seed: of weights and crops.
            steps: of the whole training, over which the momentum rises.
            trunk, dim, layers, heads: of Φ.
            loss, rank_temperature, rank_form, nce_temperature: Eq. 1 or 2.
            num_frames: frames of a crop.
            videos_per_batch, crops_per_video: of the global batch.
            queue_length: keys kept.
            momentum: of Φ̃ at the start.
            learning_rate: of everything that is trained.

        Raises:
            UserError: the corpus has fewer readable clips than a batch.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        torch.manual_seed(seed)
        self.seed, self.steps, self.momentum = seed, steps, momentum
        self.num_frames = num_frames
        self.videos_per_batch, self.crops_per_video = videos_per_batch, crops_per_video
        self.learning_rate = learning_rate
        self.root = (folder / manifest.corpus_root).resolve()
        self.clips = read_corpus(folder)
        if len(self.clips) < videos_per_batch:
            raise UserError(
                f"encoder.videos_per_batch: {videos_per_batch} is more than the {len(self.clips)} "
                "clips of the corpus; lower it or add clips"
            )
        self.broken: set[int] = set()
        self.decoder = GuardedDecoder(
            num_frames=crops_per_video * num_frames,
            height=manifest.height,
            width=manifest.width,
            time_limit_s=DECODE_LIMIT_S,
        )
        self.settings = {
            "trunk": trunk,
            "backbone_settings": backbone_settings,
            "dim": dim,
            "layers": layers,
            "heads": heads,
        }
        self.size = (manifest.height, manifest.width)
        encoder = build_encoder(
            trunk=trunk,
            backbone=Path(backbone) if backbone else None,
            backbone_settings=backbone_settings,
            dim=dim,
            layers=layers,
            heads=heads,
        )
        self.module = EncoderTraining(
            encoder,
            loss=loss,
            rank_temperature=rank_temperature,
            rank_form=rank_form,
            nce_temperature=nce_temperature,
            queue_length=queue_length,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything of Φ that is not frozen."""
        params = [p for p in self.module.encoder.parameters() if p.requires_grad]
        return [{"name": "encoder", "params": params, "lr": self.learning_rate}]

    def _crops(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Temporal crops of one clip, uint8 (crops, T, H, W, 3), from a single decode.

        The clip is sampled evenly and cut into as many parts as there are crops, so that crops
        of a clip with several shots fall into different shots.
        """
        row = self.clips[number]
        clip = Clip(str(self.root / row["uri"]), row["start_s"], row["end_s"])
        frames = self.decoder.decode(clip)
        parts = frames.reshape(self.crops_per_video, self.num_frames, *frames.shape[1:])
        mirrored = [part[:, :, ::-1] if rng.random() < 0.5 else part for part in parts]
        return np.stack(mirrored)

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """This rank's share of the step's videos.

        A clip that cannot be decoded is replaced by the next one of the step's order; the
        embedding stage reports it with its reason.
        """
        rng = np.random.default_rng([self.seed, 17, step])
        order = rng.permutation(len(self.clips))[rank::world_size]
        wanted = self.videos_per_batch // world_size
        crops: list[np.ndarray] = []
        chosen: list[int] = []
        for clip in order:
            if len(crops) == wanted:
                break
            if int(clip) in self.broken:
                continue
            crop_rng = np.random.default_rng([self.seed, 19, step, int(clip)])
            try:
                crops.append(self._crops(int(clip), crop_rng))
            except VideoError:
                self.broken.add(int(clip))
                continue
            chosen.append(int(clip))
        if len(crops) < wanted:
            raise UserError(
                f"encoder.videos_per_batch: {self.videos_per_batch} is more than the clips of the "
                f"corpus that can be decoded ({len(crops)} of {len(order)} on this rank)"
            )
        return {"frames": torch.from_numpy(np.stack(crops)), "videos": torch.tensor(chosen)}

    def after_step(self, step: int) -> None:
        """Move Φ̃ and the queue; the momentum rises to 1 on a cosine."""
        momentum = 1 - (1 - self.momentum) * schedule(step, self.steps, 0)
        update_momentum(self.module.momentum_encoder, self.module.encoder, momentum)
        self.module.enqueue()

    def export(self, folder: Path) -> None:
        """Write `encoder.safetensors` and `encoder.json`; a packaged trunk is not copied."""
        packaged = self.settings["trunk"] == "efficientnet_lite0"
        state = {
            name: value
            for name, value in self.module.encoder.state_dict().items()
            if not (packaged and name.startswith("trunk."))
        }
        save_weights(folder, "encoder", state, {**self.settings, "size": self.size})
