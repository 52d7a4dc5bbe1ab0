"""The stages of an experiment: what each one reads, is keyed by, and makes.

A stage is a function of a `Context` and its own `StageFolder`; everything it needs of earlier
stages is in their folders. `STAGES` is the whole pipeline, in order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfshot.benchmarks.inputs import check_batch
from selfshot.benchmarks.manifest import corpus_size
from selfshot.config.addresses import is_address
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.config.fields import AS_YAML, Section
from selfshot.config.optimiser import Optimiser
from selfshot.config.schema import Experiment
from selfshot.errors import UserError
from selfshot.models.pretrained_files import anywhere
from selfshot.store.local import StageFolder
from selfshot.studies.builders import build_benchmark
from selfshot.studies.context import Context as Context
from selfshot.studies.context import Metrics
from selfshot.studies.corpus import account, embedding_job, tell_licences
from selfshot.studies.settings import (
    baseline_digests,
    benchmark_settings,
    embeddings_settings,
    evaluation_settings,
    index_settings,
    precision_of_vectors,
    supports_settings,
    table_rows,
    training_settings,
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: its folder in the store.
        version: raised when its meaning changes, so that old results are not reused.
        inputs: earlier stages that it reads.
        settings: every setting that changes its result.
        make: makes it in a folder and returns its metrics.
        needs_ray: whether it runs on Ray, with these settings.
        wanted: whether the experiment has it at all.
    """

    name: str
    version: int
    inputs: tuple[str, ...]
    settings: Callable[[Experiment], dict[str, Any]]
    make: Callable[[Context, StageFolder], Metrics]
    needs_ray: Callable[[Experiment], bool] = lambda experiment: True
    wanted: Callable[[Experiment], bool] = lambda experiment: True


EVALUATION_VERSION = 4
ROWS_VERSION = 3
"""Of the rows that the store keeps: what is predicted, and not what is told of it."""


def _make_benchmark(context: Context, folder: StageFolder) -> Metrics:
    carried = context.sharing is not None
    made = build_benchmark(context.experiment, folder, context.progress, carried=carried)
    for what, reason in made.quarantined[:5]:
        context.progress.note(f"quarantined {what}: {reason}")
    return {**made.counts, "quarantined": len(made.quarantined)}


def _train(
    context: Context,
    folder: StageFolder,
    name: str,
    task: str,
    kwargs: Mapping[str, Any],
    optimiser: Optimiser,
    validation: Mapping[str, Any] | None = None,
) -> Metrics:
    """Run a task on the engine and leave its export and history in the folder."""
    from selfshot.distributed.training import train
    from selfshot.distributed.worker import Fleet
    from selfshot.training.loop import Schedule, TaskSpec

    compute = context.experiment.compute
    of_fleet = {field.name for field in dataclasses.fields(Fleet)}
    result = train(
        TaskSpec(name, task, kwargs),
        Schedule(
            **optimiser.model_dump(exclude={"learning_rate"}),
            checkpoint_every=compute.checkpoint_every,
            log_every=compute.log_every,
            seed=context.experiment.seed,
        ),
        Fleet(**compute.model_dump(include=of_fleet)),
        work_dir=folder.path,
        validation=validation,
        on_log=context.progress.training,
        sharing=context.sharing,
    )
    last = result.history[-1] if result.history else {}
    metrics = {key: value for key, value in last.items() if isinstance(value, (int, float))}
    return metrics | result.chosen


def _values(section: Section, *files: str) -> dict[str, Any]:
    """A section as a task is given it on any machine, with absolute paths of its files."""
    values: dict[str, Any] = section.model_dump(mode="json", context=AS_YAML)
    for name in files:
        path = getattr(section, name)
        if path not in (None, "random") and not is_address(str(path)):
            values[name] = str(Path(path).resolve()).replace("$", "$$")
    return values


