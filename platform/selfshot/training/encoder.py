"""Self-supervised training of the video encoder on the unlabelled corpus (section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfshot.benchmarks.manifest import load_benchmark, read_corpus
from selfshot.data.augment import Augmentation
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.video import VideoError
from selfshot.errors import UserError
from selfshot.models.trained_encoder import build_encoder, build_head, packaged_trunk
from selfshot.models.weights import save_weights
from selfshot.ops.whitening import whitening as fit_whitening
from selfshot.training.contrast import EncoderTraining
from selfshot.training.loop import schedule
from selfshot.training.probe import NeighbourProbe

DECODE_LIMIT_S = 20.0
"""A clip that takes longer to decode is left out of training."""


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
        trunk_trained: bool | None = None,
        weights: str | None = None,
        frame_side: int = 0,
        vit_size: str = "small",
        vit_patch: int = 16,
        vit_pooling: str = "class",
        activation_checkpointing: bool = False,
        accumulate: int = 1,
        adapter: str = "none",
        whitening: Mapping[str, Any] | None = None,
        positives: str = "all",
        positive_cosine: float = 1.0,
        augmentation: Mapping[str, float] | None = None,
        head: Mapping[str, Any] | None = None,
        companion: Mapping[str, Any] | None = None,
        peak_window: int = 0,
        probe: Mapping[str, int] | None = None,
    ) -> None:
        """Build it; see `EncoderConfig` for the settings.

        Args:
            benchmark: benchmark folder, of which only the corpus is read.
            backbone: folder of the pretrained backbone, for the trunk of that name.
            backbone_settings: width and dim, for the trunk from scratch.
            seed: of weights and crops.
            steps: of the whole training, over which the momentum rises.
            trunk, dim, layers, heads: of Φ, and so are those from `trunk_trained` to
                `adapter`.
            loss, rank_temperature, rank_form, nce_temperature: Eq. 1 or 2.
            num_frames: frames of a crop.
            videos_per_batch, crops_per_video: of the global batch.
            queue_length: keys kept.
            momentum: of Φ̃ at the start.
            learning_rate: of everything that is trained.
            accumulate: parts of a batch that are computed one after another.
            whitening: `clips` and `shrinkage` of an adapter that `start` fits.
            positives, positive_cosine: see `EncoderTraining`.
            augmentation: see `Augmentation`; none: mirrored or not.
            companion: see `Companion`; it is exported with Φ, and not trained.
            peak_window: see `FrozenEncoder`, which it is exported for.
            head: `kind`, `hidden`, `dim`, `norm`, `retrieve`; none: no head.
            probe: `every`, `queries`, `clips`, `num_frames`; none: no probe.

        Raises:
            UserError: the corpus has fewer readable clips than a batch, or the weights are not
                those of the trunk.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        torch.manual_seed(seed)
        self.seed, self.steps, self.momentum = seed, steps, momentum
        self.num_frames = num_frames
        self.videos_per_batch, self.crops_per_video = videos_per_batch, crops_per_video
        self.learning_rate, self.accumulate = learning_rate, accumulate
        self.root = (folder / manifest.corpus_root).resolve()
        self.clips = read_corpus(folder)
        if len(self.clips) < videos_per_batch:
            raise UserError(
                f"encoder.videos_per_batch: {videos_per_batch} is more than the {len(self.clips)} "
                "clips of the corpus; lower it or add clips",
                setting="encoder.videos_per_batch",
            )
        self.broken: dict[int, str] = {}
        self.augment = Augmentation(**(augmentation or {}))
        self.decoder = GuardedDecoder(
            num_frames=crops_per_video * num_frames,
            height=manifest.height,
            width=manifest.width,
            time_limit_s=DECODE_LIMIT_S,
            # With fewer frames than crops, crops would be the same; a crop needs its own length.
            least_frames=max(crops_per_video, num_frames),
        )
        head = dict(head or {"kind": "none"})
        self.settings: dict[str, Any] = {
            "trunk": trunk,
            "backbone_settings": backbone_settings,
            "dim": dim,
            "layers": layers,
            "heads": heads,
        }
        self.size = (manifest.height, manifest.width)
        # Only what differs from the plain network, so that its export stays what it was.
        more: dict[str, Any] = {
            "trunk_trained": trunk_trained,
            "frame_side": frame_side or None,
            "adapter": None if adapter == "none" else adapter,
        }
        if trunk == "video_vit":
            grid = (num_frames, manifest.height // vit_patch, manifest.width // vit_patch)
            more |= {"vit": {"size": vit_size, "patch": vit_patch, "pooling": vit_pooling,
                             "grid": [max(1, n) for n in grid]}}  # fmt: skip
        if head["kind"] != "none" and head["retrieve"]:
            more["head"] = head
        if companion is not None and companion["trunk"] != "none":
            more["companion"] = dict(companion)
        if peak_window:
            more["peak_window"] = peak_window
        self.settings |= {key: value for key, value in more.items() if value is not None}
        encoder, self.load_report = build_encoder(
            self.settings,
            backbone=Path(backbone) if backbone else None,
            weights=weights,
            checkpointing=activation_checkpointing,
        )
        self._whitening = dict(whitening or {}) if adapter.startswith("whitened") else None
        self.module = EncoderTraining(
            encoder,
            loss=loss,
            rank_temperature=rank_temperature,
            rank_form=rank_form,
            nce_temperature=nce_temperature,
            queue_length=queue_length,
            head=build_head(head, dim),
            positives=positives,
            positive_cosine=positive_cosine,
        )
        probe = dict(probe or {"every": 0})
        self.probe_every = probe.pop("every")
        self.clips_per_batch = videos_per_batch * crops_per_video
        self._probe = NeighbourProbe(folder, seed=seed, **probe) if self.probe_every else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes batches; it needs neither the probe nor the frames that it has read."""
        return self.__dict__ | {"_probe": None}

    def start(self) -> None:
        """Fit the whitening, of an adapter that has one."""
        if self._whitening is None:
            return
        matrix = self._fit_whitening(self.module.encoder, **self._whitening)
        encoders: tuple[Any, ...] = (self.module.encoder, self.module.momentum_encoder)
        for encoder in encoders:
            encoder.set_whitening(matrix)

    @torch.no_grad()
    def _fit_whitening(
        self, encoder: Any, *, clips: int = 1000, shrinkage: float = 1.0
    ) -> Tensor:
        """The map after which what changes between two shots of a clip counts less.

        Of each clip the two crops that are farthest apart count, as they most likely are of two
        shots; crops of one shot differ little and so weigh little.
        """
        order = np.random.default_rng([self.seed, 29]).permutation(len(self.clips))[:clips]
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
        return fit_whitening(torch.stack(differences), shrinkage)

    def probe(self) -> dict[str, float]:
        """Precision among nearest neighbours of unseen-class videos; nothing without labels."""
        if self._probe is None:
            return {}
        head = self.module.head if "head" in self.settings else None
        return self._probe(self.module.encoder, head)

    def describe(self, batch: dict[str, Tensor]) -> str:
        """The clips of a batch, by their ids."""
        ids = [self.clips[int(video)]["clip_id"] for video in batch["videos"]]
        return f"clips {', '.join(ids)}"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything of Φ and its head that is not frozen."""
        both = [*self.module.encoder.parameters(), *self.module.head.parameters()]
        params = [p for p in both if p.requires_grad]
        return [{"name": "encoder", "params": params, "lr": self.learning_rate}]

    def _frames(self, number: int) -> np.ndarray:
        """Temporal crops of one clip, uint8 (crops, T, H, W, 3), from a single decode.

        The clip is sampled evenly and cut into as many parts as there are crops, so that crops
        of a clip with several shots fall into different shots.
        """
        row = self.clips[number]
        clip = Clip(str(self.root / row["uri"]), row["start_s"], row["end_s"])
        frames = self.decoder.decode(clip)
        return frames.reshape(self.crops_per_video, self.num_frames, *frames.shape[1:])

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
            except VideoError as error:
                self.broken[int(clip)] = error.reason
                continue
            chosen.append(int(clip))
        if len(crops) < wanted:
            some = next(iter(self.broken.items()), None)
            why = f"; {self.clips[some[0]]['clip_id']}: {some[1]}" if some else ""
            raise UserError(
                f"encoder.videos_per_batch: {self.videos_per_batch} is more than the clips of the "
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
        momentum = 1 - (1 - self.momentum) * schedule(step, self.steps, 0)
        self.module.after_step(momentum)

    def export(self, folder: Path) -> None:
        """Write `encoder.safetensors` and `encoder.json`; a packaged trunk is not copied."""
        packaged = packaged_trunk(self.settings)
        state = {
            name: value
            for name, value in self.module.encoder.state_dict().items()
            if not (packaged and name.startswith("trunk."))
        }
        if "head" in self.settings:
            head = self.module.head.state_dict()
            state |= {f"head.{name}": value for name, value in head.items()}
        save_weights(folder, "encoder", state, {**self.settings, "size": self.size})
