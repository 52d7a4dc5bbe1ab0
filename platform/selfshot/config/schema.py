"""What an experiment may say: one frozen pydantic model for each section of the YAML.

A number that someone may tune lives here and nowhere else. A network and its
training are given their section whole; all others are given plain arguments by `studies`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfshot.config.addresses import secret_problem
from selfshot.config.backbone import BackboneConfig
from selfshot.config.benchmarks import PAIRED_SUPPORTS, Benchmark, SpritesBenchmark
from selfshot.config.encoder import EncoderConfig
from selfshot.config.fields import (
    Count,
    FilePath,
    NonNegative,
    PathText,
    Positive,
    Section,
    Share,
)
from selfshot.config.retrieval import IndexConfig
from selfshot.config.studies import SweepConfig
from selfshot.config.supports import KindName, SupportsConfig
from selfshot.config.vis import VisConfig


class EmbeddingConfig(Section):
    """Ray Data and a decoder over the corpus."""

    num_frames: Count = Field(8, description="frames sampled uniformly from a clip")
    decoder: Literal["decord", "pyav"] = Field(
        "decord", description="what reads the videos; decord: and PyAV what it cannot read"
    )
    clips_per_shard: Count = Field(512, description="clips in one Parquet shard, and in one resume")
    decode_timeout_s: Positive = 20.0
    decode_memory_mb: Annotated[int, Field(ge=512)] = Field(
        4096, description="a clip whose decoder wants more is quarantined"
    )
    max_quarantine_share: Share = Field(0.2, description="above it the run fails with the list")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored vectors")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the encoder's arithmetic on a CPU: bfloat16 is faster where the processor "
        "has it (AMX, AVX-512 BF16), and other vectors; GPUs take bfloat16",
    )
    concurrency: Count | None = Field(
        None,
        description="decoding processes, and copies of the encoder; none: one a core, and one a "
        "GPU where the encoder has some",
    )


class EvaluationConfig(Section):
    """Video AP of every row of the table, on the unseen test classes."""

    supports: tuple[KindName, ...] = Field(
        ("none", "no_fuser", "query_itself", "random", "self_shot", "oracle"), min_length=1
    )
    folds: Count = Field(5, description="of the test queries, one trial each")
    max_queries_per_fold: Count | None = None
    confidence: NonNegative = Field(
        0.0, description="power of the score of clips found, which a track's score is times"
    )
    prompted: FilePath | None = Field(
        None, description="folder of a SAM 2 video model, which fills the row prompted"
    )
    proposals: FilePath | None = Field(
        None,
        description="folder of a SAM 2 video model, whose tracks the row proposals_similarity "
        "ranks; none: the experiment's own network without the fuser",
    )

    @property
    def without_fuser(self) -> str | None:
        """The first row that needs the network without the fuser, if there is one."""
        needs = ("no_fuser", *(("proposals_similarity",) if self.proposals is None else ()))
        return next((row for row in needs if row in self.supports), None)


class ReportConfig(Section):
    """The page that people read."""

    gallery_queries: Annotated[int, Field(ge=0)] = Field(
        12, description="queries drawn with their supports and moving masks"
    )
    animations: Annotated[int, Field(ge=0)] = Field(
        0, description="of them also as files, and with their attention (Figures 3 and 5)"
    )


class ComputeConfig(Section):
    """Where it runs."""

    address: str | None = Field(None, description="a Ray cluster's address; none: this machine")
    num_workers: Count = Field(1, description="Ray Train workers of each training stage")
    use_gpu: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    threads_per_worker: Count | None = Field(None, description="none: cores / num_workers")
    autoscales: bool = Field(
        False, description="nodes come when work asks for them: what has no room now is waited for"
    )
    parallel_trials: Count = Field(2, description="evaluation trials at one time")
    max_failures: Annotated[int, Field(ge=0)] = Field(2, description="restarts of a dead worker")
    min_workers: Count | None = Field(
        None, description="go on with as few workers where some are lost; none: wait for all"
    )
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        0, description="processes that make a worker's batches; 0: a thread of its own"
    )
    accumulate: Count = Field(
        1, description="parts of a worker's batch that are computed one after another"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them"
    )
    checkpoint_every: Count = Field(100, description="steps between two checkpoints")
    log_every: Count = Field(20, description="steps between two logged points")

    @model_validator(mode="after")
    def _fewer_workers(self) -> ComputeConfig:
        if self.min_workers is None:
            return self
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers: {self.min_workers} is more than num_workers: {self.num_workers}"
            )
        if self.zero_stage:
            raise ValueError(
                f"min_workers: {self.min_workers} needs zero_stage: 0, not {self.zero_stage}: "
                "what is spread over workers cannot be read by fewer"
            )
        return self


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = Field(None, description="none: SQLite in the output folder")
    experiment: str = "selfshot"


class Experiment(Section):
    """One experiment: a benchmark, the stages' settings, and where it runs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output: FilePath = Path("runs")
    storage: PathText | None = Field(
        None, description="address that machines without a common output folder share"
    )
    benchmark: Benchmark = SpritesBenchmark()
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = EncoderConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    index: IndexConfig = IndexConfig()
    supports: SupportsConfig = SupportsConfig()
    vis: VisConfig = VisConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()
    base: str = Field("", description="an experiment's file that this one lies over")

    @model_validator(mode="after")
    def _across_sections(self) -> Experiment:
        if self.backbone.dim % self.vis.heads:
            raise ValueError(
                f"vis.heads: {self.vis.heads} does not divide backbone.dim: {self.backbone.dim}"
            )
        workers, parts = self.compute.num_workers, self.compute.accumulate
        for name, size, among in (
            ("vis.episodes_per_batch", self.vis.episodes_per_batch, parts),
            ("encoder.videos_per_batch", self.encoder.videos_per_batch, parts),
            ("backbone.classes_per_batch", self.backbone.classes_per_batch, 1),
        ):
            if size % (workers * among):
                accumulated = f" × compute.accumulate: {among}" if among > 1 else ""
                raise ValueError(
                    f"{name}: {size} is no multiple of compute.num_workers: {workers}"
                    f"{accumulated}; a batch is shared evenly, so change one of them"
                )
        row = self.evaluation.without_fuser
        if self.vis.method != "self_shot" and row is not None:
            raise ValueError(
                f"vis.method: {self.vis.method} has no row '{row}' in evaluation.supports "
                "(the paper's transformer without its fuser); take one of them out"
                + (", or set evaluation.proposals" if row == "proposals_similarity" else "")
            )
        if self.name == "store":
            raise ValueError("name: 'store' is the folder of the stages' results; choose another")
        if self.name == "mlartifacts":
            raise ValueError("name: 'mlartifacts' is a folder of MLflow's; choose another")
        if self.name == "corpora":
            raise ValueError("name: 'corpora' is the folder of your own clips; choose another")
        for name, address in (
            ("storage", self.storage),
            ("encoder.weights", self.encoder.weights),
            ("backbone.weights", self.backbone.weights),
            ("benchmark.corpus", str(getattr(self.benchmark, "corpus", ""))),
        ):
            problem = secret_problem(name, address)
            if problem is not None:
                raise ValueError(problem)
        encoder = self.encoder
        own = {
            "scratch": self.backbone.dim, "efficientnet_lite0": 1280,
        }  # fmt: skip
        if self.backbone.kind == "small":
            own["pretrained"] = 4 * self.backbone.width
        if encoder.backbone in own and encoder.layers:
            dim = encoder.dim or own[encoder.backbone]
            if dim % encoder.heads:
                raise ValueError(f"encoder.heads: {encoder.heads} does not divide {dim} channels")
        if encoder.pooling == "network" and self.supports.vectors == "windows":
            raise ValueError(
                "encoder.pooling: network is not for supports.vectors: windows, as windows are "
                "means of tokens; set supports.vectors: global, or encoder.pooling: tokens"
            )
        most = self.supports.most
        for kind in ("oracle", "prompted"):
            if kind in self.evaluation.supports and most > PAIRED_SUPPORTS:
                raise ValueError(
                    f"supports.shots: {max(self.supports.shots)} and supports.extra: "
                    f"{max(self.supports.extra)} ask for {most} supports, and a benchmark fixes "
                    f"{PAIRED_SUPPORTS} for the row '{kind}'; lower them, or take '{kind}' out of "
                    "evaluation.supports"
                )
        if "prompted" in self.evaluation.supports and self.evaluation.prompted is None:
            raise ValueError(
                "evaluation.prompted: the row 'prompted' of evaluation.supports needs the folder "
                "of a SAM 2 video model; name it (docs/guide/evaluation.md says which), or take "
                "the row out"
            )
        if "seen_penalty" in self.evaluation.supports and self.supports.vectors == "global":
            raise ValueError(
                "supports.vectors: global is not for the row 'seen_penalty' of "
                "evaluation.supports (windows): a penalty on a query's one vector changes no order"
            )
        labelled = max((number for number, _ in self.supports.semi_shot), default=0)
        if "semi_shot" in self.evaluation.supports and not 1 <= labelled <= PAIRED_SUPPORTS:
            raise ValueError(
                f"supports.semi_shot: {labelled} labelled supports are not allowed for the row "
                f"'semi_shot' (1 to {PAIRED_SUPPORTS}, as many as a benchmark fixes)"
            )
        if isinstance(self.benchmark, SpritesBenchmark):
            classes = self.benchmark.train_classes
            if self.backbone.classes_per_batch > classes:
                raise ValueError(
                    f"backbone.classes_per_batch: {self.backbone.classes_per_batch} is more than "
                    f"benchmark.train_classes: {classes}"
                )
        clips = getattr(self.benchmark, "corpus_clips", None)
        if clips is not None and self.encoder.videos_per_batch > clips:
            raise ValueError(
                f"encoder.videos_per_batch: {self.encoder.videos_per_batch} is more than "
                f"benchmark.corpus_clips: {clips}"
            )
        return self
