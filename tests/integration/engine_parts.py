"""Small parts that the engine's tests hand to Ray's workers by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8


class MeanColour:
    """An encoder: the mean colour of each quarter of the frames."""

    def __init__(self, seconds_per_batch: float) -> None:
        self.seconds_per_batch = seconds_per_batch

    def embed(
        self, frames: UInt8[np.ndarray, "batch time height width 3"]
    ) -> Float[np.ndarray, "batch 12"]:
        """Twelve numbers a clip."""
        time.sleep(self.seconds_per_batch)
        height, width = frames.shape[2] // 2, frames.shape[3] // 2
        quarters = [
            frames[:, :, y : y + height, x : x + width].mean(axis=(1, 2, 3))
            for y in (0, height)
            for x in (0, width)
        ]
        return (np.concatenate(quarters, axis=1) / 255 + 0.01).astype(np.float32)


class Hanging(MeanColour):
    """Sleeps for ever over a batch of one clip that is whole, while a file is there."""

    def __init__(self, marker: Path, once: bool) -> None:
        super().__init__(0.0)
        self.marker, self.once = marker, once

    def embed(
        self, frames: UInt8[np.ndarray, "batch time height width 3"]
    ) -> Float[np.ndarray, "batch 12"]:
        """Twelve numbers a clip, if at all."""
        # Zeros are what an actor tries its encoder with.
        if len(frames) == 1 and frames.any() and self.marker.exists():
            if self.once:
                self.marker.unlink()
            time.sleep(3600)
        return super().embed(frames)


def mean_colour(encoder_dir: Path) -> MeanColour:
    """Dotted path of the encoder; seconds.txt in its folder slows it."""
    seconds = encoder_dir / "seconds.txt"
    return MeanColour(float(seconds.read_text()) if seconds.exists() else 0.0)


def trial(config: dict[str, Any]) -> dict[str, Any]:
    """Counts its calls in a file and fails when told to."""
    calls = Path(config["folder"]) / f"{config['trial_id']}.calls"
    with calls.open("a") as file:
        file.write("called\n")
    if config.get("fails"):
        raise RuntimeError(f"{config['trial_id']} was told to fail")
    return {"square": config["number"] ** 2}


def deadly(config: dict[str, Any]) -> None:
    """Counts its calls in a file, and kills its process or raises an error."""
    with (Path(config["folder"]) / "calls").open("a") as file:
        file.write("called\n")
    if config["raises"]:
        raise RuntimeError("it was told to fail")
    os.kill(os.getpid(), signal.SIGKILL)


def budgeted_trial(config: dict[str, Any]) -> dict[str, Any]:
    """Scores its number times its budget, and counts its calls."""
    calls = Path(config["folder"]) / "calls"
    with calls.open("a") as file:
        file.write(f"{config['trial_id']}\n")
    return {"score": float(config["number"] * config["budget"])}


def graph_unit(config: dict[str, Any]) -> None:
    """Writes down when it began and ended, and fails when told to."""
    began = time.monotonic()
    time.sleep(0.05)
    if config.get("fails"):
        raise RuntimeError(f"{config['name']} was told to fail")
    (Path(config["folder"]) / config["name"]).write_text(f"{began} {time.monotonic()}")


def trial_of_trials(config: dict[str, Any]) -> dict[str, Any]:
    """A trial that runs trials of its own on the same Ray."""
    from selfshot.distributed.trials import TrialPlan, run_trials

    configs = [
        {"trial_id": f"inner{n}", "number": n, "folder": config["folder"]} for n in range(3)
    ]
    inner = run_trials(
        "engine_parts:trial",
        configs,
        TrialPlan(Path(config["folder"]) / config["trial_id"], "inner", parallel=2),
    )
    return {"sum": sum(result["square"] for result in inner)}


def gpus_of_trial(config: dict[str, Any]) -> dict[str, Any]:
    """The GPUs that Ray gave to a trial."""
    import ray

    return {"gpus": ray.get_runtime_context().get_accelerator_ids()["GPU"]}