def _check_heads(experiment: Experiment) -> None:
    """Only timm knows how many channels Φ's layers get from one of its networks."""
    from selfshot.models.backbones import backbone_settings

    section, own = experiment.encoder, experiment.backbone
    if own.kind != "small" and section.backbone == "pretrained" and section.layers:
        dim = section.dim or backbone_settings(own)["spec"]["channels"][1]
        if dim % section.heads:
            raise UserError(
                f"encoder.heads: {section.heads} does not divide {dim} channels",
                setting="encoder.heads",
            )


def _make_backbone(context: Context, folder: StageFolder) -> Metrics:
    # The builder may have left clips out: better said now than after this training.
    check_batch(context.experiment, corpus_size(context.folders["benchmark"]))
    _check_heads(context.experiment)
    section = context.experiment.backbone
    values = _values(section, "weights")
    before, local, place = section.kind.partition("local-dir:")
    if local:
        values["kind"] = f"{before}{local}{Path(place).expanduser().resolve()}"
    kwargs = {
        "benchmark": str(context.folders["benchmark"]),
        "seed": context.experiment.seed,
        "backbone": values,
    }
    if not section.pretrain:
        from selfshot.training.backbone import export_untrained

        report = export_untrained(folder.path / "export", kwargs)
        context.progress.note(f"taken as they are: {report or 'weights of the network itself'}")
        return {}
    task = "selfshot.training.backbone:BackboneTask"
    return _train(context, folder, "backbone", task, kwargs, section.optimiser)


def _make_encoder(context: Context, folder: StageFolder) -> Metrics:
    from selfshot.models.backbones import backbone_settings

    experiment = context.experiment
    section = experiment.encoder
    kwargs: dict[str, Any] = {
        "benchmark": str(context.folders["benchmark"]),
        "backbone": str(context.folders["backbone"] / "export"),
        "backbone_network": backbone_settings(experiment.backbone),
        "seed": experiment.seed,
        "encoder": _values(section, "weights")
        | {name: anywhere(getattr(section, name)) for name in ("backbone", "auxiliary")},
        "accumulate": experiment.compute.accumulate,
        "checkpointing": experiment.compute.activation_checkpointing,
    }
    if section.trains_nothing or section.weights is not None:
        # Built here: weights of another network are refused before Ray starts a worker.
        from selfshot.training.encoder import EncoderTask

        fixed = EncoderTask(**kwargs)
        if fixed.load_report is not None:
            context.progress.note(f"{section.weights}: {fixed.load_report}")
        if section.trains_nothing:
            context.progress.note(f"{section.backbone} is fixed: there is nothing to train")
            fixed.start()
            (folder.path / "export").mkdir()
            fixed.export(folder.path / "export")
            return {}
    task = "selfshot.training.encoder:EncoderTask"
    return _train(context, folder, "encoder", task, kwargs, section.optimiser)


def _make_embeddings(context: Context, folder: StageFolder) -> Metrics:
    from selfshot.benchmarks.manifest import load_benchmark
    from selfshot.data.corpus_manifest import open_manifest
    from selfshot.distributed.embedding import embed_corpus
    from selfshot.models.encoders import open_encoder
    from selfshot.retrieval.embeddings import read_quarantine

    source = context.folders["benchmark"]
    benchmark = load_benchmark(source)
    precision = precision_of_vectors(context.experiment)
    opened = open_encoder(str(context.folders["encoder"] / "export"), precision)
    tell_licences(opened.encoder, context.progress)
    # Shards go where a run on another machine finds them.
    away = None if context.sharing is None else context.sharing.remote(folder.path)
    summary = embed_corpus(
        open_manifest(
            str(source / "corpus.parquet"), root=str((source / benchmark.corpus_root).resolve())
        ),
        opened.encoder,
        embedding_job(context.experiment, benchmark.height, benchmark.width),
        settings={"encoder": opened.digest, "precision": precision},
        out=folder.path if away is None else away.address,
        sharing=context.sharing,
        on_progress=context.progress.embedding,
        on_message=context.progress.note,
    )
    if away is not None:
        away.pull_folder()
    context.progress.note(account(summary))
    for clip_id, reason in read_quarantine(folder.path)[:5]:
        context.progress.note(f"quarantined {clip_id}: {reason}")
    return summary


