"""Pretraining of the backbone on the seen classes: mask-pooled classes and foreground."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.config.backbone import BackboneConfig
from selfshot.models.backbone import Backbone
from selfshot.models.backbones import open_backbone
from selfshot.models.foreign_weights import WeightsReport
from selfshot.models.weights import save_weights

TEMPERATURE = 0.1
"""Of the softmax over the classes' prototypes."""

MIN_TOKEN_COVER = 0.5
"""A token lies inside an object that covers more than this share of it."""

MIN_CELL_COVER = 0.05
"""A track counts in a frame when it covers at least this many cells' worth of tokens."""


class BackbonePretraining(nn.Module):
    """The backbone with its two pretraining heads and their loss.

    Every object of a frame is pooled under its mask to one vector, which a normalised softmax
    classifies: its cosine with the learned prototype of its seen class, over the temperature,
    against all other prototypes. So is every token that lies inside an object: a token that
    describes its own object, and not its neighbours, is what the fuser and the windows of
    retrieval compare. A linear head learns how much of a token is object, of any
    class; it is kept, as retrieval needs to know where the objects are.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.foreground = nn.Linear(backbone.dim, 1)
        self.prototypes = nn.Parameter(torch.randn(num_classes, backbone.dim))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            batch: `frames` uint8 (B, H, W, 3), `masks` (R, h, w) of all objects, `frame_of`
                (R,) and `classes` (R,) from 0; `unseen` bool (B, h, w), tokens that show
                objects of unseen classes.
        """
        tokens, _ = self.backbone(self.backbone.normalise(batch["frames"]))
        masks, frame_of = batch["masks"], batch["frame_of"]
        weights = masks / masks.sum((1, 2), keepdim=True).clamp_min(1e-6)
        pooled = torch.einsum("rdhw,rhw->rd", tokens[frame_of], weights)
        prototypes = functional.normalize(self.prototypes, dim=-1)
        cosines = functional.normalize(pooled, dim=-1) @ prototypes.T
        # Sums over at least one: not the mean of an empty set where nothing is visible.
        objects = functional.cross_entropy(
            cosines / TEMPERATURE, batch["classes"], reduction="sum"
        ) / max(1, len(cosines))
        accuracy = (cosines.argmax(-1) == batch["classes"]).float().sum() / max(1, len(cosines))

        grid = tokens.permute(0, 2, 3, 1)
        region, row, column = (masks > MIN_TOKEN_COVER).nonzero(as_tuple=True)
        inside = functional.normalize(grid[frame_of[region], row, column], dim=-1)
        single = functional.cross_entropy(
            inside @ prototypes.T / TEMPERATURE, batch["classes"][region], reduction="sum"
        ) / max(1, len(region))

        cover = torch.zeros_like(tokens[:, 0]).index_add_(0, frame_of, masks).clamp(max=1)
        bce = functional.binary_cross_entropy_with_logits(
            self.foreground(grid)[..., 0], cover, reduction="none"
        )
        foreground = bce[~batch["unseen"]].mean()
        return {
            "loss": objects + single + foreground,
            "objects": objects.detach(),
            "tokens": single.detach(),
            "foreground": foreground.detach(),
            "accuracy": accuracy,
        }


