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
from selfshot.config.fields import AS_YAML
from selfshot.config.vis import LossWeights, VisConfig
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

    def __init__(self, model: SelfShotVIS, weights: LossWeights) -> None:
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
            self.weights.model_dump(),
            num_tracks=totals.get("tracks"),
            class_weight=totals.get("class_weight"),
        )
        logged = {name: value.detach() for name, value in terms.items() if name not in ("total",)}
        if "common_logits" not in outputs:
            return {"loss": terms["total"], **logged}
        # As in every other term, frames that are padding do not count.
        bce = functional.binary_cross_entropy_with_logits(
            outputs["common_logits"], batch["common"], reduction="none"
        )
        each = bce.mean((2, 3))[valid]
        common = each.sum() / totals["frames"] if totals else each.mean()
        loss = terms["total"] + self.weights.common * common
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
                targets, self.model.num_instances, self.weights.no_object
            ),
            "frames": float(sum(int(target["valid_frames"].sum()) for target in targets)),
        }
        size = len(targets) // parts
        return [
            {name: value[start : start + size] for name, value in batch.items()}
            | {"totals": totals}
            for start in range(0, len(targets), size)
        ]


def training_of(model: VisModel, weights: LossWeights) -> VisTraining | MaskRcnnTraining:
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
        vis: Mapping[str, Any],
        fuser: bool = True,
        accumulate: int = 1,
        checkpointing: bool = False,
    ) -> None:
        """Build it.

        Args:
            benchmark: benchmark folder.
            backbone: folder that `BackboneTask.export` wrote.
            seed: of weights and episodes.
            vis: `VisConfig` as JSON values. Of a class with fewer other videos than
                `train_shots` some come twice as supports; queries of a class without any are
                left out. A network goes on from `initial` with the backbone in it.
            fuser: see `SelfShotVIS`.
            accumulate: parts of a batch that are computed one after another.
            checkpointing: compute activations again instead of keeping them.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        section = self.section = VisConfig.model_validate(vis)
        torch.manual_seed(seed)
        self.seed, self.accumulate = seed, accumulate
        whole = load_backbone(Path(backbone))
        pretrained = whole.backbone
        shape: dict[str, Any] = {"fuser": fuser, "clip_frames": manifest.num_frames}
        self.settings = {
            "backbone": pretrained.settings,
            "vis": section.model_dump(mode="json", context=AS_YAML),
            **shape,
        }
        network = build_vis(pretrained, section, checkpointing=checkpointing, **shape)
        if network.object_head is not None:
            network.object_head.load_state_dict(whole.foreground.state_dict())
        if section.initial is not None:
            start_from(network, section.initial)
        self.module = training_of(network, section.weights)
        self.reads_supports = network.reads_supports
        # Masks are compared at twice the resolution that they are predicted at, after enlarging:
        # the place of an edge between two cells is then learned too.
        self.strides = {
            "token_stride": network.backbone.token_stride,
            "mask_stride": network.mask_stride // 2,
        }
        reader = manifest.training_reader(folder)
        annotations = reader.annotations
        self.category_ids = {name: i for i, name in annotations.categories.items()}
        self.reader = reader
        self.supports = manifest.supports["train"]
        train_shots = section.train_shots
        shots = train_shots if network.reads_supports else 0
        self.queries = list(manifest.queries["train"])
        alone: list[str] = []
        # A photo is a support of itself, in another clip, where its class has no other.
        if manifest.composed is None:
            self.queries, alone = _with_supports(self.queries, self.supports, shots)
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
        rates = {
            "backbone": self.section.backbone_learning_rate,
            "transformer": self.section.optimiser.learning_rate,
        }
        groups = {
            "backbone": list(model.backbone.parameters()),
            "transformer": [p for p in model.parameters() if id(p) not in inside],
        }
        model.train()  # Frozen norms show their parameters then.
        return [
            {
                "name": name,
                "params": [p for p in parameters if p.requires_grad],
                "lr": rates[name],
            }
            for name, parameters in groups.items()
        ]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """This rank's share of the step's episodes, which are the same for any number of ranks."""
        draws = np.random.default_rng([self.seed, 13, step])
        queries, supports, categories = [], [], []
        shots = self.section.train_shots if self.reads_supports else 0
        for _ in range(self.section.episodes_per_batch):
            video, name = self.queries[int(draws.integers(len(self.queries)))]
            pool = [other for other in self.supports[name] if other != video] or [video]
            helpers = draws.choice(pool, shots, replace=len(pool) < shots).tolist() if shots else []
            queries.append(video)
            supports.append(helpers)
            categories.append(self.category_ids[name])
        mine = range(rank, self.section.episodes_per_batch, world_size)
        return episode_batch(
            self.reader,
            [queries[i] for i in mine],
            [supports[i] for i in mine],
            [categories[i] for i in mine],
            [np.random.default_rng([self.seed, 31, step, i]) for i in mine],
            support_frames=self.section.support_frames,
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
