"""Self-supervised training of the video encoder on the unlabelled corpus (section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfshot.benchmarks.manifest import load_benchmark, read_corpus
from selfshot.config.encoder import EncoderConfig
from selfshot.data.augment import RECIPES
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.video import VideoError
from selfshot.errors import UserError
from selfshot.models.projection import ProjectionHead
from selfshot.models.trained_encoder import build_encoder, save_encoder
from selfshot.ops.whitening import whitening as fit_whitening
from selfshot.training.contrast import EncoderTraining
from selfshot.training.loop import schedule
from selfshot.training.probe import NeighbourProbe

WHITENING_CLIPS, WHITENING_SHRINKAGE = 1000, 1.0
"""Clips that the whitening is fitted on, at most, and the share of the mean variance that is added
to every direction's."""

DECODE_LIMIT_S = 20.0
"""A clip that takes longer to decode is left out of training."""


class EncoderTask:
    """Temporal crops of corpus clips for `EncoderTraining`."""

    def __init__(
        self,
        *,
        benchmark: str,
        backbone: str | None,
        backbone_network: Mapping[str, Any],
        seed: int,
        encoder: Mapping[str, Any],
        accumulate: int = 1,
        checkpointing: bool = False,
    ) -> None:
        """Build it.

        Args:
            benchmark: benchmark folder, of which only the corpus is read.
            backbone: folder of the pretrained backbone, for `backbone: pretrained`.
            backbone_network: arguments of `build_backbone`, for `pretrained` and `scratch`.
            seed: of weights and crops.
            encoder: `EncoderConfig` as JSON values.
            accumulate: parts of a batch that are computed one after another.
            checkpointing: forget activations inside the layers.

        Raises:
            UserError: the corpus has fewer readable clips than a batch, or the weights are not
                those of the encoder's backbone.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        section = self.section = EncoderConfig.model_validate(encoder)
        torch.manual_seed(seed)
        self.seed, self.accumulate = seed, accumulate
        self.clips_per_batch = section.videos_per_batch * section.crops_per_video
        self.probe_every = section.probe_every
        self.root = (folder / manifest.corpus_root).resolve()
        self.clips = read_corpus(folder)
        if len(self.clips) < section.videos_per_batch:
            raise UserError(
                f"encoder.videos_per_batch: {section.videos_per_batch} is more than the "
                f"{len(self.clips)} clips of the corpus; lower it or add clips",
                setting="encoder.videos_per_batch",
            )
        self.broken: dict[int, str] = {}
        self.augment = RECIPES[section.augmentation]
        self.decoder = GuardedDecoder(
            num_frames=section.crops_per_video * section.num_frames,
            height=manifest.height,
            width=manifest.width,
            time_limit_s=DECODE_LIMIT_S,
            # With fewer frames than crops, crops would be the same; a crop needs its own length.
            least_frames=max(section.crops_per_video, section.num_frames),
        )
        self.backbone_network = dict(backbone_network)
        self.frame_size = (manifest.height, manifest.width)
        phi, self.load_report = build_encoder(
            section,
            backbone_network,
            self.frame_size,
            backbone=Path(backbone) if backbone else None,
            checkpointing=checkpointing,
        )
        self.module = EncoderTraining(
            phi,
            loss=section.loss,
            temperature=section.temperature,
            queue_length=section.queue_length,
            head=None if section.head == "none" else ProjectionHead(phi.dim),
            positives=section.positives,
            positive_cosine=section.positive_cosine,
        )
        self._probe = NeighbourProbe(folder, seed=seed) if section.probe_every else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes batches; it needs neither the probe nor the frames that it has read."""
        return self.__dict__ | {"_probe": None}

    def start(self) -> None:
        """Fit the whitening, of an adapter that has one."""
        if not self.section.adapter.startswith("whitened"):
            return
        matrix = self._fit_whitening(self.module.encoder)
        encoders: tuple[Any, ...] = (self.module.encoder, self.module.momentum_encoder)
        for encoder in encoders:
            encoder.set_whitening(matrix)

    @torch.no_grad()
    def _fit_whitening(self, encoder: Any) -> Tensor:
        """The map after which what changes between two shots of a clip counts less.

        Of each clip the two crops that are farthest apart count, as they most likely are of two
        shots; crops of one shot differ little and so weigh little.
        """
        order = np.random.default_rng([self.seed, 29]).permutation(len(self.clips))
        order = order[:WHITENING_CLIPS]
        training, differences = encoder.training, []
        device = next(encoder.parameters()).device
        encoder.eval()
        for number in order:
            try:
                frames = torch.from_numpy(self._frames(int(number)))
            except VideoError as error:
                self.broken[int(number)] = error.reason
                continue
            vectors = encoder(frames.to(device)).float().cpu()
            first, second = divmod(int((vectors @ vectors.T).argmin()), len(vectors))
            differences.append(vectors[first] - vectors[second])
        encoder.train(training)
        if not differences:
            reason = next(iter(self.broken.values()))
            raise UserError(
                f"encoder.adapter: none of {len(order)} clips of the corpus can be used "
                f"({reason}); a whitening is fitted on them",
                setting="encoder.adapter",
            )
        return fit_whitening(torch.stack(differences), WHITENING_SHRINKAGE)

    def probe(self) -> dict[str, float]:
        """Precision among nearest neighbours of unseen-class videos; nothing without labels."""
        if self._probe is None:
            return {}
        return self._probe(self.module.encoder)

    def describe(self, batch: dict[str, Tensor]) -> str:
        """The clips of a batch, by their ids."""
        ids = [self.clips[int(video)]["clip_id"] for video in batch["videos"]]
        return f"clips {', '.join(ids)}"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything of Φ and its head that is not frozen."""
        both = [*self.module.encoder.parameters(), *self.module.head.parameters()]
        params = [p for p in both if p.requires_grad]
        return [{"name": "encoder", "params": params, "lr": self.section.optimiser.learning_rate}]

    def _frames(self, number: int) -> np.ndarray:
        """Temporal crops of one clip, uint8 (crops, T, H, W, 3), from a single decode.

        The clip is sampled evenly and cut into as many parts as there are crops, so that crops
        of a clip with several shots fall into different shots.
        """
        row = self.clips[number]
        clip = Clip(str(self.root / row["uri"]), row["start_s"], row["end_s"])
        frames = self.decoder.decode(clip)
        crops = self.section.crops_per_video
        return frames.reshape(crops, self.section.num_frames, *frames.shape[1:])

    def _crops(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """The same, augmented."""
        return np.stack([self.augment(part, rng) for part in self._frames(number)])

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """This rank's share of the step's videos.

        A clip that cannot be decoded is replaced by the next one of the step's order; the
        embedding stage reports it with its reason.
        """
        rng = np.random.default_rng([self.seed, 17, step])
        order = rng.permutation(len(self.clips))[rank::world_size]
        wanted = self.section.videos_per_batch // world_size
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
            except VideoError as error:
                self.broken[int(clip)] = error.reason
                continue
            chosen.append(int(clip))
        if len(crops) < wanted:
            asked = self.section.videos_per_batch
            some = next(iter(self.broken.items()), None)
            why = f"; {self.clips[some[0]]['clip_id']}: {some[1]}" if some else ""
            raise UserError(
                f"encoder.videos_per_batch: {asked} is more than the clips of the "
                f"corpus that can be used ({len(crops)} of {len(order)} on this rank{why}); lower "
                "it or add clips",
                setting="encoder.videos_per_batch",
            )
        return {"frames": torch.from_numpy(np.stack(crops)), "videos": torch.tensor(chosen)}

    def parts(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Parts of as many videos; each knows the keys of its own part and of the queue.

        The outputs of a part are its share of the whole. The loss is not quite that of the whole
        batch, as fewer keys meet.
        """
        if self.accumulate == 1:
            return [batch]
        split = [value.chunk(self.accumulate) for value in batch.values()]
        share = 1 / self.accumulate
        return [
            {**dict(zip(batch, part, strict=True)), "share": share}
            for part in zip(*split, strict=True)
        ]

    def after_step(self, step: int) -> None:
        """Move Φ̃ and the queue; the momentum rises to 1 on a cosine."""
        steps = self.section.optimiser.steps
        momentum = 1 - (1 - self.section.momentum) * schedule(step, steps, 0)
        self.module.after_step(momentum)

    def export(self, folder: Path) -> None:
        """See `save_encoder`."""
        save_encoder(
            folder, self.module.encoder, self.section, self.backbone_network, self.frame_size
        )
