"""What each stage is keyed by: every setting that changes its result, and none that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from selfshot.config.backbone import BackboneConfig
from selfshot.config.encoder import EncoderConfig
from selfshot.config.schema import Experiment
from selfshot.files import digest_file
from selfshot.models.pretrained_files import NetworkFiles, find_network, is_pretrained_name
from selfshot.studies.builders import inputs_digest


def training_settings(name: str) -> Callable[[Experiment], dict[str, Any]]:
    """Of a trained network, with what of the machine changes its weights."""

    def settings(experiment: Experiment) -> dict[str, Any]:
        section = getattr(experiment, name).model_dump(mode="json")
        section.pop("probe_every", None)
        compute = experiment.compute
        # Workers divide a batch and a GPU rounds otherwise: both change the weights.
        machine = {
            "num_workers": compute.num_workers,
            "use_gpu": compute.use_gpu,
            "zero_stage": compute.zero_stage,
        }
        if name != "backbone":
            machine["accumulate"] = compute.accumulate
        if name == "backbone":
            section |= backbone_weights(experiment.backbone)
            del section["revision"], section["allow_download"]
            # Without them the network is what it was before they could be said.
            for field, default in (("context", False), ("network_learning_rate", None)):
                if section[field] == default:
                    del section[field]
        if name == "vis" and experiment.vis.initial is not None:
            section["initial"] = digest_file(experiment.vis.initial)
        if name == "encoder":
            section |= _encoder_digests(experiment.encoder)
        return {**section, "seed": experiment.seed, "compute": machine}

    return settings


def backbone_weights(section: BackboneConfig) -> dict[str, Any]:
    """Of the backbone's weights, what they are in place of where they lie.

    Raises:
        UserError: see `selfshot.models.pretrained_files.find_network`.
    """
    if section.weights not in (None, "random"):
        from selfshot.models.foreign_weights import weights_digest

        return {"weights": weights_digest(section.weights)}
    if section.weights == "random" or not section.kind.startswith("timm/"):
        return {}
    from selfshot.models.backbones import backbone_files

    digest = backbone_files(section).digest()
    folder = section.kind.startswith("timm/local-dir:")
    return {"weights": digest} | ({"kind": "timm/local-dir"} if folder else {})
def named_networks(section: EncoderConfig) -> Iterator[tuple[str, NetworkFiles]]:
    """The setting and the files of each network of timm or transformers that Φ is made of.

    Raises:
        UserError: one is not on this machine, or there is none of that name.
    """
    for field, revision, weights in (
        ("backbone", section.revision, section.weights),
        ("auxiliary", None, None),
    ):
        name = getattr(section, field)
        if is_pretrained_name(name):
            yield field, find_network(
                name,
                setting=f"encoder.{field}",
                revision=revision,
                allow_download=section.allow_download,
                weights=weights,
            )


def network_lines(section: EncoderConfig) -> list[str]:
    """For people: each named network with what it wants of frames, and its licence.

    Raises:
        UserError: see `named_networks`; or it is of a kind that gives no tokens of images.
    """
    lines = []
    for field, files in named_networks(section):
        # It imports torch, which most experiments can be checked without.
        from selfshot.models.pretrained import describe_network

        spec = describe_network(files, setting=f"encoder.{field}")
        said = spec["preprocessing"]
        mean, std = ([round(x, 1) for x in said[name]] for name in ("mean", "std"))
        reads = f"clips of {spec['num_frames']}" if spec["num_frames"] else "frames"
        lines.append(
            f"encoder.{field}: {files.name}: {reads}, {said['height']} x {said['width']} "
            f"({'fixed' if said['fixed'] else 'multiples of ' + str(said['multiple'])}, "
            f"{said['interpolation']}), mean {mean}, deviation {std}; {spec['dim']} channels; "
            f"licence: {files.licence or 'not stated'}"
        )
    return lines


def _encoder_digests(section: EncoderConfig) -> dict[str, Any]:
    """What stands behind the names of files and networks; how they came here changes nothing."""
    digests: dict[str, Any] = {"allow_download": None}
    if section.weights is not None and section.weights != "random":
        from selfshot.models.foreign_weights import weights_digest

        digests["weights"] = weights_digest(section.weights)
    for field, files in named_networks(section):
        digests[f"{field}_files"] = files.digest()
        if files.folder is not None:
            digests[field] = files.library
            digests["revision"] = None
    return digests


def benchmark_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the benchmark, with a digest of the files that it is made of."""
    settings = {**experiment.benchmark.model_dump(mode="json"), "seed": experiment.seed}
    digest = inputs_digest(experiment)
    if digest is not None:
        settings["inputs"] = digest
    return settings


def precision_of_vectors(experiment: Experiment) -> Literal["float32", "bfloat16"]:
    """That Φ computes with: on a GPU always bfloat16."""
    return "bfloat16" if experiment.compute.use_gpu else experiment.embedding.precision


def embeddings_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the embeddings; pace, quarantine and actors change no vector."""
    section = experiment.embedding
    settings = {name: getattr(section, name) for name in ("num_frames", "dtype")}
    return {**settings, "precision": precision_of_vectors(experiment)}


def table_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """Rows of the table: supports without shots once, the others at each number of shots."""
    kinds = experiment.evaluation.supports
    return [row for kind in kinds for row in experiment.supports.rows(kind)]


def evaluation_settings(experiment: Experiment) -> dict[str, Any]:
    """Of the evaluation, with the rows that it fills and digests of the models that they bring."""
    settings = experiment.evaluation.model_dump(mode="json", exclude={"prompted", "proposals"})
    return {**settings, **baseline_digests(experiment), "rows": table_rows(experiment)}


def baseline_digests(experiment: Experiment) -> dict[str, str]:
    """Of each SAM 2 model that a row of the table reads, by its setting of `evaluation`.

    Raises:
        UserError: a folder holds no such model.
    """
    section = experiment.evaluation
    rows = {"prompted": "prompted", "proposals": "proposals_similarity"}
    found = {}
    for name, row in rows.items():
        folder = getattr(section, name)
        if row in section.supports and folder is not None:
            from selfshot.models.baselines.sam2 import check_folder
            from selfshot.models.encoders import digest_of

            check_folder(folder, f"evaluation.{name}")
            found[name] = digest_of(folder)
    return found


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
