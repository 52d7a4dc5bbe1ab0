"""`selfshot predict` on parts that were made without the engine, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from selfshot import cli
from selfshot.benchmarks.manifest import read_corpus
from selfshot.benchmarks.sprites.build import build_sprites
from selfshot.benchmarks.written import encode_h264
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.retrieval.index import build_index
from selfshot.studies import predicting
from selfshot.training.backbone import export_untrained
from selfshot.training.encoder import EncoderTask
from selfshot.training.vis import VisTask

SIDE, FRAMES = 32, 3
YAML = """
name: tiny
benchmark: {kind: sprites, height: 32, width: 32, num_frames: 3}
backbone: {width: 8, dim: 12}
supports: {shots: [1, 2]}
vis: {heads: 2}
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the stages, with weights drawn at random."""
    root = tmp_path_factory.mktemp("predict")
    folders = {name: root / name for name in ("benchmark", "backbone", "encoder", "index", "vis")}
    folders["benchmark"].mkdir()
    sizes = SpritesBenchmark(
        height=SIDE, width=SIDE, num_frames=FRAMES, train_classes=2, val_classes=1,
        test_classes=1, train_queries=2, train_supports=2, eval_queries=1,
        eval_supports=1, corpus_clips=7, corpus_seen_classes=1, multi_shot_share=0.0,
    )  # fmt: skip
    build_sprites(folders["benchmark"], root / "scratch", map, sizes, seed=0)
    network = {"width": 8, "dim": 12}
    export_untrained(
        folders["backbone"] / "export",
        {"benchmark": str(folders["benchmark"]), "seed": 0, "backbone": network},
    )
    paths = {
        "benchmark": str(folders["benchmark"]),
        "backbone": str(folders["backbone"] / "export"),
    }
    phi = {"videos_per_batch": 2, "crops_per_video": 2, "queue_length": 0}
    encoder = EncoderTask(**paths, backbone_network=network, seed=0, encoder=phi)
    model = {"heads": 2, "decoder_layers": 1, "ffn_dim": 8, "num_instances": 3}
    vis = VisTask(**paths, seed=0, vis=model)
    for name, task in (("encoder", encoder), ("vis", vis)):
        (folders[name] / "export").mkdir(parents=True)
        task.module.eval()
        task.export(folders[name] / "export")
    clips = [row["clip_id"] for row in read_corpus(folders["benchmark"])]
    vectors = np.random.default_rng(0).normal(size=(len(clips), 32)).astype(np.float32)
    folders["index"].mkdir()
    build_index(vectors, clips).save(folders["index"])
    return folders


@pytest.fixture
def experiment(parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment whose stages are those parts."""
    monkeypatch.setattr(
        predicting, "stage_folders", lambda _, wanted: {name: parts[name] for name in wanted}
    )
    (tmp_path / "tiny.yaml").write_text(YAML)
    return tmp_path / "tiny.yaml"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Eight frames in a file with a name that is not plain."""
    path = tmp_path / "my vidéo.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for frame in range(8):
            pixels = np.full((40, 48, 3), 60, np.uint8)
            pixels[10:20, 4 * frame : 4 * frame + 10] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def _said(capsys: Any, *words: object) -> tuple[int, str]:
    code = cli.main(["predict", *map(str, words)])
    caught = capsys.readouterr()
    return code, caught.out + caught.err


@pytest.mark.parametrize("given", [False, True], ids=["retrieved", "given"])
def test_a_video_of_ones_own(
    experiment: Path, video: Path, tmp_path: Path, given: bool, capsys: Any
) -> None:
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "red.png")
    supports = ["--supports", tmp_path / "red.png", "--supports", video] if given else []
    out = tmp_path / "out"
    code, said = _said(
        capsys, experiment, "--video", video, "--out", out, "--min-score", 0, "--attention",
        *supports,
    )  # fmt: skip
    assert code == 0, said
    assert ("red.png, my vidéo.mp4" if given else "clip_") in said
    assert "window 4 of 4" in said
    entries = json.loads((out / "results.json").read_text())
    assert len(entries) >= 3
    for entry in entries:
        assert set(entry) == {"video_id", "category_id", "score", "segmentations"}
        assert len(entry["segmentations"]) == 8 and 0 <= entry["score"] <= 1
        assert all(one is None or one["size"] == [40, 48] for one in entry["segmentations"])
    assert {path.suffix for path in out.iterdir()} == {".json", ".mp4", ".png", ".gif", ".html"}


def test_a_folder_of_frames(experiment: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "frames").mkdir()
    for t in range(2):
        Image.new("RGB", (26, 18), (9, 99, 9)).save(tmp_path / "frames" / f"{t}.jpg")
    code, said = _said(
        capsys, experiment, "--video", tmp_path / "frames", "--out", tmp_path / "out",
        "--shots", 1, "--format", "png",
    )  # fmt: skip
    assert code == 0 and "window 1 of 1" in said


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".bmp", ".tif", ".PNG"])
def test_frames_and_supports_of_any_format(
    experiment: Path, tmp_path: Path, suffix: str, capsys: Any
) -> None:
    """Frames whose numbers are not padded: their colour says their order."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for t in range(12):
        picture = Image.new("RGB", (32, 32), (20 * t, 20 * t, 20 * t))
        picture.save(folder / f"{t}{suffix}", lossless=True)  # Of WebP; the others always are.
    code, said = _said(
        capsys, experiment, "--video", folder, "--out", tmp_path / "out", "--format", "png",
        "--supports", folder / f"0{suffix}", "--supports", folder,
    )  # fmt: skip
    assert code == 0, said
    assert f"supports: 0{suffix}, frames" in said
    video, reader = predicting.open_video(folder)
    assert reader.read(video, range(12), 1, 1)[:, 0, 0, 0].tolist() == [20 * t for t in range(12)]
    supports = predicting.read_clips([folder, folder / f"11{suffix}"], 3, (8, 8), "--supports")
    assert [one.frames[:, 4, 4, 1].tolist() for one in supports] == [[40, 120, 200], [220]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.png", "01.png"], "01.png and 1.png are the same frame by their numbers"),
        (["0.png", "1.tall.png"], "1.tall.png: the frame is 18 × 26 pixels and its video is 26"),
        (["0.png", "1.zero.png"], "1.zero.png: the file is empty"),
    ],
)
def test_folders_of_frames_that_are_refused(
    experiment: Path, tmp_path: Path, names: list[str], expected: str, capsys: Any
) -> None:
    (tmp_path / "frames").mkdir()
    for name in names:
        size = (18, 26) if "tall" in name else (26, 18)
        path = tmp_path / "frames" / name
        if "zero" in name:
            path.touch()
        else:
            Image.new("RGB", size).save(path)
    for supports in ([], ["--supports", tmp_path / "frames" / names[0]]):
        code, said = _said(
            capsys, experiment, "--video", tmp_path / "frames", "--out", tmp_path / "out", *supports
        )
        assert code == 2 and "--video: " in said and expected in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--video", "none.mp4"], "--video: none.mp4 does not exist"),
        (["--video", "note.txt"], "is no video"),
        (["--video", "broken.mp4"], "--video: broken.mp4: "),
        (["--video", "empty"], "holds no images"),
        (["--video", "good.mp4", "--supports", "none.png"], "--supports: none.png does not exist"),
        (["--video", "good.mp4", "--supports", "broken.mp4"], "--supports: broken.mp4: "),
        (["--video", "good.mp4", "--supports", "empty"], "--supports: empty: it holds no images"),
        (["--video", "good.mp4", "--supports", "note.txt"], "neither an image nor a video"),
        (
            ["--video", "good.mp4", "--supports", "two.gif"],
            "two.gif: the image cannot be read: it ",
        ),
        (
            ["--video", "good.mp4", "--supports", "a.mp4", "--shots", "2"],
            "predict: --shots is for supports",
        ),
    ],
)
def test_mistakes(
    experiment: Path,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
    capsys: Any,
) -> None:
    monkeypatch.chdir(experiment.parent)
    video.rename("good.mp4")
    Path("note.txt").write_text("no video")
    Path("broken.mp4").write_bytes(b"no video" * 99)
    Path("empty").mkdir()
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save("two.gif", save_all=True, append_images=[blue])
    code, said = _said(capsys, experiment, *words)
    assert code == 2 and expected in said


