"""A pretrained network by its folder: embedded through Ray Data, indexed, searched.

The networks are tiny, made by the libraries with random weights; the vectors are those of the
library called directly on the frames that the decoder gives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.unit.models.test_pretrained_networks import (
    DINO,
    MEAN,
    STD,
    TIMM_NETWORKS,
    write_hf,
    write_timm,
)
from transformers import Dinov2Config, VJEPA2Config

from selfshot.cli import main
from selfshot.data.video import sample_frames

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("ray_running")]

FRAMES = 5
CLIPS = 5


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of a block of one colour that moves over noise; one of them is no video."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(CLIPS):
        rng = np.random.default_rng(number)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            noise = rng.integers(0, 255, (64, 96, 3), np.uint8)
            for frame in range(8):
                pixels = noise.copy()
                pixels[8:56, 6 * frame : 6 * frame + 48] = rng.permutation(3) * 30 + 40 * number
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def write_network(kind: str, folder: Path) -> tuple[str, Any]:
    """The name of a network that is written there, and a function from frames to its vector."""
    if kind == "timm":
        name, arguments, _ = TIMM_NETWORKS["convnext"]
        network = write_timm(folder, name, arguments)
        mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]

        def of_timm(images: torch.Tensor) -> torch.Tensor:
            return network.forward_head(network.forward_features(images), pre_logits=True).mean(0)

        return f"timm/local-dir:{folder}", (of_timm, 224, mean, std)
    if kind == "image":
        network = write_hf(folder, Dinov2Config(**DINO, patch_size=14, image_size=42), 42)

        def of_image(images: torch.Tensor) -> torch.Tensor:
            return network(pixel_values=images).pooler_output.mean(0)

        return f"hf/{folder}", (of_image, 42, MEAN, STD)
    config = VJEPA2Config(
        **DINO, crop_size=48, patch_size=16, frames_per_clip=4, pred_hidden_size=16,
        pred_num_hidden_layers=1, pred_num_attention_heads=2,
    )  # fmt: skip
    network = write_hf(folder, config, 48)

    def of_clip(images: torch.Tensor) -> torch.Tensor:
        # Five frames as four: the middles of quarters.
        four = images[[0, 1, 3, 4]][None]
        return network(pixel_values_videos=four).last_hidden_state.mean(1)[0]

    return f"hf/{folder}", (of_clip, 48, MEAN, STD)


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        "image",
        pytest.param("timm", marks=pytest.mark.slow),
        pytest.param("clip", marks=pytest.mark.slow),
    ],
)
def test_embedded_indexed_searched(kind: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    name, (embed, side, mean, std) = write_network(kind, tmp_path / "network")
    out, index = tmp_path / "vectors", tmp_path / "index"
    words = ["embed", "--encoder", name, "--corpus", str(videos), "--out", str(out)]
    assert main([*words, "--set", f"embedding.num_frames={FRAMES}"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["embedded"], summary["quarantined"]) == (CLIPS, 1)
    assert [network["name"] for network in summary["networks"]] == [name]

    (shard,) = out.glob("shard-*.parquet")
    rows = pq.read_table(shard).to_pylist()
    listed = pq.read_table(next((out / "manifest").glob("*.parquet"))).to_pylist()
    uris = {row["clip_id"]: row["uri"] for row in listed}
    assert len(rows) == CLIPS + 1
    for row in rows:
        path, vector = videos / uris[row["clip_id"]], row["embedding"]
        if row["status"] != "embedded":
            assert path.name == "broken.mp4"
            continue
        frames = sample_frames(path, num_frames=FRAMES, height=side, width=side)
        images = (torch.from_numpy(frames) / 255 - torch.tensor(mean)) / torch.tensor(std)
        expected = torch.nn.functional.normalize(embed(images.permute(0, 3, 1, 2)), dim=-1)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)

    assert main(["index", "--embeddings", str(out), "--out", str(index)]) == 0
    query = videos / "3.mp4"
    words = ["search", "--index", str(index), "--encoder", name, "--query", str(query)]
    assert main([*words, "--out", str(tmp_path / "found"), "--count", "2"]) == 0
    (answer,) = json.loads((tmp_path / "found" / "results.json").read_text())
    assert answer["clips"][0]["uri"] == "3.mp4"
    assert answer["clips"][0]["score"] == pytest.approx(1, abs=1e-5)
