"""The two stages of retrieval: the labelled clips of seen classes, and each query's supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selfshot.store.local import StageFolder
from selfshot.studies.context import Context, Metrics
from selfshot.studies.settings import kinds_on_demand

if TYPE_CHECKING:
    from selfshot.models.trained_encoder import FrozenEncoder


def make_seen(context: Context, folder: StageFolder) -> Metrics:
    """Φ of labelled clips of the seen classes."""
    from selfshot.studies.seen import embed_seen

    return embed_seen(
        folder.path,
        context.experiment.supports.seen_clips,
        benchmark_folder=context.folders["benchmark"],
        encoder=_encoder(context),
        on_progress=context.progress.every("labelled clips of seen classes"),
    )


def make_supports(context: Context, folder: StageFolder) -> Metrics:
    """Supports of every query, and how good the retrieval is."""
    from selfshot.studies.choosing import SupportSettings, choose_supports

    experiment = context.experiment
    section = experiment.supports
    metrics = choose_supports(
        folder.path,
        SupportSettings(
            **section.model_dump(exclude={"shots", "extra", "seen_clips"}),
            count=max(section.shots) + max(section.extra),
            kinds=kinds_on_demand(experiment),
        ),
        benchmark_folder=context.folders["benchmark"],
        encoder=_encoder(context),
        index_folder=context.folders["index"],
        seen_folder=context.folders.get("seen"),
        seeds=experiment.evaluation.seeds,
        max_queries=experiment.evaluation.max_queries_per_seed,
        on_message=context.progress.note,
    )
    test = metrics["test"]
    context.progress.note(
        f"precision@5 on unseen classes: {100 * test['precision_at']['5']:.1f}% "
        f"(chance {100 * test['chance']:.1f}%), mAP {100 * test['mAP']:.1f}% "
        f"(random {100 * test['random']['mAP']:.1f}%)"
        if "precision_at" in test
        else "the corpus has no labels, so no precision is known"
    )
    context.progress.note(
        f"left out: {test['excluded_near_duplicates']} near duplicates, "
        f"{test['excluded_same_source']} clips of a query's own source"
    )
    return metrics


def _encoder(context: Context) -> FrozenEncoder:
    """The trained Φ, where it runs."""
    from selfshot.models.device import device_for
    from selfshot.models.trained_encoder import load_encoder

    device = device_for(context.experiment.compute.use_gpu, context.progress.note)
    return load_encoder(context.folders["encoder"] / "export").to(device)
