"""A score of the network while it is trained: episodes of the validation classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from selfshot.benchmarks.manifest import load_benchmark, query_key
from selfshot.errors import UserError
from selfshot.evaluation.episodes import episode_truth, predict_rows, row_name
from selfshot.evaluation.video_ap import episode_scores


class Validation:
    """AP of a few queries of the validation classes, with labelled supports."""

    def __init__(
        self, benchmark: str, queries: int = 24, shots: int = 1, support_frames: int | None = None
    ) -> None:
        """Choose the queries: the same ones each time, evenly over the classes.

        Args:
            benchmark: its folder.
            queries: how many, at most.
            shots: supports of each; the first ones that the benchmark fixed for it.
            support_frames: frames of a support; none: as many as the benchmark's clips have.

        Raises:
            UserError: the benchmark has no query of a validation class.
        """
        folder = Path(benchmark)
        manifest = load_benchmark(folder)
        self.fold = manifest.folds("val", 1, queries)[0]
        if not self.fold:
            raise UserError(
                "vis.validate_every: the benchmark has no queries of validation classes; set it "
                "to 0, or give the benchmark validation classes",
                setting="vis.validate_every",
            )
        self.reader = manifest.reader(folder)
        self.support_reader = manifest.support_reader(folder, self.reader, support_frames)
        self.truth = episode_truth(self.reader.annotations, self.fold)
        self.shots = shots
        self.chosen = {
            query_key(video, name): {
                "oracle": list(manifest.pairs["val"][query_key(video, name)][:shots])
            }
            for video, name in self.fold
        }

    @torch.inference_mode()
    def __call__(self, module: Any) -> dict[str, float]:
        """Scores in percent of `module.model`, which is in evaluation mode."""
        model = module.model
        kind = "oracle" if model.reads_supports else "none"
        row = {"supports": kind, "shots": self.shots if model.reads_supports else 0, "extra": 0}
        predictions = predict_rows(
            {"vis": model}, self.fold, [row], self.chosen, self.reader, self.support_reader
        )
        scores = episode_scores(self.truth, predictions[row_name(row)])
        return {f"val_{name}": 100 * max(0.0, scores[name]) for name in ("AP50", "AP")}
