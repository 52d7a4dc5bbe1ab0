"""`selfshot show`: draw annotations and results over their frames."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfshot.cli.app import Format, Formats, Fps, MinScore, Top, app
from selfshot.cli.reading import bars
from selfshot.config.printable import printable
from selfshot.errors import UserError

if TYPE_CHECKING:
    from selfshot.benchmarks.manifest import Benchmark
    from selfshot.data.ytvis import Annotations


@app.command()
def show(
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="G.json", help="Annotations, YouTube-VIS JSON."),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option("--frames", metavar="FOLDER", help="What their file names are relative to."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="R.json", help="Predictions, drawn beside them."),
    ] = None,
    benchmark: Annotated[
        Path | None,
        typer.Option("--benchmark", metavar="FOLDER", help="Take those of a built benchmark."),
    ] = None,
    supports: Annotated[
        Path | None,
        typer.Option(
            "--supports",
            metavar="S.json",
            help="With --benchmark: show these supports beside their queries.",
        ),
    ] = None,
    videos: Annotated[
        list[str] | None,
        typer.Option("--video", metavar="ID", help="Only this video, by id or name; repeatable."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where pictures are written.")
    ] = Path("shown"),
    formats: Formats = None,
    min_score: MinScore = 0.0,
    top: Top = 5,
    fps: Fps = 6.0,
) -> None:
    """Draw annotations and results over their frames: videos, contact sheets and a page."""
    source, frames_root, manifest = _sources(annotations, frames, benchmark, supports)
    if results is not None and not results.is_file():
        raise UserError(
            f"--results: {results} is no file (allowed: a YouTube-VIS JSON)", setting="--results"
        )

    from selfshot.data.frames import FrameReader
    from selfshot.data.images import is_sorted_as_text
    from selfshot.data.ytvis import load_annotations, load_results
    from selfshot.evaluation.rendering.videos import Pictures, Selection, show_videos

    loaded = load_annotations(source)
    selection = None
    if results is not None:
        try:
            predictions = load_results(results, loaded)
        except UserError as error:
            raise UserError(f"{error} (are these results of {source}?)") from None
        selection = Selection(predictions, min_score, top)
    chosen = None
    if benchmark is not None and supports is not None and manifest is not None:
        from selfshot.evaluation.support_rows import SupportsFile

        chosen = SupportsFile(supports, benchmark, manifest, manifest.reader(benchmark))
    wanted = _wanted(loaded, videos, chosen.queries if chosen else list(loaded.videos), source)
    with bars() as shown:
        task = shown.add_task("", total=len(wanted))
        drawn, left_out = show_videos(
            loaded,
            FrameReader(frames_root),
            Pictures(
                out,
                [str(one) for one in formats or (Format.MP4, Format.PNG)],
                fps,
                title=" and ".join(str(path) for path in (benchmark or source, results) if path),
            ),
            wanted,
            results=selection,
            supports=chosen.rows if chosen else None,
            on_video=lambda name: shown.update(task, advance=1, description=name),
        )
    if not drawn:
        name, reason = left_out[0]
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise UserError(
            f"--frames: no video can be drawn from {frames_root}, which the file_names of {source} "
            f"must be relative to: video {name}: {reason}{more}",
            setting="--frames",
        )
    mixed = [number for number in wanted if is_sorted_as_text(loaded.videos[number].file_names)]
    if mixed:
        print(
            f"{len(mixed)} videos list their frames as 0, 1, 10, 2, such as video {mixed[0]}: is "
            "that their order in time?",
            file=sys.stderr,
        )
    for name, reason in left_out:
        print(printable(f"left out: video {name}: {reason}"), file=sys.stderr)
    print(f"{len(drawn)} of {len(wanted)} videos drawn: {out / 'index.html'}")


def _sources(
    annotations: Path | None, frames: Path | None, benchmark: Path | None, supports: Path | None
) -> tuple[Path, Path, Benchmark | None]:
    """The annotations, the folder of the frames, and the benchmark if they are one's."""
    if benchmark is None:
        if supports is not None:
            raise UserError(
                "show: --supports needs --benchmark, whose clips they are", setting="--supports"
            )
        if annotations is None or frames is None:
            missing = "--frames" if annotations else "--annotations" if frames else None
            said = f"{missing} is missing; give both, or --benchmark"
            if missing is None:
                said = "nothing to draw; give --annotations and --frames, or --benchmark"
            raise UserError(f"show: {said}", setting=missing)
        if not annotations.is_file():
            raise UserError(
                f"--annotations: {annotations} is no file (allowed: a YouTube-VIS JSON)",
                setting="--annotations",
            )
        if not frames.is_dir():
            raise UserError(
                f"--frames: {frames} is no folder; give the folder of the frames",
                setting="--frames",
            )
        return annotations, frames, None
    if annotations is not None or frames is not None:
        raise UserError(
            "show: --benchmark brings its own --annotations and --frames; leave them",
            setting="--benchmark",
        )
    if supports is not None and not supports.is_file():
        raise UserError(
            f"--supports: {supports} is no file (allowed: a run's supports.json)",
            setting="--supports",
        )
    if not (benchmark / "benchmark.json").is_file():
        raise UserError(
            f"--benchmark: {benchmark} holds no benchmark.json; give a folder that selfshot "
            "benchmark build has made",
            setting="--benchmark",
        )
    from selfshot.benchmarks.manifest import load_benchmark

    try:
        manifest = load_benchmark(benchmark)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"--benchmark: {benchmark / 'benchmark.json'} cannot be read: {error}; build the "
            "benchmark again",
            setting="--benchmark",
        ) from None
    root = (benchmark / manifest.frames_root).resolve()
    if not root.is_dir():
        raise UserError(
            f"--benchmark: the frames of {benchmark} are not in {root}; build the benchmark again",
            setting="--benchmark",
        )
    return benchmark / "annotations.json", root, manifest


def _wanted(
    annotations: Annotations, words: Sequence[str] | None, otherwise: list[int], source: Path
) -> list[int]:
    """Ids of the videos to draw.

    Raises:
        UserError: a video that is wanted is none of the file's, or the file has none.
    """
    from selfshot.evaluation.rendering.videos import video_name

    if not otherwise:
        raise UserError(f"{source}: it has no videos; give annotations of some")
    if not words:
        return otherwise
    by_word: dict[str, list[int]] = {}
    for number, video in annotations.videos.items():
        by_word.setdefault(video_name(video), []).append(number)
    # An id counts more than a name that looks like it.
    by_word |= {str(number): [number] for number in annotations.videos}
    wanted: list[int] = []
    for word in words:
        if word not in by_word or not word:
            close = difflib.get_close_matches(word, by_word, 3, 0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "give an id or a name of it"
            raise UserError(f"--video: {word} is no video of {source} ({hint})", setting="--video")
        wanted += by_word[word]
    return list(dict.fromkeys(wanted))
