"""`selfshot show`: what it draws, and one message with exit code 2 for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfshot import cli
from selfshot.benchmarks.manifest import Benchmark, write_corpus, write_corpus_labels
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH, LENGTH = 40, 56, 4
Say = Callable[..., tuple[int, str, str]]


def _mask() -> dict:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 15:40] = True
    return encode_rle(mask)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs `selfshot show` beside annotations g.json, frames in f and results r.json."""
    monkeypatch.chdir(tmp_path)
    document: dict = {"videos": [], "categories": [{"id": 1, "name": "swan"}], "annotations": []}
    for number, name in ((1, "lake"), (2, "pond")):
        names = [f"{name}/{index}.png" for index in range(LENGTH)]
        Path("f", name).mkdir(parents=True)
        for index, file_name in enumerate(names):
            pixels = np.full((HEIGHT, WIDTH, 3), 40 * number + 10 * index, np.uint8)
            Image.fromarray(pixels).save(Path("f", file_name))
        size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH}
        document["videos"].append({"id": number, "file_names": names} | size)
        track = {"id": number, "video_id": number, "category_id": 1}
        document["annotations"].append(track | {"segmentations": [_mask()] * LENGTH})
    Path("g.json").write_text(json.dumps(document))
    found = {"video_id": 2, "category_id": 1, "score": 0.5, "segmentations": [_mask()] * LENGTH}
    Path("r.json").write_text(json.dumps([found]))
    Path("other.json").write_text(json.dumps([found | {"video_id": 77}]))
    Path("empty").mkdir()

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["show", *words])
        return code, *capsys.readouterr()

    return run


BOTH = ("--annotations", "g.json", "--frames", "f")


def test_every_video_is_drawn(say: Say) -> None:
    code, out, _ = say(*BOTH)
    assert code == 0 and out == "2 of 2 videos drawn: shown/index.html\n"
    names = {"1_lake.mp4", "1_lake.png", "2_pond.mp4", "2_pond.png", "index.html"}
    assert {path.name for path in Path("shown").iterdir()} == names


@pytest.mark.parametrize("word", ["2", "pond"])
def test_one_video_by_id_or_name(say: Say, word: str) -> None:
    code, out, _ = say(*BOTH, "--results", "r.json", "--video", word, "--out", "o", "--format=gif")
    assert code == 0 and out == "1 of 1 videos drawn: o/index.html\n"
    assert {path.name for path in Path("o").iterdir()} == {"2_pond.gif", "index.html"}


def test_a_broken_video_is_told_and_costs_itself(say: Say) -> None:
    Path("f/lake/2.png").unlink()
    code, out, err = say(*BOTH)
    assert code == 0 and out.startswith("1 of 2 videos drawn")
    assert "left out: video 1 · lake: " in err and "2.png: no such image" in err


WRONG: list[tuple[tuple[str, ...], list[str]]] = [
    ((), ["nothing to draw", "--annotations", "--benchmark"]),
    (("--annotations", "g.json"), ["--frames is missing"]),
    (("--frames", "f"), ["--annotations is missing"]),
    (("--annotations", "no.json", "--frames", "f"), ["--annotations: no.json is no file"]),
    (("--annotations", "g.json", "--frames", "no"), ["--frames: no is no folder"]),
    ((*BOTH, "--results", "no.json"), ["--results: no.json is no file"]),
    ((*BOTH, "--results", "g.json"), ["g.json", "a list of results", "are these results of g.js"]),
    ((*BOTH, "--results", "other.json"), ["video_id: 77 is not in the annotations", "of g.json?"]),
    ((*BOTH, "--video", "3"), ["--video: 3 is no video of g.json"]),
    ((*BOTH, "--video", "pnod"), ["--video: pnod is no video", "did you mean pond?"]),
    ((*BOTH, "--video", ""), ["--video: "]),
    ((*BOTH, "--format", "avi"), ["'avi'", "mp4", "gif", "png"]),
    ((*BOTH, "--top", "0"), ["--top: 0 is not allowed"]),
    ((*BOTH, "--min-score", "nan"), ["--min-score: nan is not allowed"]),
    ((*BOTH, "--fps", "0"), ["--fps: 0 is not allowed"]),
    ((*BOTH, "--out", "g.json"), ["--out: g.json cannot be written"]),
    (
        ("--annotations", "g.json", "--frames", "empty"),
        ["--frames: no video can be drawn from empty", "no such image", "1 more"],
    ),
    ((*BOTH, "--supports", "r.json"), ["--supports needs --benchmark"]),
    ((*BOTH, "--benchmark", "b"), ["--benchmark brings its own"]),
    (("--benchmark", "empty"), ["empty holds no benchmark.json"]),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=lambda one: " ".join(one)[:60])
