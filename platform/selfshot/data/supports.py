"""The supports of a query, and their frames.

A support is named by what it is: the id of a corpus clip (str), the id of an annotated video (int),
or a part of an annotated video (a dict): `{"video", "start", "end"}` of its length, or `{"video",
"box": [left, top, right, bottom]}` of its frames, all as shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfshot.data.clips import ClipReader
from selfshot.data.guard import Clip, GuardedDecoder

Support = str | int | dict[str, Any]

DECODE_LIMIT_S = 20.0


class SupportReader:
    """Frames of supports, from the corpus by clip id or from annotated videos by video id."""

    def __init__(self, clips: Mapping[str, Clip], reader: ClipReader) -> None:
        """Prepare the reading.

        Args:
            clips: of the corpus, by id.
            reader: of the annotated videos; a support has the length and size of its clips.
        """
        self.clips, self.reader = clips, reader
        self.decoder = GuardedDecoder(
            num_frames=reader.num_frames,
            height=reader.height,
            width=reader.width,
            time_limit_s=DECODE_LIMIT_S,
        )

    def frames(self, support: Support) -> np.ndarray:
        """Pixels uint8 (T, H, W, 3) of a corpus clip, an annotated video, or a part of one."""
        if isinstance(support, int):
            return self.reader.frames(support)
        if isinstance(support, dict):
            if "box" in support:
                return self.reader.cut_out(support["video"], support["box"])
            return self.reader.part(support["video"], support["start"], support["end"])
        return self.decoder.decode(self.clips[support])

    def clip(self, support: Support) -> np.ndarray:
        """The same without padding."""
        frames = self.frames(support)
        if isinstance(support, dict) and "box" in support:
            return frames[self.reader.valid_frames(support["video"])]
        return frames[self.reader.valid_frames(support)] if isinstance(support, int) else frames
