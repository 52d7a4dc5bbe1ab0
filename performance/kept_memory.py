"""What a training step of the paper's model keeps for its backward pass, by shapes alone.

Nothing is computed: the model of experiments/paper_model.yaml runs on tensors without contents, and
each tensor that autograd saves is counted once, by its bytes. Beside it stand weights, gradients
and AdamW's two moments in float32. What the backward pass needs on top of that for a moment (the
activations of one checkpointed piece, the gradients under way) is printed as the largest piece.

    python performance/kept_memory.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from selfshot.config.load import load_experiment
from selfshot.models import checkpointing, precision
from selfshot.models.backbones import backbone_settings, build_backbone
from selfshot.models.vis import SelfShotVIS

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "paper_model.yaml"


class Kept:
    """Counts the storages of what autograd saves, each once; weights are not counted."""

    def __init__(self, weights: set[int]) -> None:
        self.known, self.bytes = set(weights), 0
        self.alive: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        """Called for each saved tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.alive.append(tensor)
        return tensor


def kept_bytes(shots: int, saving: bool, half: bool) -> tuple[int, int, int]:
    """Bytes kept by a forward pass, of the largest checkpointed piece, and of all weights."""
    experiment = load_experiment(EXPERIMENT)
    clip = experiment.benchmark
    # A corpus alone has no clips; this is none.
    num_frames, height, width = (getattr(clip, x) for x in ("num_frames", "height", "width"))
    support_frames = experiment.vis.support_frames
    settings = backbone_settings(experiment.backbone)
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone = build_backbone(**settings)
        backbone.freeze_norms = True
        model = SelfShotVIS(
            backbone, experiment.vis, clip_frames=num_frames, checkpointing=saving
        ).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        weights |= {b.untyped_storage()._cdata for b in model.buffers()}
        query = torch.zeros(1, num_frames, height, width, 3, dtype=torch.uint8)
        supports = torch.zeros(1, shots, support_frames, height, width, 3, dtype=torch.uint8)
        largest = 0
        plain_call = checkpointing.checkpoint

        def measured(module: Any, *arguments: Any, **settings: Any) -> Any:
            nonlocal largest
            inner = Kept(weights)
            with torch.autograd.graph.saved_tensors_hooks(inner.pack, lambda x: x):
                module(*arguments)
            largest = max(largest, inner.bytes)
            return plain_call(module, *arguments, **settings)

        checkpointing.checkpoint = measured
        # Not what this machine's processor would do: as on a GPU, the number format is told.
        precision.has_bfloat16 = lambda: half
        kept = Kept(weights)
        try:
            with (
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
                torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x),
            ):
                outputs = model(query, supports)
        finally:
            checkpointing.checkpoint = plain_call
        assert outputs["mask_logits"].requires_grad
    return kept.bytes, largest, sum(p.numel() for p in model.parameters())


def main() -> None:
    """Print a line for each number of supports, number format and way of keeping."""
    for half in (False, True):
        for shots in (1, 5):
            for saving in (False, True):
                kept, largest, weights = kept_bytes(shots, saving, half)
                fixed = 16 * weights  # weight, gradient and two moments of four bytes
                print(
                    f"{'bfloat16' if half else 'float32 '} {shots} supports, "
                    f"{'checkpointing' if saving else 'all kept     '}: "
                    f"{kept / 1e9:5.2f} GB kept, {largest / 1e9:5.2f} GB in the largest piece, "
                    f"{fixed / 1e9:.2f} GB of weights, gradients and moments: "
                    f"{(kept + largest + fixed) / 1e9:5.2f} GB"
                )


if __name__ == "__main__":
    main()
