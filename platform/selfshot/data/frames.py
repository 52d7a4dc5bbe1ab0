"""Frames of annotated videos, kept as image files or in one video file a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from selfshot.data.guard import DECODE_AT, FileFrames, GuardedDecoder
from selfshot.data.images import read_image
from selfshot.data.video import VideoError, probe
from selfshot.data.ytvis import Video, resolve_frame

PIECE = 16
"""Frames that are held at a time where a video is read piece by piece."""

CHECK_SIDE = 8
"""Frames are decoded this small, only to see that they can be: a JPEG then costs a millisecond."""

CHECKED_AT_ONCE = 256
"""Frames of a video file that are requested at a time to see the same."""


class FrameReader:
    """Reads frames of annotated videos by their index.

    A video file is decoded in a process of its own, which starts at the first one.
    """

    def __init__(self, frames_root: Path) -> None:
        """Nothing is opened yet.

        Args:
            frames_root: what the videos' file names are relative to.
        """
        self.frames_root = frames_root
        self._decoder = GuardedDecoder(decode=DECODE_AT)
        self._sizes: dict[str, tuple[int, int]] = {}

    def read(
        self, video: Video, indices: Sequence[int] | np.ndarray, height: int, width: int
    ) -> UInt8[np.ndarray, "time height width 3"]:
        """Frames of a video, resized, as RGB.

        Args:
            video: whose frames.
            indices: of the frames in the video, in the order to give them back.
            height: of the frames given back, in pixels.
            width: of the frames given back, in pixels.

        Raises:
            VideoError: a file is missing or cannot be decoded, its frames are of another size or
                a video file has another number of them than the annotations say, or no file is
                named.
        """
        (frames,) = self.pieces(video, indices, height, width, size=max(len(indices), 1))
        return frames

    def pieces(
        self,
        video: Video,
        indices: Sequence[int] | np.ndarray,
        height: int,
        width: int,
        *,
        size: int = PIECE,
    ) -> Iterator[UInt8[np.ndarray, "time height width 3"]]:
        """As `read`, but at most `size` frames at a time; a video file is decoded ahead."""
        wanted = [int(index) for index in indices]
        parts = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        if not video.file_names:
            raise VideoError("it names no frames (file_names)", f"video {video.id}")
        if video.video_file is None:
            for part in parts:
                images = np.empty((len(part), height, width, 3), dtype=np.uint8)
                for place, index in enumerate(part):
                    image = resolve_frame(self.frames_root, video.file_names[index])
                    images[place] = read_image(image, height, width, (video.height, video.width))
                yield images
            return
        path = str(resolve_frame(self.frames_root, video.video_file))
        requested = (FileFrames(path, tuple(part), video.length, height, width) for part in parts)
        for frames in self._decoder.decode_many(requested):
            if isinstance(frames, VideoError):
                raise frames
            self._check_size(path, video)
            yield frames.frames

    def fault(self, video: Video) -> str | None:
        """Why a frame of a video cannot be read; None where all can. They are decoded small."""
        if not video.file_names:
            return "it names no frames (file_names)"
        one_file = video.video_file
        # Images one by one, so that the one that cannot be read is named.
        pieces = self.pieces(
            video,
            range(video.length),
            CHECK_SIDE,
            CHECK_SIDE,
            size=CHECKED_AT_ONCE if one_file else 1,
        )
        num_read = 0
        try:
            for piece in pieces:
                num_read += len(piece)
        except VideoError as error:
            name = f"video {one_file}" if one_file else f"frame {video.file_names[num_read]}"
            return f"{name}: {error.reason}"
        return None

    def close(self) -> None:
        """End the processes that decode; reading again starts them again."""
        self._decoder.close()

    def _check_size(self, path: str, video: Video) -> None:
        """Compare a video file, which has been decoded, with its annotations; each file once."""
        if path not in self._sizes:
            facts = probe(path)
            self._sizes[path] = facts.height, facts.width
        height, width = self._sizes[path]
        # Codecs store even sides only: a frame with an odd one was cut or padded by a pixel.
        fits = (
            abs(found - stated) <= stated % 2
            for found, stated in ((height, video.height), (width, video.width))
        )
        if not all(fits):
            raise VideoError(
                f"its frames are {width} × {height} pixels and the annotations say "
                f"{video.width} × {video.height} (width × height)",
                path,
            )
