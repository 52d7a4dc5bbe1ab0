"""What each stage is keyed by: every setting that changes its result, and none that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfshot.config.schema import BackboneConfig, Experiment
from selfshot.files import digest_file
from selfshot.studies.builders import inputs_digest

ALIKE = ("gradient_checkpointing", "activation_checkpointing", "probe")
"""Settings of a section that change how a network is trained or watched and none of its weights."""


def _without_pace(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what changes no weight: how often it is logged and saved."""
    optimiser = {
        key: value
        for key, value in settings["optimiser"].items()
        if key not in ("checkpoint_every", "log_every")
    }
    kept = {name: value for name, value in settings.items() if name not in ALIKE}
    return {**kept, "optimiser": optimiser}


def training_settings(name: str) -> Callable[[Experiment], dict[str, Any]]:
    """Of a trained network, with what of the machine changes its weights."""

    def settings(experiment: Experiment) -> dict[str, Any]:
        section = _without_pace(getattr(experiment, name).model_dump(mode="json"))
        compute = experiment.compute
        # Workers divide a batch and a GPU rounds otherwise: both change the weights.
        machine = {
            "num_workers": compute.num_workers,
            "use_gpu": compute.use_gpu,
            "zero_stage": compute.zero_stage,
            "compile": compute.compile,
        }
        if name == "backbone" and experiment.backbone.weights is not None:
            section["weights"] = digest_file(experiment.backbone.weights)
        if name == "vis" and experiment.vis.initial is not None:
            section["initial"] = digest_file(experiment.vis.initial)
        if name == "vis" and experiment.vis.method != "siamese_mask_rcnn":
            section.pop("mask_rcnn", None)
        if name == "encoder" and experiment.encoder.weights is not None:
            from selfshot.models.foreign_weights import weights_digest

            section["weights"] = weights_digest(experiment.encoder.weights)
        return {**section, "seed": experiment.seed, "compute": machine}

    return settings


def benchmark_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the benchmark, with a digest of the files that it is made of."""
    settings = {**experiment.benchmark.model_dump(mode="json"), "seed": experiment.seed}
    digest = inputs_digest(experiment)
    if digest is not None:
        settings["inputs"] = digest
    return settings


def embeddings_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the embeddings; pace, quarantine and actors change no vector."""
    return {"num_frames": experiment.embedding.num_frames, "dtype": experiment.embedding.dtype}


def table_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """Rows of the table: supports without shots once, the others at each number of shots."""
    kinds = experiment.evaluation.supports
    return [row for kind in kinds for row in experiment.supports.rows(kind)]


def evaluation_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the evaluation, with the rows that it fills."""
    return {**experiment.evaluation.model_dump(mode="json"), "rows": table_rows(experiment)}


def index_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the index: exact search has no other setting, for `memory_gb` only ever refuses it."""
    section = experiment.index
    if section.kind == "flat" and section.factory is None:
        return {"kind": "flat"}
    return {**section.model_dump(mode="json"), "seed": experiment.seed}


def supports_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the choice of supports, with the folds that draws depend on.

    What only a kind on demand reads is in the key only with that kind.
    """
    section, evaluation = experiment.supports, experiment.evaluation
    settings = section.model_dump(mode="json")
    if section.corpus_share == 1:
        del settings["corpus_seed"]
    for kind in ("semi_shot", "seen_penalty"):
        if kind not in evaluation.supports:
            del settings[kind]
    return {
        **settings,
        "kinds": sorted(section.chosen(evaluation.supports)),
        "folds": evaluation.folds,
        "max_queries": evaluation.max_queries_per_fold,
    }


ARCHITECTURE = (
    "heads", "encoder_layers", "fuser_layers", "decoder_layers", "ffn_dim", "dropout",
    "num_instances", "deformable", "query_positions", "support_positions", "mask_channels",
    "variants",
)  # fmt: skip
"""Settings of the VIS transformer that are arguments of the model."""


def network_settings(section: BackboneConfig) -> dict[str, Any]:
    """Arguments of `build_backbone`."""
    if section.kind == "small":
        return {"width": section.width, "dim": section.dim}
    return {"kind": section.kind, "dim": section.dim, "output_stride": section.output_stride}


def model_settings(experiment: Experiment, *, fuser: bool) -> dict[str, Any]:
    """Arguments of the method's class (`models.methods`) but the backbone."""
    section = experiment.vis
    if section.method == "siamese_mask_rcnn":
        return {
            "num_instances": section.num_instances,
            "checkpointing": section.gradient_checkpointing,
            **section.mask_rcnn.model_dump(mode="json"),
        }
    model = {
        **section.model_dump(include=set(ARCHITECTURE)),
        "fuser": fuser,
        "checkpointing": section.gradient_checkpointing,
    }
    if not section.variants.queries:
        model["clip_frames"] = experiment.benchmark.num_frames
    return model
