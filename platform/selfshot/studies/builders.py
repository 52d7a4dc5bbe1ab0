"""The door to every builder: a benchmark's section in, its manifest folder out."""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfshot.config.benchmarks import PseudoVideosBenchmark, SpritesBenchmark
from selfshot.config.fields import Section
from selfshot.config.schema import Experiment
from selfshot.studies.progress import Progress

if TYPE_CHECKING:
    from selfshot.benchmarks.manifest import Benchmark
    from selfshot.store.local import StageFolder

BUILDERS = {
    "folder": "selfshot.benchmarks.folder:build_folder",
    "davis": "selfshot.benchmarks.davis:build_davis",
    "self_vis": "selfshot.benchmarks.self_shot:build_self_vis",
    "self_ovis": "selfshot.benchmarks.self_shot:build_self_ovis",
    "coco_one_shot": "selfshot.benchmarks.coco:build_coco_one_shot",
}
"""Builders of real videos. Each takes the settings of its section by their names."""

_DIGESTS: ContextVar[dict[str, str] | None] = ContextVar("digests", default=None)


def build_benchmark(
    experiment: Experiment, made_in: StageFolder, progress: Progress, *, carried: bool = False
) -> Benchmark:
    """Build an experiment's benchmark.

    Args:
        experiment: whose `benchmark` and `seed`.
        made_in: where the manifest is written; its scratch notes what is done of it.
        progress: receives what was found.
        carried: whether workers send what they render, as their disks may be others.

    Raises:
        UserError: it cannot be built from these inputs.
    """
    section, folder = experiment.benchmark, made_in.path
    if isinstance(section, SpritesBenchmark):
        from selfshot.benchmarks.sprites.build import build_sprites
        from selfshot.distributed.mapping import parallel_map

        units = parallel_map(
            progress.every("units rendered"),
            max_failures=experiment.compute.max_failures,
            carried=carried,
        )
        scratch = made_in.scratch / "units"
        return build_sprites(folder, scratch, units, section, seed=experiment.seed)
    if isinstance(section, PseudoVideosBenchmark):
        from selfshot.benchmarks.pseudo_videos import build_pseudo_videos

        return build_pseudo_videos(
            folder, section, seed=experiment.seed, on_message=progress.note
        )
    arguments: dict[str, Any] = section.model_dump(exclude={"kind"})
    build = pkgutil.resolve_name(BUILDERS[section.kind])
    made: Benchmark = build(folder, seed=experiment.seed, on_message=progress.note, **arguments)
    return made


@contextlib.contextmanager
def known_digests(known: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Walk over each benchmark's files once, however many trials of a study are made of them.

    Args:
        known: benchmark's section as JSON → digest, where it was computed elsewhere.
    """
    token = _DIGESTS.set(dict(known or {}))
    try:
        digests = _DIGESTS.get()
        assert digests is not None
        yield digests
    finally:
        _DIGESTS.reset(token)


def inputs_digest(experiment: Experiment) -> str | None:
    """A digest of the files that a benchmark is made of; None if it is made of none.

    The files are inputs: other files behind the same paths are another benchmark.
    """
    if isinstance(experiment.benchmark, SpritesBenchmark):
        return None
    known = _DIGESTS.get()
    name = experiment.benchmark.model_dump_json()
    if known is not None and name in known:
        return known[name]
    digest = _walked_digest(experiment)
    if known is not None:
        known[name] = digest
    return digest


def _walked_digest(experiment: Experiment) -> str:
    from selfshot.benchmarks.fingerprint import fingerprint

    files: dict[str, Path] = {}
    roots: list[Path] = []
    for name, value in _paths(experiment.benchmark):
        if value.is_dir():
            roots.append(value)
        else:
            files[name] = value
    return fingerprint(files, roots)


def _paths(section: Section, within: str = "") -> Iterator[tuple[str, Path]]:
    """Each setting of a section that is a path, also those of the sections in it."""
    for name, value in section:
        for index, one in enumerate(value) if isinstance(value, tuple) else ((None, value),):
            place = within + name if index is None else f"{within}{name}[{index}]"
            if isinstance(one, Path):
                yield place, one
            elif isinstance(one, Section):
                yield from _paths(one, f"{place}.")
