"""The `benchmark` section, one model for each kind; docs/guide/benchmarks.md describes them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from selfshot.config.fields import Count, FilePath, NonNegative, Positive, Section, Share

PAIRED_SUPPORTS = 10
"""Supports that a manifest fixes for each val and test query; the first k are those of k shots."""

Side = Annotated[int, Field(ge=32, multiple_of=8)]


class SpritesBenchmark(Section):
    """Synthetic videos, which the program renders; see docs/guide/sprites.md."""

    kind: Literal["sprites"] = "sprites"
    height: Side = 64
    width: Side = 64
    num_frames: Annotated[int, Field(ge=2)] = 8
    train_classes: Annotated[int, Field(ge=2)] = Field(48, description="seen classes, with masks")
    val_classes: Count = Field(8, description="unseen classes on which choices are made")
    test_classes: Count = Field(10, description="unseen classes that are scored")
    train_queries: Count = Field(24, description="training query videos of each seen class")
    train_supports: Count = Field(24, description="training support videos of each seen class")
    eval_queries: Count = Field(24, description="val and test query videos of each unseen class")
    eval_supports: Count = Field(12, description="oracle support videos of each unseen class")
    corpus_clips: Count = 3000
    corpus_seen_classes: Annotated[int, Field(ge=0)] = Field(
        12, description="seen classes in the corpus beside every val and test class"
    )
    multi_shot_share: Share = Field(0.5, description="share of corpus clips with several shots")

    @model_validator(mode="after")
    def _corpus_seen_within_train(self) -> SpritesBenchmark:
        if self.corpus_seen_classes > self.train_classes:
            raise ValueError(
                f"corpus_seen_classes: {self.corpus_seen_classes} is more than "
                f"train_classes: {self.train_classes}; lower the first or raise the second"
            )
        return self


class RealVideos(Section):
    """What every benchmark of real videos says."""

    frames: FilePath = Field(description="folder of the frames")
    corpus: FilePath = Field(
        description="folder of unlabelled clips, searched recursively, or a corpus that "
        "`selfshot corpus build` wrote"
    )
    corpus_labels: FilePath | None = Field(
        None, description="CSV with columns clip, rough_label; for diagnosis only"
    )
    height: Side = 96
    width: Side = 160
    num_frames: Count = 8


class NamedSplits(RealVideos):
    """The unseen classes are named; all others are seen."""

    val_classes: tuple[str, ...] = Field(
        description="unseen classes on which choices are made (at least one)", min_length=1
    )
    test_classes: tuple[str, ...] = Field(
        description="unseen classes that are scored (at least one)", min_length=1
    )

    @model_validator(mode="after")
    def _disjoint(self) -> NamedSplits:
        both = sorted(set(self.val_classes) & set(self.test_classes))
        if both:
            raise ValueError(f"val_classes and test_classes share {both}; a class has one split")
        return self


class DealtSplits(RealVideos):
    """The unseen classes are published; their videos are dealt to val and test."""

    val_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="share of each unseen class's sources that goes to val"
    )


class FolderBenchmark(NamedSplits):
    """Real annotated videos (YouTube-VIS JSON + frames) and a folder of real clips."""

    kind: Literal["folder"]
    annotations: FilePath = Field(description="YouTube-VIS JSON")


class DavisBenchmark(NamedSplits):
    """A folder of frames and one of indexed PNG masks for each sequence."""

    kind: Literal["davis"]
    masks: FilePath = Field(description="folder of the sequences' folders of indexed PNGs")
    classes: FilePath | None = Field(
        None, description="CSV with columns sequence, object, class; none: the sequences' names"
    )


class SelfVisBenchmark(DealtSplits):
    """Self-VIS: YouTube-VIS's training videos of one class each."""

    kind: Literal["self_vis"]
    annotations: FilePath = Field(description="YouTube-VIS 2021 or 2019 training JSON")
    extra_annotations: FilePath | None = Field(None, description="the other edition's JSON")


class SelfOvisBenchmark(DealtSplits):
    """Self-OVIS: OVIS's training videos."""

    kind: Literal["self_ovis"]
    annotations: FilePath = Field(description="OVIS training JSON")


class CocoOneShotBenchmark(DealtSplits):
    """COCO's images as videos of one frame, a quarter of the classes unseen."""

    kind: Literal["coco_one_shot"]
    annotations: FilePath = Field(description="COCO instances JSON")
    eval_annotations: FilePath | None = Field(
        None, description="another one, of the scored images; those of the first only train"
    )
    eval_frames: FilePath | None = Field(
        None, description="folder of these images; none: frames"
    )
    fold: Annotated[int, Field(ge=1, le=4)] = Field(
        1, description="unseen: every fourth class from this one on, in the order of the ids"
    )
    height: Side = 128
    width: Side = 128
    num_frames: Literal[1] = 1

    @model_validator(mode="after")
    def _frames_of_something(self) -> CocoOneShotBenchmark:
        if self.eval_frames is not None and self.eval_annotations is None:
            raise ValueError(
                "eval_frames: belongs to eval_annotations, which is missing; give both, or neither"
            )
        return self


