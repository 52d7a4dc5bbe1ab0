"""What can be known of a benchmark's inputs before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from selfshot.benchmarks.annotated import YOUTUBE_VIS, OnMessage, check_annotations
from selfshot.benchmarks.coco import COCO
from selfshot.benchmarks.corpus import count_clips, no_clip
from selfshot.config.schema import Experiment
from selfshot.errors import UserError

_ANNOTATIONS = ("annotations", "extra_annotations", "eval_annotations")


def distinct_inputs(experiments: Iterable[Experiment]) -> list[Experiment]:
    """One experiment for each benchmark and batch of clips: the checks below need no others."""
    found = {(one.benchmark.model_dump_json(), one.encoder.videos_per_batch): one
             for one in experiments}  # fmt: skip
    return list(found.values())


def check_contents(experiment: Experiment, on_message: OnMessage) -> None:
    """Read an experiment's annotations without their masks, and count its clips.

    Args:
        experiment: whose inputs; `check_inputs` has seen that they are there.
        on_message: receives what a build would quarantine.

    Raises:
        UserError: no video, category or annotation can be read, or as `check_corpus`.
    """
    section = experiment.benchmark
    form = COCO if section.kind == "coco_one_shot" else YOUTUBE_VIS
    files = [(field, getattr(section, field, None), form) for field in _ANNOTATIONS]
    for index, source in enumerate(getattr(section, "sources", ())):
        files.append((f"sources[{index}].annotations", source.annotations, COCO))
    videos = getattr(section, "videos", None)
    if videos is not None:
        files.append(("videos.annotations", videos.annotations, YOUTUBE_VIS))
    for field, path, of_file in files:
        if path is None:
            continue
        wrong = check_annotations(path, field, of_file)
        if wrong:
            on_message(
                f"benchmark.{field}: {path}: {len(wrong)} of its entries would be quarantined: "
                f"{wrong[0]}" + " …" * (len(wrong) > 1)
            )
    check_corpus(experiment)


def check_corpus(experiment: Experiment) -> None:
    """Refuse a corpus without clips, or with fewer than a batch of the encoder takes.

    Raises:
        UserError: it is one.
    """
    corpus = getattr(experiment.benchmark, "corpus", None)
    if corpus is None:
        return
    count = count_clips(Path(corpus), experiment.encoder.videos_per_batch)
    if not count:
        raise no_clip(corpus)
    check_batch(experiment, count + getattr(experiment.benchmark, "corpus_clips", 0))


def check_batch(experiment: Experiment, clips: int) -> None:
    """Refuse a corpus of fewer clips than a batch of the encoder.

    Raises:
        UserError: it has fewer.
    """
    wanted = experiment.encoder.videos_per_batch
    if clips < wanted:
        raise UserError(
            f"encoder.videos_per_batch: {wanted} is more than the {clips} clips of the corpus; "
            "lower it or add clips",
            setting="encoder.videos_per_batch",
        )