def test_mistakes(say: Say, words: tuple[str, ...], told: list[str]) -> None:
    code, out, err = say(*words)
    assert code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in told:
        assert part in err


@pytest.fixture
def benchmark(say: Say) -> Path:
    """The same videos as a benchmark with a clip of the corpus that is gone."""
    folder = Path("b")
    folder.mkdir()
    (folder / "annotations.json").write_text(Path("g.json").read_text())
    Benchmark(
        name="b", kind="folder", seed=0, height=20, width=28, num_frames=2,
        classes={"train": (), "val": (), "test": ("swan",)},
        queries={"train": (), "val": (), "test": ((2, "swan"),)},
        supports={"train": {}, "val": {}, "test": {"swan": (1,)}},
        frames_root=str(Path("f").resolve()),
    ).save(folder)  # fmt: skip
    row = {"clip_id": "c", "uri": "gone.mp4", "source_id": "s", "bytes": 1, "sha256": ""}
    write_corpus(folder, [row])
    write_corpus_labels(folder, {"c": "goose"})
    return folder


SUPPORTS = {"self_shot": ["c"], "self_shot_scores": [0.5], "oracle": [1, 1]}


def test_a_benchmark_with_supports(say: Say, benchmark: Path) -> None:
    code, out, _ = say("--benchmark", "b", "--out", "all", "--format", "png")
    assert code == 0 and out.startswith("2 of 2 videos drawn")
    Path("s.json").write_text(json.dumps({"2": SUPPORTS}))
    code, out, _ = say("--benchmark", "b", "--supports", "s.json", "--format", "png")
    assert code == 0 and out.startswith("1 of 1 videos drawn")
    alone, beside = Image.open("all/2_pond.png"), Image.open("shown/2_pond.png")
    assert beside.width == alone.width and beside.height > alone.height + 200
    Path("s.json").write_text(json.dumps({"2:swan": SUPPORTS, "2:goose": SUPPORTS}))
    code, out, _ = say("--benchmark", "b", "--supports", "s.json", "--out=two", "--format=png")
    assert code == 0 and Image.open("two/2_pond.png").height > beside.height + 200


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "a JSON list is not allowed"),
        ({}, "a JSON dict is not allowed"),
        ({"5": SUPPORTS}, "query '5' is no video of the benchmark"),
        ({"2": ["c"]}, "query '2': ['c'] is not allowed"),
        ({"2": {"random": ["d"]}}, "random: 'd' is no clip and no video"),
        ({"2": {"oracle": [1, 9]}}, "oracle: 9 is no clip and no video"),
        ({"2": {"oracle": [True]}}, "oracle: True is no clip"),
        ({"2": {"self_shot": ["c"], "self_shot_scores": ["x"]}}, "self_shot_scores: 'x'"),
    ],
)
def test_supports_of_something_else(say: Say, benchmark: Path, content: object, told: str) -> None:
    Path("s.json").write_text(json.dumps(content))
    code, _, err = say("--benchmark", "b", "--supports", "s.json")
    assert code == 2 and err.startswith("error: s.json") and told in err


def test_a_benchmark_that_cannot_be_read(say: Say, benchmark: Path) -> None:
    for content in ("{", "[]", '{"name": "b"}', '{"classes": [], "x": 1}'):
        (benchmark / "benchmark.json").write_text(content)
        code, _, err = say("--benchmark", "b")
        assert code == 2 and "benchmark.json cannot be read" in err


def test_names_cannot_steer_the_terminal_or_the_page(say: Say) -> None:
    document = json.loads(Path("g.json").read_text())
    hostile = "pond\x1b[31m\u202e"
    document["categories"][0]["name"] = f"swan\ud800{hostile}"
    document["videos"][0]["source_id"] = hostile
    document["videos"][1]["file_names"] = [f"{hostile}/{index}.png" for index in range(LENGTH)]
    Path("g.json").write_text(json.dumps(document))
    code, out, err = say(*BOTH)
    assert code == 0 and "1 of 2 videos drawn" in out
    assert "left out: video 2" in err and (out + err).replace("\n", "").isprintable()
    page = Path("shown/index.html").read_text(encoding="utf-8")
    assert "\x1b" not in page and "\u202e" not in page

    code, out, err = say(*BOTH, "--video", hostile)
    assert code == 2 and (out + err).replace("\n", "").isprintable()