def test_stages_must_be_done(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(YAML)
    code, said = _said(capsys, "tiny.yaml", "--video", "x.mp4")
    assert code == 2 and "benchmark, vis, encoder, index are not done in runs" in said


def _clips(folder: Path, shades: dict[str, int]) -> Path:
    """Clips of one grey each."""
    folder.mkdir(exist_ok=True)
    for name, shade in shades.items():
        (folder / f"{name}.mp4").write_bytes(encode_h264(np.full((4, 40, 48, 3), shade, np.uint8)))
    return folder


def _supports_of(said: str) -> list[str]:
    """Ids of the clips that the line of the supports names."""
    (line,) = (line for line in said.splitlines() if line.startswith("supports: "))
    return [part.split()[0] for part in line.removeprefix("supports: ").split(", ")]


class TestCorpusOfOnesOwn:
    """Supports out of a folder of clips, which is embedded once."""

    @pytest.mark.slow
    def test_embedded_once_and_anew_where_a_file_changed(
        self, experiment: Path, video: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        clips = _clips(tmp_path / "my clips", {"dark": 40, "grey": 120, "light": 220})
        words = [
            experiment, "--video", video, "--corpus", clips, "--out", tmp_path / "out",
            "--set", "supports.duplicate_cosine=1.0", "--format", "png",
        ]  # fmt: skip
        code, said = _said(capsys, *words)
        assert code == 0, said
        assert "3 embedded + 0 quarantined = 3 clips" in said
        first = _supports_of(said)
        assert len(first) == 2 and json.loads((tmp_path / "out" / "results.json").read_text())
        code, said = _said(capsys, *words, "--without", first[0])
        assert code == 0 and " embedded + " not in said, "what is made is reused"
        assert _supports_of(said)[0] == first[1] and first[0] not in _supports_of(said)
        words[4] = clips = clips.rename(tmp_path / "renamed")
        code, said = _said(capsys, *words)
        assert code == 0 and " embedded + " not in said, said
        assert _supports_of(said) == first
        _clips(clips, {"white": 250})
        code, said = _said(capsys, *words, "--shots", 4)
        assert code == 0 and "4 embedded + 0 quarantined = 4 clips" in said
        assert len(set(_supports_of(said))) == 4

    def test_mistakes(self, experiment: Path, video: Path, tmp_path: Path, capsys: Any) -> None:
        words = [experiment, "--video", video, "--out", tmp_path / "out"]
        code, said = _said(capsys, *words, "--corpus", tmp_path / "none")
        assert code == 2 and "--corpus: " in said and "is no folder" in said
        code, said = _said(capsys, *words, "--without", "clip_999999")
        assert code == 2 and "--without: clip_999999 is no clip of the corpus" in said
        for option in (["--corpus", tmp_path], ["--without", "clip_000000"]):
            code, said = _said(capsys, *words, "--supports", video, *option)
            assert code == 2 and f"predict: {option[0]} is for supports that" in said

    def test_a_clip_that_is_passed_over(
        self, experiment: Path, video: Path, tmp_path: Path, capsys: Any
    ) -> None:
        words = [
            experiment, "--video", video, "--out", tmp_path / "out", "--shots", 3,
            "--set", "supports.duplicate_cosine=1.0", "--format", "png",
        ]  # fmt: skip
        code, said = _said(capsys, *words)
        assert code == 0
        found = _supports_of(said)
        code, said = _said(capsys, *words, "--without", found[1])
        assert code == 0
        left = _supports_of(said)
        assert left[:2] == [found[0], found[2]] and len(left) == 3 and found[1] not in left