def _make_index(context: Context, folder: StageFolder) -> Metrics:
    from selfshot.retrieval.building import BuildSettings, build_from_embeddings

    experiment = context.experiment
    facts = build_from_embeddings(
        context.folders["embeddings"],
        folder.path,
        folder.scratch,
        BuildSettings(
            **experiment.index.model_dump(),
            seed=experiment.seed,
            use_gpu=experiment.compute.use_gpu,
        ),
        context.progress.note,
    )
    return {
        **{key: value for key, value in facts.items() if key != "sweep"},
        "bytes": round(facts["clips"] * facts["memory_bytes_per_vector"]),
    }


def _make_seen(context: Context, folder: StageFolder) -> Metrics:
    from selfshot.studies.retrieving import make_seen

    return make_seen(context, folder)


def _make_supports(context: Context, folder: StageFolder) -> Metrics:
    from selfshot.studies.retrieving import make_supports

    return make_supports(context, folder)


def _make_vis(fuser: bool) -> Callable[[Context, StageFolder], Metrics]:
    def make(context: Context, folder: StageFolder) -> Metrics:
        section = context.experiment.vis
        kwargs: dict[str, Any] = {
            "benchmark": str(context.folders["benchmark"]),
            "backbone": str(context.folders["backbone"] / "export"),
            "seed": context.experiment.seed,
            "vis": _values(section, "initial"),
            "fuser": fuser,
            "accumulate": context.experiment.compute.accumulate,
            "checkpointing": context.experiment.compute.activation_checkpointing,
        }
        if section.initial is not None:
            from selfshot.training.vis import VisTask

            # Built here: weights of other settings are refused before Ray starts a worker.
            VisTask(**kwargs)
            context.progress.note(f"goes on from {section.initial}")
        validation = None
        if section.validate_every:
            validation = {
                "path": "selfshot.evaluation.validation:Validation",
                "kwargs": {
                    "benchmark": str(context.folders["benchmark"]),
                    "support_frames": section.support_frames,
                },
                "by": "val_AP50",
                "every": section.validate_every,
            }
        name = "vis" if fuser else "vis_no_fuser"
        task = "selfshot.training.vis:VisTask"
        return _train(context, folder, name, task, kwargs, section.optimiser, validation)

    return make


