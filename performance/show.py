"""How fast are annotations drawn over their frames?

Claim: at 640 × 360 and on one core, `selfshot show` draws hundreds of frames a second, and with its
videos and contact sheets goes through 60 and more; most of the time is the encoder's. Decoding the
frames is what no drawing can do without. Reads annotations and frames that the reader has, by
default the real videos of the folder of shared inputs. Prints frames and videos a second of each
part, and the ratio of a video with its contact sheet to decoding alone.

    python performance/show.py [INSTANCES.json FRAMES]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from selfshot.data.frames import FrameReader
from selfshot.data.ytvis import Annotations, Video, load_annotations
from selfshot.evaluation.rendering.painting import track_instances
from selfshot.evaluation.rendering.videos import Panel, Pictures, Scene, panel_size, show_videos

ROUNDS = 3


def decode(annotations: Annotations, frames: FrameReader) -> float:
    """Seconds to read every frame at the size in which it is drawn."""
    began = time.perf_counter()
    for video in annotations.videos.values():
        for _ in frames.pieces(video, range(video.length), *panel_size(video)):
            pass
    return time.perf_counter() - began


def draw(annotations: Annotations, frames: FrameReader) -> float:
    """Seconds to draw every frame, without reading or writing it."""

    def seconds(video: Video) -> float:
        tracks = annotations.tracks_of(video.id)
        panel = Panel("ground truth", tuple(track_instances(tracks, annotations.categories)))
        pixels = frames.read(video, range(video.length), *panel_size(video))
        began = time.perf_counter()
        scene = Scene(video, [panel], ())
        for index, frame in enumerate(pixels):
            scene.draw(frame, index)
        return time.perf_counter() - began

    return sum(map(seconds, annotations.videos.values()))


def show(annotations: Annotations, frames: FrameReader, formats: tuple[str, ...]) -> float:
    """Seconds of what `selfshot show` does once the annotations are read."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        videos = list(annotations.videos)
        show_videos(annotations, frames, Pictures(Path(folder), formats, fps=6.0), videos)
        return time.perf_counter() - began


def main() -> None:
    shared = Path(os.environ.get("SELFSHOT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    real = shared / "data" / "vis_real"
    given = [Path(word) for word in sys.argv[1:3]]
    instances, root = given if len(given) == 2 else (real / "instances.json", real / "frames")
    if not instances.is_file() or not root.is_dir():
        sys.exit(f"no {instances} or no {root}; give INSTANCES.json and FRAMES")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    annotations, frames = load_annotations(instances), FrameReader(root)
    ways: dict[str, Callable[[], float]] = {
        "decoding alone": lambda: decode(annotations, frames),
        "drawing alone": lambda: draw(annotations, frames),
        "mp4": lambda: show(annotations, frames, ("mp4",)),
        "mp4 and png": lambda: show(annotations, frames, ("mp4", "png")),
        "gif": lambda: show(annotations, frames, ("gif",)),
        "png": lambda: show(annotations, frames, ("png",)),
    }
    best = {name: float("inf") for name in ways}
    for _ in range(ROUNDS):  # in turn, so that a drifting machine hits all alike
        for name, way in ways.items():
            best[name] = min(best[name], way())
    num_videos = len(annotations.videos)
    num_frames = sum(video.length for video in annotations.videos.values())
    print(f"{num_videos} videos, {num_frames} frames, one core, best of {ROUNDS}")
    for name, seconds in best.items():
        print(
            f"{name:15} {num_frames / seconds:7.1f} frames/s {num_videos / seconds:6.1f} videos/s"
            f"  {seconds:6.2f} s"
        )
    print(
        f"ratio           {best['mp4 and png'] / best['decoding alone']:.2f} mp4 and png/decoding"
    )


if __name__ == "__main__":
    main()
