"""One Ray for all integration tests: it takes seconds to start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # Tests import `engine_parts` by that name, as Ray's workers do.


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """An embedded Ray whose workers also find `engine_parts`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    from selfshot.distributed.session import ray_session

    with ray_session():
        yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips of two whole videos and one broken one: clips.parquet and videos/."""
    import av
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "videos").mkdir()
    for number in range(2):
        with av.open(str(folder / "videos" / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for frame in range(8):
                pixels = np.full((32, 48, 3), 40 + 100 * number, dtype=np.uint8)
                pixels[:, : 6 * frame + 1] = 220
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video" * 50)
    uris = [f"{row % 2}.mp4" for row in range(11)]
    uris[4] = "broken.mp4"
    columns = {
        "clip_id": [f"clip-{row:02d}" for row in range(11)],
        "uri": uris,
        "start_s": pa.array([None] * 10 + [0.5], pa.float64()),
        "end_s": pa.array([None] * 10 + [1.0], pa.float64()),
        "source_id": uris,
    }
    pq.write_table(pa.table(columns), folder / "clips.parquet")
    (folder / "encoder").mkdir()
    return folder
