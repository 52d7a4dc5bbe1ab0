"""What a step of the paper's model costs at the paper's size: seconds and peak memory.

    python performance/paper_size.py                    # minutes, and up to 20 GB
    python performance/paper_size.py --scale 4 --rows step
    python performance/paper_size.py --rows step,checkpointing,five

The model is that of experiments/paper_model.yaml, with weights drawn at random and no frame of a
real video: neither changes what a step costs. Every row is a process of its own, so that its peak
is its own. The peak is that of the process, its libraries and weights included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "paper_model.yaml"
ROWS = {
    "step": "forward and backward, one support",
    "checkpointing": "the same with gradient checkpointing",
    "five": "forward, five supports",
}


def peak_gb() -> float:
    """The most memory that this process ever held, in GB of 10^9 bytes."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e9


def measure(row: str, scale: int) -> dict[str, Any]:
    """One row, in this process."""
    import torch

    from selfshot.config.load import load_experiment
    from selfshot.models.backbones import backbone_settings, build_backbone
    from selfshot.models.vis import SelfShotVIS
    from selfshot.training.vis import VisTraining

    experiment = load_experiment(EXPERIMENT)
    torch.manual_seed(0)
    clip = experiment.benchmark
    height, width = clip.height // scale, clip.width // scale
    time_steps, support_time = clip.num_frames // scale, experiment.vis.support_frames // scale
    backbone = build_backbone(**backbone_settings(experiment.backbone))
    backbone.freeze_norms = True
    model = SelfShotVIS(
        backbone,
        experiment.vis,
        clip_frames=clip.num_frames,
        checkpointing=row == "checkpointing",
    )
    module = VisTraining(model, experiment.vis.weights).train()
    shots = 5 if row == "five" else 1
    query = torch.randint(0, 256, (1, time_steps, height, width, 3), dtype=torch.uint8)
    supports = torch.randint(
        0, 256, (1, shots, support_time, height, width, 3), dtype=torch.uint8
    )
    empty, started = peak_gb(), time.perf_counter()
    if row == "five":
        module.eval()
        with torch.inference_mode():
            outputs = model(query, supports)
        halfway = time.perf_counter()
        finite = bool(outputs["mask_logits"].isfinite().all())
    else:
        stride = model.mask_stride // 2
        size = (-(-height // stride), -(-width // stride))
        masks = torch.zeros(2, time_steps, *size)
        masks[0, :, : size[0] // 2], masks[1, :, size[0] // 2 :, : size[1] // 2] = 1, 1
        target = {
            "masks": masks,
            "boxes_cxcywh": torch.tensor([[0.5, 0.25, 1, 0.5], [0.25, 0.75, 0.5, 0.5]])[
                :, None
            ].repeat(1, time_steps, 1),
            "present": torch.ones(2, time_steps, dtype=torch.bool),
            "valid_frames": torch.ones(time_steps, dtype=torch.bool),
        }
        losses = module({"query": query, "supports": supports, "targets": [target]})
        halfway = time.perf_counter()
        losses["loss"].backward()
        gradients = [p.grad for p in module.parameters() if p.requires_grad]
        finite = all(g is not None and bool(g.isfinite().all()) for g in gradients)
    ended = time.perf_counter()
    tokens = -(-height // backbone.token_stride) * -(-width // backbone.token_stride)
    return {
        "row": row,
        "forward_s": round(halfway - started, 1),
        "backward_s": round(ended - halfway, 1),
        "peak_gb": round(peak_gb(), 2),
        "before_gb": round(empty, 2),
        "query_tokens": time_steps * tokens,
        "support_tokens": shots * support_time * tokens,
        "million_weights": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "finite": finite,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Print a line of each row, and what checkpointing changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--scale", type=int, default=1, help="divides frames and their sides")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.scale)))
        return
    found = {}
    for row in chosen.rows.split(","):
        command = [sys.executable, __file__, "--one", row, "--scale", str(chosen.scale)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            print(f"{ROWS[row]}: it ended with {done.returncode}\n{done.stderr[-2000:]}")
            continue
        found[row] = facts = json.loads(done.stdout.splitlines()[-1])
        assert facts["finite"], "an output or a gradient is not finite"
        print(
            f"{ROWS[row]}: forward {facts['forward_s']} s, backward {facts['backward_s']} s, "
            f"peak {facts['peak_gb']} GB ({facts['before_gb']} before it), "
            f"{facts['query_tokens']} query and {facts['support_tokens']} support tokens, "
            f"{facts['million_weights']} million weights, {facts['threads']} threads",
            flush=True,
        )
    if {"step", "checkpointing"} <= found.keys():
        plain, saved = found["step"], found["checkpointing"]
        seconds = [facts["forward_s"] + facts["backward_s"] for facts in (saved, plain)]
        print(
            f"checkpointing: {saved['peak_gb'] / plain['peak_gb']:.2f} times the memory, "
            f"{seconds[0] / seconds[1]:.2f} times as long"
        )


if __name__ == "__main__":
    main()
