"""Running the VIS transformer over a fold of test episodes, once for each kind of support."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfshot.benchmarks.manifest import load_benchmark, query_key
from selfshot.config.supports import BASELINES, chosen_as, reads_supports
from selfshot.data.clips import ClipReader
from selfshot.data.supports import Support, SupportReader
from selfshot.data.ytvis import Annotations, Prediction, save_results
from selfshot.evaluation.baselines import Baselines, open_baselines
from selfshot.evaluation.confidence import support_confidence
from selfshot.evaluation.video_ap import episode_scores
from selfshot.files import digest_bytes, write_atomically
from selfshot.models.baselines.sam2 import FoundTrack
from selfshot.models.features import ClipFeatures, groups_of, stack_supports
from selfshot.models.vis import masks_at
from selfshot.models.vis_model import VisModel
from selfshot.models.weights import load_vis
from selfshot.ops.masks import encode_rle
from selfshot.ops.motion import moving_objects
from selfshot.store.local import MANIFEST, Store, canonical_json, stage_key

QUERIES_AT_ONCE = 4
SURE = 9.0
"""Logit of what has no probability, such as a pixel that moves."""


def row_name(row: dict[str, Any]) -> str:
    """Name of a row of the table, as used for its files."""
    return f"{row['supports']}_{row['shots']}+{row['extra']}"


@torch.inference_mode()
def evaluate_fold(config: dict[str, Any]) -> dict[str, Any]:
    """Predict and score one fold of test queries for every row of the table.

    Args:
        config: `benchmark` folder, `models` {"vis": folder, "no_fuser": folder}, `rows` of
            {supports, shots, extra}, `supports` file (query → kind → supports), `fold` and
            `folds`, `split`, `max_queries`, `predictions` folder for the result files,
            `support_frames` of a support if it is not as long as the benchmark's clips,
            `confidence`, see `predict_rows`, `device` of the models, `baselines`, see
            `open_baselines`, with the `keys` of their networks by row, and `kept`, the root of a
            `store` and the `keys` of networks and benchmark, if rows are to be kept.

    Returns:
        `rows`: for each row its name and scores in percent (AP, AP50, … and `pooled`);
        `queries`: how many episodes were scored.
    """
    folder = Path(config["benchmark"])
    benchmark = load_benchmark(folder)
    reader = benchmark.reader(folder)
    annotations = reader.annotations
    support_reader = benchmark.support_reader(folder, reader, config.get("support_frames"))
    chosen = json.loads(Path(config["supports"]).read_text())
    fold = benchmark.folds(config["split"], config["folds"], config["max_queries"])[config["fold"]]
    target = Path(config["predictions"])
    target.mkdir(parents=True, exist_ok=True)
    files = {row_name(row): target / f"{row_name(row)}.fold{config['fold']}.json"
             for row in config["rows"]}  # fmt: skip
    kept = {row_name(row): _KeptRow(config, row, fold, chosen) for row in config["rows"]}
    scores = {name: kept[name].find(file) for name, file in files.items()}
    left = [row for row in config["rows"] if scores[row_name(row)] is None]
    if left:
        device = config.get("device", "cpu")
        models = {name: load_vis(Path(path)).to(device) for name, path in config["models"].items()}
        kinds = {row["supports"] for row in left}
        baselines = open_baselines(
            config.get("baselines") or {}, kinds, support_reader, device
        )
        predictions = predict_rows(
            models, fold, left, chosen, reader, support_reader, config.get("confidence", 0.0),
            baselines,
        )  # fmt: skip
        truth = episode_truth(annotations, fold)
        for name, found in predictions.items():
            save_results(files[name], found)
            made = scores[name] = _percent(episode_scores(truth, found))
            kept[name].keep(made, files[name])
    results = [
        row | {"name": row_name(row)} | (scores[row_name(row)] or {}) for row in config["rows"]
    ]
    return {"rows": results, "queries": len(fold), "fold": config["fold"]}


class _KeptRow:
    """A row of a fold in the store: scores and result file, found by whatever experiment.

    It depends on the networks, the fold's queries and its own supports, and on nothing else. The
    trials of a study that changes the corpus need the same labelled supports again and again.
    """

    STAGE = "evaluated_rows"
    FILE = "predictions.json"

    def __init__(
        self,
        config: dict[str, Any],
        row: dict[str, Any],
        fold: list[tuple],
        chosen: dict[str, Any],
    ) -> None:
        """Nothing is looked for yet; arguments as `evaluate_fold` has them."""
        used: list[Any] = []
        power = config.get("confidence", 0.0)
        if reads_supports(row):
            for video, name in fold:
                trust = support_confidence(chosen, video, name, row) ** power if power else 1.0
                used.append([query_key(video, name), _supports(chosen, video, name, row), trust])
        facts = ("fold", "folds", "split", "max_queries", "support_frames")
        self.settings = {name: config.get(name) for name in facts} | {
            "row": dict(row),
            "supports": digest_bytes(canonical_json(used).encode()),
        }
        if row["supports"] in BASELINES:
            self.settings["baseline"] = config["baselines"]["keys"][row["supports"]]
        kept = config.get("kept")
        self.store = kept and Store(Path(kept["store"]))
        self.inputs: dict[str, Any] = kept["keys"] if kept else {}

    def find(self, predictions: Path) -> dict[str, Any] | None:
        """The scores, if the row was kept; its result file is then copied to `predictions`."""
        key = stage_key(self.STAGE, 1, self.settings, self.inputs)
        found = self.store and self.store.find(self.STAGE, key)
        if not found:
            return None
        write_atomically(predictions, (found / self.FILE).read_bytes())
        scores: dict[str, Any] = json.loads((found / MANIFEST).read_text())["metrics"]
        return scores

    def keep(self, scores: Mapping[str, Any], predictions: Path) -> None:
        """Keep the row, which was just predicted."""
        if self.store:
            with self.store.stage(self.STAGE, 1, self.settings, self.inputs) as folder:
                if not folder.done:
                    write_atomically(folder.path / self.FILE, predictions.read_bytes())
                    folder.finish(scores)


def predict_rows(
    models: Mapping[str, VisModel],
    fold: list[tuple],
    rows: list[dict[str, Any]],
    chosen: dict[str, Any],
    reader: ClipReader,
    support_reader: SupportReader,
    confidence: float = 0.0,
    baselines: Baselines | None = None,
) -> dict[str, list[Prediction]]:
    """Predictions of each row of the table, by its name.

    Args:
        models: `vis`, and `no_fuser` where a row needs it; in evaluation mode, on any device.
        fold: the queries, each a video and the name of a class.
        rows: of {supports, shots, extra}.
        chosen: query → kind → supports.
        reader: of the queries.
        support_reader: of their supports.
        confidence: power of `support_confidence` that a track's score is times.
        baselines: that fill the rows `BASELINES`, where there are some.
    """
    annotations = reader.annotations
    category_ids = {name: i for i, name in annotations.categories.items()}
    predictions: dict[str, list[Prediction]] = {row_name(row): [] for row in rows}
    for episodes in _of_one_length(fold, reader):
        query_frames = torch.from_numpy(np.stack([_clip(reader, video) for video, _ in episodes]))
        encoded_supports = _encode_supports(models["vis"], support_reader, chosen, episodes, rows)
        encoded = {
            name: model.encode(query_frames, is_support=False) for name, model in models.items()
        }
        proposals: list[list[FoundTrack]] = []
        if any(row["supports"] == "proposals_similarity" for row in rows):
            assert baselines is not None
            proposer = baselines.proposer
            if proposer is None:
                alone = models["no_fuser"].predict(encoded["no_fuser"], None)
                proposals = _clip_tracks(alone, reader, episodes)
            else:
                sizes = [_size(annotations, video) for video, _ in episodes]
                proposals = list(map(proposer.proposals, query_frames.numpy(), sizes))
        for row in rows:
            if row["supports"] == "zero_shot_motion":
                moving = _moving(query_frames.numpy(), models["vis"].num_instances)
                predictions[row_name(row)] += _tracks(moving, reader, episodes, category_ids)
                continue
            trust = [
                support_confidence(chosen, video, name, row) ** confidence if confidence else 1.0
                for video, name in episodes
            ]
            if row["supports"] in BASELINES:
                assert baselines is not None
                found = []
                for place, (video, name) in enumerate(episodes):
                    clip, some = query_frames[place].numpy(), _supports(chosen, video, name, row)
                    if row["supports"] == "prompted":
                        size = _size(annotations, video)
                        tracks = baselines.sought(clip, some, category_ids[name], size)
                    else:
                        tracks = baselines.ranked(clip, proposals[place], some)
                    found.append([FoundTrack(trust[place] * t.score, t.rles) for t in tracks])
                predictions[row_name(row)] += _predictions(found, reader, episodes, category_ids)
                continue
            model = models["no_fuser" if row["supports"] == "no_fuser" else "vis"]
            query = encoded["no_fuser" if row["supports"] == "no_fuser" else "vis"]
            supports = None
            if reads_supports(row):
                keys = [_keys(chosen, video, name, row) for video, name in episodes]
                supports = stack_supports([[encoded_supports[k] for k in ks] for ks in keys])
            outputs = model.predict(query, supports)
            predictions[row_name(row)] += _tracks(outputs, reader, episodes, category_ids, trust)
    return predictions


def _moving(clips: np.ndarray, most: int) -> dict[str, Tensor]:
    """What moves in each clip, as if a model had said it; without any supports or weights."""
    batch, time, height, width = clips.shape[:4]
    masks = np.full((batch, most, time, height, width), -SURE, np.float32)
    scores = np.zeros((batch, most), np.float32)
    for b, clip in enumerate(clips):
        found = moving_objects(clip, most)
        masks[b, : len(found.masks)][found.masks] = SURE
        scores[b, : len(found.scores)] = found.scores
    logits = torch.from_numpy(scores).clamp(1e-6, 1 - 1e-6).logit()
    foreground = torch.stack([logits, torch.zeros_like(logits)], -1)
    return {
        "foreground_logits": foreground[:, :, None].expand(-1, -1, time, -1),
        "mask_logits": torch.from_numpy(masks),
    }


def _of_one_length(fold: list[tuple], reader: ClipReader) -> Iterator[list[tuple]]:
    """The episodes, some at a time, in such order that those together are equally long."""
    lengths = [int(reader.valid_frames(video).sum()) for video, _ in fold]
    for places in groups_of(lengths).values():
        for start in range(0, len(places), QUERIES_AT_ONCE):
            yield [fold[place] for place in places[start : start + QUERIES_AT_ONCE]]


def _clip(reader: ClipReader, video: int) -> np.ndarray:
    """A video's clip without padding: neither the model nor the score may see it."""
    return reader.frames(video)[reader.valid_frames(video)]


