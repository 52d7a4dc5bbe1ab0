"""What an experiment may say: one frozen pydantic model for each section of the YAML.

A number that someone may tune lives here and nowhere else. Sections are read by `studies`,
which hands plain keyword arguments down; no class below sees a section whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfshot.config.addresses import secret_problem
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
from selfshot.config.optimiser import Optimiser
from selfshot.config.retrieval import IndexConfig
from selfshot.config.studies import SweepConfig
from selfshot.config.supports import KindName, SupportsConfig
from selfshot.config.vis import MaskRcnnConfig, ValidationConfig, VariantsConfig


class BackboneConfig(Section):
    """The network that turns frames into tokens, pretrained on the seen classes' masks."""

    kind: Literal["small", "resnet18", "resnet50_dilated", "efficientnet_lite0"] = "small"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        32, description="first channels of the small one"
    )
    dim: Count = Field(72, description="channels of a token")
    output_stride: Literal[16, 32] = Field(
        16, description="of resnet50_dilated: pixels to a token"
    )
    weights: FilePath | None = Field(
        None, description="safetensors or PyTorch file of the trunk's weights to start from"
    )
    pretrain: bool = Field(
        True, description="false: the weights are taken as they are"
    )
    classes_per_batch: Annotated[int, Field(ge=2)] = 48
    temperature: Positive = 0.1
    optimiser: Optimiser = Optimiser(steps=640, learning_rate=4e-3, warmup_steps=20)

    @property
    def deep_channels(self) -> int:
        """Channels of the features below the tokens' projection."""
        wide = {"resnet18": 256, "resnet50_dilated": 1024, "efficientnet_lite0": 112}
        return wide.get(self.kind, 4 * self.width)

    @model_validator(mode="after")
    def _kinds(self) -> BackboneConfig:
        if self.output_stride == 32 and self.kind != "resnet50_dilated":
            raise ValueError(f"output_stride: 32 is not for kind {self.kind} (resnet50_dilated)")
        if self.weights is not None and not self.kind.startswith("resnet"):
            raise ValueError(
                f"weights: {self.weights} is not for kind {self.kind} (resnet18, "
                "resnet50_dilated); leave weights out, or choose another kind"
            )
        return self


class EmbeddingConfig(Section):
    """Ray Data and a decoder over the corpus."""

    num_frames: Count = Field(8, description="frames sampled uniformly from a clip")
    decoder: Literal["decord", "pyav"] = Field(
        "decord", description="what reads the videos; decord: and PyAV what it cannot read"
    )
    clips_per_shard: Count = Field(512, description="clips in one Parquet shard, and in one resume")
    decode_timeout_s: Positive = 20.0
    decode_memory_mb: Annotated[int, Field(ge=512)] = Field(
        4096, description="a clip whose decoder wants more is set aside"
    )
    max_quarantine_share: Share = Field(0.2, description="above it the run fails with the list")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored vectors")
    concurrency: Count | None = Field(
        None,
        description="decoding processes, and copies of the encoder; none: one a core, and one a "
        "GPU where the encoder has some",
    )


class LossWeights(Section):
    """Weights of Eq. 5, 8, 9 and 10."""

    foreground: NonNegative = 1.0
    l1: NonNegative = 5.0
    giou: NonNegative = 2.0
    dice: NonNegative = 4.0
    focal: NonNegative = 40.0
    common: NonNegative = Field(2.0, description="auxiliary: does a token belong to the class")
    no_object: NonNegative = Field(0.1, description="weight of the no-object class")


class VisConfig(Section):
    """The VIS transformer of section 5, or another method in its place, and its training."""

    method: Literal["self_shot", "few_shot_transformer", "siamese_mask_rcnn"] = Field(
        "self_shot", description="Table 11: what segments the query"
    )
    dim: Annotated[int, Field(ge=6)] = 72
    heads: Count = 4
    encoder_layers: Annotated[int, Field(ge=0)] = 1
    fuser_layers: Annotated[int, Field(ge=1)] = 1
    decoder_layers: Count = 2
    ffn_dim: Count = 288
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    num_instances: Count = Field(5, description="n instance queries a frame")
    deformable: bool = Field(False, description="deformable convolution in the segmenter")
    mask_channels: Annotated[int, Field(ge=4, multiple_of=4)] = Field(
        16, description="channels of a mask feature"
    )
    variants: VariantsConfig = VariantsConfig()
    mask_rcnn: MaskRcnnConfig = MaskRcnnConfig()
    query_positions: bool = True
    support_positions: bool = True
    episodes_per_batch: Count = 4
    accumulate: Count = Field(
        1, description="parts of a batch that are computed one after another"
    )
    train_shots: Count = 1
    initial: FilePath | None = Field(
        None, description="vis.safetensors of an earlier training, which this one goes on from"
    )
    support_frames: Count | None = Field(
        None, description="frames of a support; none: benchmark.num_frames; 1: its middle frame"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them"
    )
    backbone_learning_rate: Positive = 2e-4
    weights: LossWeights = LossWeights()
    validation: ValidationConfig = ValidationConfig()
    optimiser: Optimiser = Optimiser(steps=600, learning_rate=8e-4)

    @model_validator(mode="after")
    def _shapes(self) -> VisConfig:
        if self.dim % self.heads or self.dim % 6:
            raise ValueError(
                f"dim: {self.dim} must be a multiple of heads: {self.heads} and of 6 "
                "(a sine and a cosine for each of time, height and width)"
            )
        return self


