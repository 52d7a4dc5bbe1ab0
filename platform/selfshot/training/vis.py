"""Training of the VIS transformer, and of the methods beside it, on episodes of seen classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.data.episodes import episode_batch
from selfshot.errors import UserError
from selfshot.models.baselines.siamese_mask_rcnn import SiameseMaskRcnn
from selfshot.models.methods import build_vis
from selfshot.models.vis import SelfShotVIS
from selfshot.models.vis_model import VisModel
from selfshot.models.weights import load_backbone, save_weights, start_from
from selfshot.ops.set_loss import class_weight_of, set_loss
from selfshot.training.mask_rcnn import MaskRcnnTraining

log = logging.getLogger(__name__)


class VisTraining(nn.Module):
    """The model and its loss: Eq. 5 and the auxiliary loss of the common class."""

    def __init__(self, model: SelfShotVIS, weights: dict[str, float]) -> None:
        super().__init__()
        self.model = model
        self.weights = weights

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch of `episode_batch`.

        With `totals` (see `split`) the batch is a part of a larger one, and its losses are shares
        of that one's.
        """
        valid = torch.stack([target["valid_frames"] for target in batch["targets"]])
        lengths = batch.get("support_lengths")
        outputs = self.model(
            batch["query"],
            batch["supports"],
            valid.sum(1).tolist(),
            None if lengths is None else lengths.tolist(),
        )
        size = batch["targets"][0]["masks"].shape[-2:]
        mask_logits = functional.interpolate(
            outputs["mask_logits"].flatten(0, 1), size=size, mode="bilinear", align_corners=False
        ).unflatten(0, outputs["mask_logits"].shape[:2])
        totals = batch.get("totals", {})
        terms = set_loss(
            {**outputs, "mask_logits": mask_logits},
            batch["targets"],
            weight_foreground=self.weights["foreground"],
            weight_l1=self.weights["l1"],
            weight_giou=self.weights["giou"],
            weight_dice=self.weights["dice"],
            weight_focal=self.weights["focal"],
            no_object=self.weights["no_object"],
            num_tracks=totals.get("tracks"),
            class_weight=totals.get("class_weight"),
        )
        logged = {name: value.detach() for name, value in terms.items() if name not in ("total",)}
        if "common_logits" not in outputs:
            return {"loss": terms["total"], **logged}
        # As in every other term, frames that are padding do not count.
        surprise = functional.binary_cross_entropy_with_logits(
            outputs["common_logits"], batch["common"], reduction="none"
        )
        each = surprise.mean((2, 3))[valid]
        common = each.sum() / totals["frames"] if totals else each.mean()
        loss = terms["total"] + self.weights["common"] * common
        return {"loss": loss, "common": common.detach(), **logged}

    def split(self, batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
        """A batch in `parts` of as many episodes, whose losses sum to that of the whole."""
        if parts == 1:
            return [batch]
        targets = batch["targets"]
        assert len(targets) % parts == 0, "parts of as many episodes"
        totals = {
            "tracks": float(max(1, sum(len(target["present"]) for target in targets))),
            "class_weight": class_weight_of(
                targets, self.model.num_instances, self.weights["no_object"]
            ),
            "frames": float(sum(int(target["valid_frames"].sum()) for target in targets)),
        }
        size = len(targets) // parts
        return [
            {name: value[start : start + size] for name, value in batch.items()}
            | {"totals": totals}
            for start in range(0, len(targets), size)
        ]


def training_of(model: VisModel, weights: dict[str, float]) -> VisTraining | MaskRcnnTraining:
    """A method with its loss.

    Args:
        model: of any method.
        weights: of the transformers' losses; torchvision's are summed as they are.
    """
    if isinstance(model, SiameseMaskRcnn):
        return MaskRcnnTraining(model)
    assert isinstance(model, SelfShotVIS)
    return VisTraining(model, weights)


def _with_supports(
    queries: list[tuple[int, str]], supports: Mapping[str, Sequence[int]], shots: int
) -> tuple[list[tuple[int, str]], list[str]]:
    """The queries whose class has a video beside the query, and names of the others."""
    if not shots:
        return queries, []
    helped = [(v, name) for v, name in queries if set(supports.get(name, ())) - {v}]
    alone = [f"video {v} of {name}" for v, name in queries if (v, name) not in set(helped)]
    return helped, alone


class VisTask:
    """Episodes of seen classes for a method of video instance segmentation."""

    def __init__(
        self,
        *,
        benchmark: str,
        backbone: str,
        seed: int,
        model: dict[str, Any],
        weights: dict[str, float],
        episodes_per_batch: int,
        train_shots: int,
        learning_rate: float,
        backbone_learning_rate: float,
        support_frames: int | None = None,
        accumulate: int = 1,
        method: str = "self_shot",
        initial: str | None = None,
    ) -> None:
        """Build it.

        Args:
            benchmark: benchmark folder.
            backbone: folder that `BackboneTask.export` wrote.
            seed: of weights and episodes.
            model: arguments of the method's class but the backbone.
            weights: of the transformers' losses.
            episodes_per_batch: episodes of one global batch.
            train_shots: supports of an episode; of a class with fewer other videos some come
                twice, and queries of a class without any are left out.
            learning_rate: of the transformer.
            backbone_learning_rate: of the backbone.
            support_frames: frames of a support; none: those of a query.
            accumulate: parts of a batch that are computed one after another.
            method: which of `models.methods.METHODS`.
            initial: `vis.safetensors` of an earlier training, from which this one goes on; the
                backbone is of it too.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        torch.manual_seed(seed)
        self.seed, self.train_shots = seed, train_shots
        self.support_frames, self.accumulate = support_frames, accumulate
        self.episodes_per_batch = episodes_per_batch
        self.learning_rates = {"transformer": learning_rate, "backbone": backbone_learning_rate}
        whole = load_backbone(Path(backbone))
        pretrained = whole.backbone
        self.settings = {"backbone": pretrained.settings, "model": model, "method": method}
        network = build_vis(pretrained, method, **model)
        if network.object_head is not None:
            network.object_head.load_state_dict(whole.foreground.state_dict())
        if initial is not None:
            start_from(network, Path(initial))
        self.module = training_of(network, weights)
        self.reads_supports = network.reads_supports
        # Masks are compared at twice the resolution that they are predicted at, after enlarging:
        # the place of an edge between two cells is then learned too.
        self.strides = {
            "token_stride": network.backbone.token_stride,
            "mask_stride": network.mask_stride // 2,
        }
        reader = manifest.reader(folder)
        annotations = reader.annotations
        self.category_ids = {name: i for i, name in annotations.categories.items()}
        self.reader = reader
        self.supports = manifest.supports["train"]
        shots = train_shots if network.reads_supports else 0
        self.queries, alone = _with_supports(list(manifest.queries["train"]), self.supports, shots)
        if not self.queries:
            raise UserError(
                f"vis.train_shots: {train_shots} supports are wanted, and no training class has a "
                f"video beside the query itself ({', '.join(alone[:3])}); add videos of them to "
                "the benchmark",
                setting="vis.train_shots",
            )
        if alone:
            log.warning(
                "%d training queries are left out, as their class has no other video: %s",
                len(alone), ", ".join(alone[:5]),
            )  # fmt: skip

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Transformer and backbone, each at its own learning rate."""
        model = self.module.model
        inside = set(map(id, model.backbone.parameters()))
        groups = {
            "backbone": list(model.backbone.parameters()),
            "transformer": [p for p in model.parameters() if id(p) not in inside],
        }
        model.train()  # Frozen norms tell their parameters then.
        return [
            {
                "name": name,
                "params": [p for p in parameters if p.requires_grad],
                "lr": self.learning_rates[name],
            }
            for name, parameters in groups.items()
        ]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """This rank's share of the step's episodes, which are the same for any number of ranks."""
        draws = np.random.default_rng([self.seed, 13, step])
        queries, supports, categories = [], [], []
        shots = self.train_shots if self.reads_supports else 0
        for _ in range(self.episodes_per_batch):
            video, name = self.queries[int(draws.integers(len(self.queries)))]
            pool = [other for other in self.supports[name] if other != video]
            helpers = draws.choice(pool, shots, replace=len(pool) < shots).tolist() if shots else []
            queries.append(video)
            supports.append(helpers)
            categories.append(self.category_ids[name])
        mine = range(rank, self.episodes_per_batch, world_size)
        return episode_batch(
            self.reader,
            [queries[i] for i in mine],
            [supports[i] for i in mine],
            [categories[i] for i in mine],
            [np.random.default_rng([self.seed, 31, step, i]) for i in mine],
            support_frames=self.support_frames,
            **self.strides,
        )

    def parts(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """What is computed one after another in a step."""
        return self.module.split(batch, self.accumulate)

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def export(self, folder: Path) -> None:
        """Write `vis.safetensors` and `vis.json`."""
        save_weights(folder, "vis", self.module.model.state_dict(), self.settings)