class BackboneTask:
    """Batches of frames of seen classes for `BackbonePretraining`."""

    def __init__(self, *, benchmark: str, seed: int, backbone: Mapping[str, Any]) -> None:
        """Build it.

        Args:
            benchmark: benchmark folder.
            seed: of weights and batches.
            backbone: `BackboneConfig` as JSON values. A batch has two videos of each of
                `classes_per_batch` seen classes, one frame a video.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        section = BackboneConfig.model_validate(backbone)
        torch.manual_seed(seed)
        self.seed, self.classes_per_batch = seed, section.classes_per_batch
        self.learning_rate = section.optimiser.learning_rate
        self.network_learning_rate = section.network_learning_rate or self.learning_rate
        reader = manifest.training_reader(folder)
        annotations = reader.annotations
        seen = set(manifest.classes["train"])
        self.labels = {
            category: label
            for label, category in enumerate(
                sorted(i for i, name in annotations.categories.items() if name in seen)
            )
        }
        network, self.weights_report = open_backbone(section)
        self.settings = network.settings
        self.token_stride = network.token_stride
        self.module = BackbonePretraining(network, len(self.labels))
        self.reader = reader
        self.videos: dict[str, list[int]] = {
            name: list(videos) for name, videos in manifest.supports["train"].items()
        }
        there = {name: set(videos) for name, videos in self.videos.items()}
        for video, name in manifest.queries["train"]:
            if video not in there.setdefault(name, set()):
                there[name].add(video)
                self.videos.setdefault(name, []).append(video)

    def useful_frames(self, video: int) -> list[int]:
        """Frames in which an object of a seen class can be seen, or all where there is none."""
        shown = [
            index
            for index in range(self.reader.annotations.videos[video].length)
            if any(
                track.segmentations[index] is not None
                for track in self.reader.annotations.tracks_of(video)
                if track.category_id in self.labels
            )
        ]
        return shown or list(range(self.reader.annotations.videos[video].length))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group; or two, where the network has a learning rate of its own."""
        self.module.train()
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if self.network_learning_rate == self.learning_rate:
            return [{"name": "all", "params": trained, "lr": self.learning_rate}]
        network = self.module.backbone.get_submodule("network")
        inside = set(map(id, network.parameters()))
        return [
            {
                "name": name,
                "params": [p for p in trained if (id(p) in inside) == own],
                "lr": rate,
            }
            for name, own, rate in (
                ("network", True, self.network_learning_rate),
                ("heads", False, self.learning_rate),
            )
        ]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """This rank's share of frames of `classes_per_batch` classes, two videos of each.

        The frames of all ranks together are the same for any number of ranks.
        """
        draws = np.random.default_rng([self.seed, 11, step])
        names = sorted(self.videos)
        count = min(self.classes_per_batch, len(names))
        drawn = [
            int(video)
            for name in draws.choice(names, count, replace=False)
            for video in draws.choice(self.videos[name], 2, replace=len(self.videos[name]) < 2)
        ]
        mine = range(rank, len(drawn), world_size)
        chosen = [drawn[i] for i in mine]
        frames: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        frame_of: list[int] = []
        classes: list[int] = []
        stride = self.token_stride
        grid = (-(-self.reader.height // stride), -(-self.reader.width // stride))
        unseen = np.zeros((len(chosen), *grid), bool)
        for i, video in enumerate(chosen):
            rng = np.random.default_rng([self.seed, 37, step, mine[i]])
            choices = self.useful_frames(video)
            index = choices[int(rng.integers(len(choices)))]
            picture, tracks = self.reader.drawn_frame(video, index, self.token_stride, rng)
            frames.append(picture)
            for mask, category in zip(tracks.masks[:, 0], tracks.classes, strict=True):
                # No object of an unseen class may teach, neither as a class nor as background.
                if int(category) not in self.labels:
                    unseen[i] |= mask > 0
                elif mask.sum() > MIN_CELL_COVER:
                    masks.append(mask)
                    frame_of.append(i)
                    classes.append(self.labels[int(category)])
        return {
            "frames": torch.from_numpy(np.stack(frames)),
            "masks": torch.from_numpy(
                np.stack(masks) if masks else np.zeros((0, *grid), np.float32)
            ),
            "frame_of": torch.tensor(frame_of, dtype=torch.int64),
            "classes": torch.tensor(classes, dtype=torch.int64),
            "unseen": torch.from_numpy(unseen),
        }

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def export(self, folder: Path) -> None:
        """Write `backbone.safetensors` and `backbone.json`."""
        state = self.module.state_dict()
        del state["prototypes"]
        save_weights(folder, "backbone", state, self.settings)


def export_untrained(folder: Path, kwargs: dict[str, Any]) -> WeightsReport | None:
    """Write a backbone as it is before any training; returns what its weights file gave."""
    task = BackboneTask(**kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    task.module.eval()
    task.export(folder)
    return task.weights_report