class EvaluationConfig(Section):
    """Video AP of every row of the table, on the unseen test classes."""

    supports: tuple[KindName, ...] = Field(
        ("none", "no_fuser", "query_itself", "random", "self_shot", "oracle"), min_length=1
    )
    folds: Count = Field(5, description="of the test queries, one trial each")
    max_queries_per_fold: Count | None = None
    support_frames: Count | None = Field(
        None,
        description="frames of a support of any row; none: benchmark.num_frames; 1: its middle "
        "frame (Table 12)",
    )
    confidence: NonNegative = Field(
        0.0, description="power of the score of clips found, which a track's score is times"
    )


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
    compile: bool = Field(False, description="torch.compile what is trained")

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
        if self.vis.dim != self.backbone.dim:
            raise ValueError(
                f"vis.dim: {self.vis.dim} differs from backbone.dim: {self.backbone.dim}; "
                "the transformer reads the backbone's tokens, so set both alike"
            )
        for name, share in (
            ("vis.episodes_per_batch", self.vis.episodes_per_batch),
            ("encoder.videos_per_batch", self.encoder.videos_per_batch),
            ("backbone.classes_per_batch", self.backbone.classes_per_batch),
        ):
            if share % self.compute.num_workers:
                raise ValueError(
                    f"{name}: {share} is no multiple of compute.num_workers: "
                    f"{self.compute.num_workers}; a batch is shared evenly, so change one of them"
                )
        of_worker = self.vis.episodes_per_batch // self.compute.num_workers
        if of_worker % self.vis.accumulate:
            raise ValueError(
                f"vis.accumulate: {self.vis.accumulate} does not divide the {of_worker} episodes "
                "of a worker's batch (vis.episodes_per_batch / compute.num_workers)"
            )
        if self.vis.method != "self_shot" and "no_fuser" in self.evaluation.supports:
            raise ValueError(
                f"vis.method: {self.vis.method} has no row 'no_fuser' in evaluation.supports "
                "(the paper's transformer without its fuser); take one of them out"
            )
        if self.name == "store":
            raise ValueError("name: 'store' is the folder of the stages' results; choose another")
        if self.name == "mlartifacts":
            raise ValueError("name: 'mlartifacts' is a folder of MLflow's; choose another")
        for name, address in (
            ("storage", self.storage),
            ("encoder.weights", self.encoder.weights),
            ("benchmark.corpus", str(getattr(self.benchmark, "corpus", ""))),
        ):
            problem = secret_problem(name, address)
            if problem is not None:
                raise ValueError(problem)
        deep = self.backbone.deep_channels
        if self.encoder.trunk == "backbone" and self.backbone.kind == "efficientnet_lite0":
            raise ValueError(
                "encoder.trunk: backbone is not for backbone.kind: efficientnet_lite0, whose "
                "features have no roots; set encoder.trunk: efficientnet_lite0"
            )
        if self.encoder.trunk == "backbone" and self.encoder.dim != deep:
            what = "4 × backbone.width" if self.backbone.kind == "small" else "the channels"
            raise ValueError(
                f"encoder.dim: {self.encoder.dim} differs from {what}: "
                f"{deep}, the channels that it reads; set both alike, or another trunk"
            )
        workers, parts = self.compute.num_workers, self.encoder.accumulate
        if self.encoder.videos_per_batch % (workers * parts):
            raise ValueError(
                f"encoder.videos_per_batch: {self.encoder.videos_per_batch} is no multiple of "
                f"compute.num_workers: {workers} × encoder.accumulate: {parts}, among which it is "
                "divided"
            )
        most = self.supports.most
        if "oracle" in self.evaluation.supports and most > PAIRED_SUPPORTS:
            raise ValueError(
                f"supports.shots: {max(self.supports.shots)} and supports.extra: "
                f"{max(self.supports.extra)} ask for {most} supports, and a benchmark fixes "
                f"{PAIRED_SUPPORTS} for the row 'oracle'; lower them, or take 'oracle' out of "
                "evaluation.supports"
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
            if self.encoder.videos_per_batch > self.benchmark.corpus_clips:
                raise ValueError(
                    f"encoder.videos_per_batch: {self.encoder.videos_per_batch} is more than "
                    f"benchmark.corpus_clips: {self.benchmark.corpus_clips}"
                )
        return self