class PhotoSource(Section):
    """Photos with masks."""

    annotations: FilePath = Field(description="COCO instances JSON")
    images: FilePath = Field(description="folder of the images")


class VideoSource(Section):
    """Annotated videos."""

    annotations: FilePath = Field(description="YouTube-VIS JSON")
    frames: FilePath = Field(description="folder of the frames")


Range = tuple[NonNegative, NonNegative]


class SceneConfig(Section):
    """How a photo becomes a clip: a camera's path, pasted objects, light."""

    zoom: Range = Field(
        (0.55, 1.0), description="side of a view as a share of the largest in the photo"
    )
    close_up: Range = Field(
        (1.2, 2.2), description="side of a support's view over its object's; of corpus clips too"
    )
    travel: Share = Field(
        0.6, description="share of the way that a camera may go and still show the object"
    )
    turn: NonNegative = Field(6.0, description="of a camera, at most, in degrees")
    tilt: Annotated[float, Field(ge=0.0, le=0.4)] = Field(
        0.08, description="of a camera, at most: see ops/cameras.py"
    )
    pasted_target: Share = Field(
        0.5, description="share of clips whose object is pasted into another photo"
    )
    distractors: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        (1, 3), description="objects of other classes that are pasted into a query, from and to"
    )
    object_side: Range = Field(
        (0.35, 0.8), description="of a pasted object, as a share of the frame's shorter side"
    )
    object_travel: NonNegative = Field(
        0.35, description="way of a pasted object at most, as a share of the frame's width"
    )
    object_turn: NonNegative = Field(12.0, description="of a pasted object, at most, in degrees")
    enlarged: Positive = Field(2.0, description="pixels to one of the photo, at most")
    light: Share = Field(0.15, description="of brightness, contrast, colours and their drift")
    blur: Share = Field(0.25, description="share of clips with motion blur")
    noise: NonNegative = Field(3.0, description="deviation at most, in grey values of 255")

    @field_validator("zoom", "close_up", "object_side", "distractors")
    @classmethod
    def _from_low_to_high(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"{list(bounds)} is not allowed (the lower one first)")
        return bounds

    @field_validator("zoom", "close_up", "object_side")
    @classmethod
    def _above_zero(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] < 0.05:
            raise ValueError(f"{list(bounds)} is not allowed (at least 0.05)")
        return bounds


class PseudoVideosBenchmark(Section):
    """Clips that are made of photos with masks; training ones anew in every batch."""

    kind: Literal["pseudo_videos"]
    sources: tuple[PhotoSource, ...] = Field(
        description="annotations and images of each set of photos (at least one)", min_length=1
    )
    aliases: dict[str, str] = Field(
        {}, description="names of classes → the class that they are counted as"
    )
    val_classes: tuple[str, ...] = Field(
        description="unseen classes on which choices are made (at least one)", min_length=1
    )
    test_classes: tuple[str, ...] = Field(
        description="unseen classes that are scored (at least one)", min_length=1
    )
    height: Side = 112
    width: Side = 192
    num_frames: Annotated[int, Field(ge=2)] = 6
    min_object: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.015, description="share of a photo that an object covers at least to be a target"
    )
    bystanders: Share = Field(
        0.15,
        description="share of the seen classes' photos that never train: val and test clips "
        "have their distractors of them",
    )
    eval_photos: Count = Field(
        100, description="query photos of each val and test class at most; support photos likewise"
    )
    eval_queries: Count = Field(2, description="clips of each val and test query photo")
    eval_supports: Count = Field(2, description="oracle support clips of each support photo")
    corpus_clips: Count = 2000
    corpus_unseen: Share = Field(
        0.5, description="share of these clips that show an unseen class"
    )
    videos: VideoSource | None = Field(
        None, description="real videos: those that show a val or test class are queries as well"
    )
    corpus: FilePath | None = Field(
        None, description="folder of unlabelled clips that join the corpus's own"
    )
    corpus_labels: FilePath | None = Field(
        None, description="CSV with columns clip, rough_label; for diagnosis only"
    )
    scene: SceneConfig = SceneConfig()

    @model_validator(mode="after")
    def _labels_of_something(self) -> PseudoVideosBenchmark:
        if self.corpus_labels is not None and self.corpus is None:
            raise ValueError(
                "corpus_labels: belongs to corpus, which is missing; give both, or neither"
            )
        return self

    @model_validator(mode="after")
    def _disjoint(self) -> PseudoVideosBenchmark:
        both = sorted(set(self.val_classes) & set(self.test_classes))
        if both:
            raise ValueError(f"val_classes and test_classes share {both}; a class has one split")
        return self


Benchmark = Annotated[
    SpritesBenchmark
    | FolderBenchmark
    | DavisBenchmark
    | SelfVisBenchmark
    | SelfOvisBenchmark
    | CocoOneShotBenchmark
    | PseudoVideosBenchmark,
    Field(discriminator="kind"),
]

KINDS: tuple[str, ...] = tuple(
    get_args(section.model_fields["kind"].annotation)[0]
    for section in get_args(get_args(Benchmark)[0])
)