def _make_evaluation(context: Context, folder: StageFolder) -> Metrics:
    from selfshot.data.json_entries import write_json
    from selfshot.distributed.capacity import gpu_share
    from selfshot.distributed.session import current_session
    from selfshot.distributed.trials import TrialPlan, run_trials
    from selfshot.evaluation.details import DETAILS, table_details
    from selfshot.studies.scores import aggregate, figure_name

    experiment = context.experiment
    section, compute = experiment.evaluation, experiment.compute
    gpus = 0.0
    if compute.use_gpu:
        session, parallel = current_session(), compute.parallel_trials
        gpus = gpu_share(session, parallel, autoscales=compute.autoscales)
        if not gpus:
            context.progress.note("compute.use_gpu: Ray has no GPU, so the CPU evaluates")
    models = {"vis": str(context.folders["vis"] / "export")}
    if "vis_no_fuser" in context.folders:
        models["no_fuser"] = str(context.folders["vis_no_fuser"] / "export")
    # Trials of a study need the same labelled supports. With storage, nodes have only their own.
    names = ("benchmark", *(name for name in ("vis", "vis_no_fuser") if name in context.folders))
    keys = {"version": ROWS_VERSION, **{n: context.keys[n] for n in names}}
    store = str(folder.path.resolve().parents[1])
    kept = None if context.sharing else {"store": store, "keys": keys}
    digests = baseline_digests(experiment)
    baselines: dict[str, Any] = {
        **{name: str(getattr(section, name).resolve()) for name in digests},
        "keys": {"prompted": digests.get("prompted")},
    }
    if "proposals_similarity" in section.supports:
        baselines["encoder"] = str(context.folders["encoder"] / "export")
        baselines["keys"]["proposals_similarity"] = [
            context.keys["encoder"], digests.get("proposals")
        ]  # fmt: skip
    configs = [
        {
            "trial_id": f"fold_{fold}",
            "benchmark": str(context.folders["benchmark"]),
            "models": models,
            "rows": table_rows(experiment),
            "supports": str(context.folders["supports"] / "supports.json"),
            "split": "test",
            "fold": fold,
            "folds": section.folds,
            "max_queries": section.max_queries_per_fold,
            "support_frames": experiment.vis.support_frames,
            "confidence": section.confidence,
            "baselines": baselines,
            "device": "cuda" if gpus else "cpu",
            "predictions": str(folder.path.resolve() / "predictions"),
            "kept": kept,
        }
        for fold in range(section.folds)
    ]
    done = 0

    def report(trial_id: str, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        best = {row["name"]: row["AP50"] for row in result["rows"]}
        figures = ", ".join(f"{name} {score:.1f}" for name, score in best.items())
        context.progress.note(f"{trial_id} ({done}/{len(configs)}): AP50 {figures}")

    trials = run_trials(
        "selfshot.evaluation.episodes:evaluate_fold",
        configs,
        TrialPlan(
            out_dir=folder.path / "trials",
            name=f"{experiment.name}-evaluation",
            parallel=compute.parallel_trials,
            gpus=gpus,
            max_failures=compute.max_failures,
            sharing=context.sharing,
            carry=folder.path / "predictions",
        ),
        on_result=report,
    )
    rows = aggregate(trials)
    (folder.path / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    details = table_details(
        context.folders["benchmark"],
        folder.path / "predictions",
        rows,
        section.folds,
        section.max_queries_per_fold,
    )
    write_json(folder.path / DETAILS, details)
    return {
        "queries": sum(trial["queries"] for trial in trials),
        **{figure_name("AP50", row): row["AP50"]["mean"] for row in rows},
    }


def _never(experiment: Experiment) -> bool:
    return False


STAGES: tuple[Stage, ...] = (
    Stage(
        "benchmark", 3, (), benchmark_settings, _make_benchmark,
        # Only synthetic videos are worth spreading; reading real ones takes threads.
        needs_ray=lambda experiment: isinstance(experiment.benchmark, SpritesBenchmark),
    ),
    Stage(
        "backbone", 3, ("benchmark",), training_settings("backbone"), _make_backbone,
        needs_ray=lambda experiment: experiment.backbone.pretrain,
    ),
    Stage("encoder", 4, ("benchmark", "backbone"), training_settings("encoder"), _make_encoder),
    Stage("embeddings", 2, ("benchmark", "encoder"), embeddings_settings, _make_embeddings),
    Stage(
        "index", 1, ("embeddings",), index_settings, _make_index, needs_ray=_never,
    ),
    Stage(
        "seen", 1, ("benchmark", "encoder"), lambda experiment: {}, _make_seen, needs_ray=_never,
        wanted=lambda experiment: "seen_penalty" in experiment.evaluation.supports,
    ),
    Stage(
        "supports", 3, ("benchmark", "encoder", "index", "seen"), supports_settings,
        _make_supports, needs_ray=_never,
    ),
    Stage("vis", 3, ("benchmark", "backbone"), training_settings("vis"), _make_vis(fuser=True)),
    Stage(
        "vis_no_fuser", 3, ("benchmark", "backbone"), training_settings("vis"),
        _make_vis(fuser=False),
        wanted=lambda experiment: experiment.evaluation.without_fuser is not None,
    ),
    Stage(
        "evaluation", EVALUATION_VERSION, ("benchmark", "supports", "vis", "vis_no_fuser"),
        evaluation_settings, _make_evaluation,
    ),
)  # fmt: skip