def _supports(chosen: dict[str, Any], video: int, name: str, row: dict[str, Any]) -> list[Support]:
    """A row's supports, for the query of a class in a video."""
    supports: list[Support] = chosen[query_key(video, name)][chosen_as(row)]
    return supports[: row["shots"] + row["extra"]]


def _keys(chosen: dict[str, Any], video: int, name: str, row: dict[str, Any]) -> list[str]:
    """Keys of a row's supports in the token cache: what each support is, in JSON."""
    return [json.dumps(support) for support in _supports(chosen, video, name, row)]


def _encode_supports(
    model: VisModel,
    support_reader: SupportReader,
    chosen: dict[str, Any],
    episodes: list[tuple],
    rows: list[dict[str, Any]],
) -> dict[str, ClipFeatures]:
    """Features of every support that any row of these episodes needs, each a batch of one.

    Each is encoded once, however many rows and queries it supports.
    """
    needed = {
        key
        for video, name in episodes
        for row in rows
        if reads_supports(row) and row["supports"] not in BASELINES
        for key in _keys(chosen, video, name, row)
    }
    found: dict[str, ClipFeatures] = {}
    ordered = sorted(needed)
    for start in range(0, len(ordered), 2 * QUERIES_AT_ONCE):
        keys = ordered[start : start + 2 * QUERIES_AT_ONCE]
        frames = [support_reader.clip(json.loads(key)) for key in keys]
        for places in groups_of([len(clip) for clip in frames]).values():
            together = torch.from_numpy(np.stack([frames[i] for i in places]))
            clips = model.encode(together, is_support=True).clips()
            found |= dict(zip([keys[i] for i in places], clips, strict=True))
    return found


