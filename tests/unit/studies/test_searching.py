"""`selfshot search --index`: what is nearest to a query, where it lies, and how it looks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refusals import refused
from selfshot.config.load import parse_experiment
from selfshot.data.corpus_manifest import open_manifest
from selfshot.data.storage import Storage
from selfshot.distributed.shards import ShardWriter, make_slices
from selfshot.models.encoders import LoadedEncoder
from selfshot.studies import corpus, searching
from selfshot.studies.searching import RESULTS, SHEET, search_index, write_results

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}


class MeanColour:
    """The mean colour of a clip, less grey."""

    def embed(self, frames: np.ndarray) -> np.ndarray:
        return (frames.mean((1, 2, 3)) - 110).astype(np.float32)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of three clips, each of one colour, as `selfshot embed` and `selfshot index` leave it."""
    import av

    folder, shards = tmp_path / "clips", tmp_path / "vectors"
    folder.mkdir()
    frames = []
    for name, colour in COLOURS.items():
        frames.append(np.broadcast_to(np.uint8(colour), (3, 32, 48, 3)))
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=3)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for pixels in frames[-1]:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    columns = {
        "clip_id": list(COLOURS), "uri": [f"{name}.mp4" for name in COLOURS],
        "start_s": [None, 0.0, None], "end_s": [None, 1.0, None],
    }  # fmt: skip
    (shards / "manifest").mkdir(parents=True)
    pq.write_table(pa.table(columns), shards / "manifest" / "clips.parquet")
    (shards / "manifest" / "corpus.json").write_text(json.dumps({"root": str(folder)}))
    manifest = open_manifest(str(shards / "manifest"))
    settings = {"encoder": "colour", "num_frames": 3, "height": 32, "width": 48,
                "precision": "float32"}  # fmt: skip
    storage = Storage(str(shards))
    (part,) = make_slices(manifest, 9)
    writer = ShardWriter(
        storage, [part], settings, dtype="float32", max_share=1.0, on_progress=None
    )
    vectors = MeanColour().embed(np.stack(frames))
    none = np.zeros(3)
    writer.take(
        {"row": np.arange(3), "clip_id": np.array(list(COLOURS), object), "embedding": vectors,
         "error": np.full(3, "", object), "decoded": none, "expected": none, "decode_s": none,
         "model_s": none}
    )  # fmt: skip
    how = parse_experiment("name: index", "the defaults")
    corpus.index(how, embeddings=shards, out=tmp_path / "index")
    monkeypatch.setattr(
        searching, "open_encoder", lambda name, precision: LoadedEncoder(MeanColour(), name, 32, 48)
    )
    return tmp_path / "index"


def test_the_nearest_clips_are_named_placed_and_drawn(index: Path, tmp_path: Path) -> None:
    still = tmp_path / "lime.png"
    Image.new("RGB", (96, 64), (60, 220, 40)).save(still)
    queries = [still, tmp_path / "clips" / "blue.mp4"]
    found, manifest = search_index(index, queries, 2, encoder="colour", corpus=None)
    assert [one.name for one in found] == ["lime.png", "blue.mp4"]
    green, blue = found[0].hits[0], found[1].hits[0]
    assert (green.clip_id, green.uri, green.start_s, green.end_s) == ("green", "green.mp4", 0, 1)
    assert blue.clip_id == "blue" and blue.score == pytest.approx(1, abs=0.01)
    assert all(one.hits[0].score >= one.hits[1].score for one in found)
    write_results(tmp_path / "out", found, manifest)
    listed = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert [one["clips"][0]["clip_id"] for one in listed] == ["green", "blue"]
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for name in ("green", "blue"):
        assert (np.abs(pixels - COLOURS[name]).max(1) < 12).sum() > 500, name


def test_another_encoder_is_refused(index: Path) -> None:
    query = [index.parent / "clips" / "blue.mp4"]
    with refused("--encoder"):
        search_index(index, query, 2, encoder="other", corpus=None)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with refused("--index"):
        search_index(tmp_path, [tmp_path], 2, encoder="colour", corpus=None)
