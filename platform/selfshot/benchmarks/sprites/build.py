"""Build the sprites benchmark: plan every clip, render in parallel units, write one manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from selfshot.benchmarks.finish import finish_benchmark
from selfshot.benchmarks.manifest import Benchmark, write_corpus, write_corpus_labels
from selfshot.benchmarks.sprites.classes import GLYPHS
from selfshot.benchmarks.sprites.scenes import Shot, shot
from selfshot.benchmarks.written import write_clip, write_frames
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.data.ytvis import load_annotations
from selfshot.errors import UserError
from selfshot.files import write_atomically
from selfshot.ops.masks import encode_rle, rle_area, rle_to_box

CLIPS_PER_UNIT = 48
SHOT_FRAMES = 4
"""Frames of each shot in a corpus clip of several shots."""

QUERY_SIDE = (0.32, 0.46)
SUPPORT_SIDE = (0.32, 0.52)
SMALL_SIDE = (0.15, 0.22)
STRAY_SHARE = 0.15
"""Share of a test query's distractors that may be of any class, also one of the corpus."""

Unit = dict[str, Any]
ParallelMap = Callable[[Callable[[Unit], str], list[Unit]], Iterable[str]]


def choose_classes(seed: int, sizes: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """Deal the classes to `train`, `val` and `test` by a seeded shuffle.

    Raises:
        UserError: when more classes are wanted than there are.
    """
    wanted = sum(sizes.values())
    if wanted > len(GLYPHS):
        raise UserError(
            f"benchmark: train_classes + val_classes + test_classes = {wanted} is more than the "
            f"{len(GLYPHS)} classes that sprites has; lower one of them",
            setting="benchmark",
        )
    names = [str(name) for name in np.random.default_rng([seed, 1]).permutation(sorted(GLYPHS))]
    dealt, start = {}, 0
    for split, size in sizes.items():
        dealt[split] = tuple(names[start : start + size])
        start += size
    return dealt


def _objects(
    rng: np.random.Generator, role: str, name: str, pool: list[str], strays: list[str]
) -> list[tuple[str, float]]:
    """Classes and sizes of the objects of one shot."""
    side = QUERY_SIDE if role == "query" else SUPPORT_SIDE
    objects = [(name, rng.uniform(*side)) for _ in range(1 + int(rng.random() < 0.35))]
    if role == "query":
        for _ in range(int(rng.integers(2, 4))):
            source = strays if rng.random() < STRAY_SHARE else pool
            other = [candidate for candidate in source if candidate != name]
            objects.append((str(rng.choice(other)), rng.uniform(*QUERY_SIDE)))
    elif rng.random() < 0.5:
        other = [candidate for candidate in pool if candidate != name]
        objects.append((str(rng.choice(other)), rng.uniform(*SMALL_SIDE)))
    return objects


def _write_annotated(folder: Path, clip: dict[str, Any], made: Shot) -> dict[str, Any]:
    """Write the frames and return the video's and its tracks' entries."""
    names = write_frames(folder, clip["name"], made.frames)
    num_frames, height, width = made.frames.shape[:3]
    tracks = []
    for name, masks in zip(made.classes, made.masks, strict=True):
        if not masks.any():
            continue
        rles = [encode_rle(mask) if mask.any() else None for mask in masks]
        tracks.append(
            {
                "class": name,
                "segmentations": rles,
                "bboxes": [None if rle is None else list(rle_to_box(rle)) for rle in rles],
                "areas": [None if rle is None else int(rle_area(rle)) for rle in rles],
            }
        )
    video = {
        "id": clip["id"],
        "file_names": names,
        "length": num_frames,
        "height": height,
        "width": width,
        "source_id": clip["name"],
    }
    return {"video": video, "tracks": tracks, "split": clip["split"], "role": clip["role"]}


def render_unit(unit: Unit) -> str:
    """Render the clips of one unit; its JSON is written last, so it marks the unit done.

    Args:
        unit: `folder`, `path` of the JSON, `seed`, `height`, `width`, `num_frames`,
            `multi_shot_share`, and the `clips` with id, name, role, split, class and pools.

    Returns:
        The path of the unit's JSON.
    """
    folder, path = Path(unit["folder"]), Path(unit["path"])
    if path.exists():
        return str(path)
    size = {"height": unit["height"], "width": unit["width"]}
    entries = []
    for clip in unit["clips"]:
        rng = np.random.default_rng([unit["seed"], 2, clip["id"]])
        pools = unit["pools"]

        def draw(
            clip: dict[str, Any] = clip,
            rng: np.random.Generator = rng,
            pools: dict[str, list[str]] = pools,
        ) -> list[tuple[str, float]]:
            return _objects(
                rng, clip["role"], clip["class"], pools[clip["split"]], pools[clip["strays"]]
            )

        if clip["role"] != "corpus":
            made = shot(rng, draw(), num_frames=unit["num_frames"], **size)
            entries.append(_write_annotated(folder, clip, made) | {"class": clip["class"]})
            continue
        shots = int(rng.integers(2, 5)) if rng.random() < unit["multi_shot_share"] else 1
        length = SHOT_FRAMES if shots > 1 else unit["num_frames"]
        pieces = [shot(rng, draw(), num_frames=length, **size).frames for _ in range(shots)]
        row = write_clip(folder, clip["name"], np.concatenate(pieces))
        entries.append(row | {"class": clip["class"], "shots": shots})
    write_atomically(path, json.dumps(entries))
    return str(path)


def _plan_clips(
    seed: int,
    classes: dict[str, tuple[str, ...]],
    section: SpritesBenchmark,
    corpus_classes: tuple[str, ...],
) -> list[dict[str, Any]]:
    clips: list[dict[str, Any]] = []
    for split, names in classes.items():
        trains = split == "train"
        counts = {
            "query": section.train_queries if trains else section.eval_queries,
            "support": section.train_supports if trains else section.eval_supports,
        }
        for name in names:
            for role, count in counts.items():
                strays = "train" if trains else "any"
                clips += [
                    {"split": split, "role": role, "class": name, "strays": strays, "n": n}
                    for n in range(count)
                ]
    # Names carry no class: a file name must not be a label.
    order = np.random.default_rng([seed, 3]).permutation(section.corpus_clips)
    for n in range(section.corpus_clips):
        name = corpus_classes[int(order[n]) % len(corpus_classes)]
        clips.append({"split": "corpus", "role": "corpus", "class": name, "strays": "any", "n": n})
    for index, clip in enumerate(clips):
        clip["id"] = index + 1
        if clip["role"] == "corpus":
            clip["name"] = f"clip_{clip['n']:06d}"
        else:
            clip["name"] = f"{clip['split']}_{clip['id']:06d}"
    return clips


def build_sprites(
    folder: Path,
    scratch: Path,
    parallel_map: ParallelMap,
    section: SpritesBenchmark,
    *,
    seed: int,
) -> Benchmark:
    """Render the whole benchmark into `folder`; call again to go on after a kill.

    Queries hold 1 or 2 targets and 2 or 3 distractors of other classes; supports and corpus
    clips hold 1 or 2 objects of one class and at most one small distractor. The distractors
    of unseen queries come mostly from seen classes that are no main class of the corpus, so
    that what query and corpus have in common is well defined.

    Args:
        folder: where the benchmark is written.
        scratch: where finished units are noted.
        parallel_map: runs `render_unit` over the units, in any order.
        section: how large it is.
        seed: of everything.

    Raises:
        UserError: more classes than there are.
    """
    classes = choose_classes(
        seed,
        {"train": section.train_classes, "val": section.val_classes, "test": section.test_classes},
    )
    seen = section.corpus_seen_classes
    in_corpus = classes["train"][:seen] + classes["val"] + classes["test"]
    bystanders = list(classes["train"][seen:]) or list(classes["train"])
    pools = {
        "train": list(classes["train"]),
        "val": bystanders,
        "test": bystanders,
        "corpus": bystanders,
        "any": [name for names in classes.values() for name in names],
    }
    clips = _plan_clips(seed, classes, section, in_corpus)
    settings: Unit = {
        "folder": str(folder),
        "seed": seed,
        "height": section.height,
        "width": section.width,
        "num_frames": section.num_frames,
        "multi_shot_share": section.multi_shot_share,
        "pools": pools,
    }
    scratch.mkdir(parents=True, exist_ok=True)
    units = [
        settings
        | {
            "path": str(scratch / f"unit_{start:06d}.json"),
            "clips": clips[start : start + CLIPS_PER_UNIT],
        }
        for start in range(0, len(clips), CLIPS_PER_UNIT)
    ]
    for _ in parallel_map(render_unit, units):
        pass

    entries = [entry for unit in units for entry in json.loads(Path(unit["path"]).read_text())]
    annotated = [entry for entry in entries if "video" in entry]
    corpus = [entry for entry in entries if "uri" in entry]
    category_ids = {name: i + 1 for i, name in enumerate(sorted(pools["any"]))}
    annotations: list[dict[str, Any]] = []
    for entry in annotated:
        for track in entry["tracks"]:
            name = track.pop("class")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": entry["video"]["id"],
                    "category_id": category_ids[name],
                    "iscrowd": 0,
                    **track,
                }
            )
    document = {
        "info": {"description": "sprites, composed by selfshot", "seed": seed},
        "categories": [{"id": i, "name": name} for name, i in category_ids.items()],
        "videos": [entry["video"] for entry in annotated],
        "annotations": annotations,
    }
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
    write_corpus_labels(folder, {entry["clip_id"]: entry["class"] for entry in corpus})
    multi_shot = sum(entry.pop("shots") > 1 for entry in corpus)
    for entry in corpus:
        entry.pop("class")
    write_corpus(folder, corpus)

    queries: dict[str, list[tuple[int, str]]] = {split: [] for split in classes}
    supports: dict[str, dict[str, list[int]]] = {split: {} for split in classes}
    quarantined = []
    with_target = {
        (a["video_id"], a["category_id"]) for a in annotations if any(a["segmentations"])
    }
    for entry in annotated:
        video, name, split = entry["video"]["id"], entry["class"], entry["split"]
        if (video, category_ids[name]) not in with_target:
            quarantined.append((entry["video"]["source_id"], f"no {name} is visible in any frame"))
        elif entry["role"] == "query":
            queries[split].append((video, name))
        else:
            supports[split].setdefault(name, []).append(video)
    benchmark = Benchmark(
        name="sprites",
        kind="sprites",
        seed=seed,
        height=section.height,
        width=section.width,
        num_frames=section.num_frames,
        classes=classes,
        queries={split: tuple(pairs) for split, pairs in queries.items()},
        supports={
            split: {name: tuple(videos) for name, videos in by_class.items()}
            for split, by_class in supports.items()
        },
        counts={
            "videos": len(annotated),
            "tracks": len(annotations),
            "corpus_clips": len(corpus),
            "corpus_multi_shot": multi_shot,
            "corpus_classes": len(in_corpus),
        },
        quarantined=tuple(quarantined),
    )
    return finish_benchmark(
        folder, benchmark, load_annotations(folder / "annotations.json"), corpus
    )