def track_scores(
    foreground_logits: Float[Tensor, "batch num_instances time 2"],
    mask_logits: Float[Tensor, "batch num_instances time height width"],
    valid_frames: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch num_instances"]:
    """How sure the model is of a track: mean foreground probability × mean mask probability.

    The first is the mean over the track's valid frames, the second that over the pixels inside
    its mask there. A query without an object often keeps a high foreground probability and draws
    a faint mask; with the product it comes after those that draw a clear one. A track without a
    pixel scores 0.
    """
    valid = valid_frames[:, None]
    foreground = foreground_logits.softmax(-1)[..., 0]
    mean_foreground = (foreground * valid).sum(-1) / valid.sum(-1).clamp_min(1)
    probability = mask_logits.sigmoid() * valid[..., None, None]
    inside = probability > 0.5
    mean_inside = (probability * inside).sum((2, 3, 4)) / inside.sum((2, 3, 4)).clamp_min(1)
    return mean_foreground * mean_inside


def _tracks(
    outputs: dict[str, Any],
    reader: ClipReader,
    episodes: list[tuple],
    category_ids: dict[str, int],
    trust: Sequence[float] | None = None,
) -> list[Prediction]:
    """Outputs as result entries at the videos' own size and length, scores times `trust`."""
    found = _clip_tracks(outputs, reader, episodes, trust)
    return _predictions(found, reader, episodes, category_ids)


def _clip_tracks(
    outputs: dict[str, Any],
    reader: ClipReader,
    episodes: list[tuple],
    trust: Sequence[float] | None = None,
) -> list[list[FoundTrack]]:
    """Tracks of each episode's clip, with masks of the video's own size; scores times `trust`."""
    # Equally long, so padding, if there is any, is at the same places.
    length = int(reader.valid_frames(episodes[0][0]).sum())
    foreground = outputs["foreground_logits"][:, :, :length]
    mask_logits = outputs["mask_logits"][:, :, :length]
    every = torch.ones(len(episodes), length, dtype=torch.bool, device=foreground.device)
    scores = track_scores(foreground, mask_logits, every).cpu()
    if trust is not None:
        scores = scores * torch.tensor(trust, dtype=scores.dtype)[:, None]
    found = []
    for b, (video, _) in enumerate(episodes):
        height, width = _size(reader.annotations, video)
        tracks = []
        for score, logits in zip(scores[b].tolist(), mask_logits[b], strict=True):
            # One after another: at the video's own size they are large.
            mask = masks_at(logits, height, width).cpu().numpy()
            tracks.append(FoundTrack(score, [encode_rle(m) if m.any() else None for m in mask]))
        found.append(tracks)
    return found


def _predictions(
    found: Sequence[Sequence[FoundTrack]],
    reader: ClipReader,
    episodes: list[tuple],
    category_ids: dict[str, int],
) -> list[Prediction]:
    """Tracks of each episode's clip as result entries of its video.

    A video that is longer than the clip takes each frame's mask from the nearest sampled one.
    """
    predictions = []
    for tracks, (video_id, name) in zip(found, episodes, strict=True):
        sampled = reader.frame_indices(video_id)[reader.valid_frames(video_id)]
        frames = np.arange(reader.annotations.videos[video_id].length)
        nearest = np.abs(frames[:, None] - sampled[None]).argmin(1)
        predictions += [
            Prediction(
                video_id=video_id,
                category_id=category_ids[name],
                score=track.score,
                segmentations=tuple(track.rles[i] for i in nearest),
            )
            for track in tracks
        ]
    return predictions


def _size(annotations: Annotations, video: int) -> tuple[int, int]:
    """Height and width of a video."""
    return annotations.videos[video].height, annotations.videos[video].width


def episode_truth(annotations: Annotations, fold: list[tuple]) -> Annotations:
    """Ground truth of the episodes: the tracks of the class that query and supports share."""
    category_ids = {name: i for i, name in annotations.categories.items()}
    wanted = {(video, category_ids[name]) for video, name in fold}
    categories = {category for _, category in wanted}
    return Annotations(
        videos={video: annotations.videos[video] for video, _ in fold},
        categories={i: n for i, n in annotations.categories.items() if i in categories},
        tracks=tuple(
            track for track in annotations.tracks if (track.video_id, track.category_id) in wanted
        ),
    )


def _percent(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores in percent; -1 (no ground truth) stays -1."""
    return {
        name: _percent(value) if isinstance(value, dict) else (value if value < 0 else 100 * value)
        for name, value in scores.items()
    }
