"""`selfshot evaluate` on two files: figures, tables, and one message for every wrong file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfshot import cli
from selfshot.cli import reading
from selfshot.cli.score_tables import LISTED
from selfshot.data.ytvis import load_annotations, load_results
from selfshot.evaluation.video_ap import evaluate_tracks
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH, LENGTH = 11, 13, 3
FILES = ["--ground-truth", "truth.json", "--results", "results.json"]


@dataclass
class Answer:
    code: int
    out: str
    err: str


def _rle(x: int, y: int, side: int = 4) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return encode_rle(mask)


def _truth() -> dict[str, Any]:
    return {
        "videos": [
            {
                "id": number,
                "width": WIDTH,
                "height": HEIGHT,
                "length": LENGTH,
                "file_names": [f"{number}/{frame}.jpg" for frame in range(LENGTH)],
            }
            for number in (3, 7, 8)
        ],
        "categories": [{"id": 2, "name": "[b]swan[/b]"}, {"id": 5, "name": "bear"}],
        "annotations": [
            {"id": 1, "video_id": 3, "category_id": 2, "segmentations": [_rle(1, 1)] * LENGTH},
            {"id": 2, "video_id": 7, "category_id": 2, "segmentations": [_rle(2, 3)] * LENGTH},
            {"id": 4, "video_id": 8, "category_id": 2, "segmentations": [_rle(2, 3)] * LENGTH},
        ],
    }


def _results() -> list[dict[str, Any]]:
    return [
        {"video_id": 3, "category_id": 2, "score": 0.9, "segmentations": [_rle(1, 1)] * LENGTH},
        {"video_id": 7, "category_id": 5, "score": 0.8, "segmentations": [_rle(2, 3)] * LENGTH},
        {"video_id": 8, "category_id": 2, "score": 0.7, "segmentations": [_rle(2, 4)] * LENGTH},
    ]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in a folder that holds `truth.json` and `results.json`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    # On a busy machine it would tell how far it is.
    monkeypatch.setattr(reading, "QUIET_ELSEWHERE_S", float("inf"))
    Path("truth.json").write_text(json.dumps(_truth()))
    Path("results.json").write_text(json.dumps(_results()))

    def run(*words: str) -> Answer:
        code = cli.main(words)
        return Answer(code, *capsys.readouterr())

    return run


def test_the_figures_are_printed_and_written(say: Callable[..., Answer]) -> None:
    answer = say("evaluate", *FILES, "--json", "out.json")
    assert (answer.code, answer.err) == (0, "")
    truth = load_annotations("truth.json")
    figures = evaluate_tracks(truth, load_results("results.json", truth))
    written = json.loads(Path("out.json").read_text())
    per_category = {str(key): one for key, one in figures.pop("AP50_per_category").items()}
    assert written.pop("AP50_per_category") == per_category == {"2": pytest.approx(0.6633663366),
                                                                "5": -1.0}  # fmt: skip
    assert written.pop("ground_truth") == {"instances": 3, "without_pixels": []}
    assert written == figures
    rows = [line.split("│")[1:3] for line in answer.out.splitlines() if "│" in line]
    shown = {name.strip(): value.strip() for name, value in rows}
    assert shown["AP50"] == shown["per_class_AP50"] == shown["AP50 [b]swan[/b]"] == "66.3"
    assert shown["pooled_AP50"] == "100.0"
    assert shown["APl"] == shown["AP50 bear"] == "–"
    assert set(figures) <= set(shown)
    assert "have no pixel" not in answer.out


NO_RUN = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}


@pytest.mark.parametrize("mask", [None, [], NO_RUN])
def test_instances_without_a_pixel_are_named(say: Callable[..., Answer], mask: Any) -> None:
    """They count, as in the reference; crowds do not."""
    truth = _truth()
    truth["annotations"][0]["segmentations"] = [mask] * LENGTH
    truth["annotations"].append({**truth["annotations"][0], "id": 9, "iscrowd": 1})
    Path("truth.json").write_text(json.dumps(truth))
    answer = say("evaluate", *FILES, "--json", "out.json")
    assert "1 of 3 annotated instances have no pixel in any frame (annotation 1): no" in answer.out
    written = json.loads(Path("out.json").read_text())
    assert written["ground_truth"] == {"instances": 3, "without_pixels": [1]}


def test_all_categories_as_one(say: Callable[..., Answer]) -> None:
    answer = say("evaluate", *FILES, "--class-agnostic", "--json", "out.json")
    written = json.loads(Path("out.json").read_text())
    assert written["AP50"] == written["pooled_AP50"] == pytest.approx(1.0)
    assert written["per_class_AP50"] == pytest.approx(0.6633663366)
    assert written["AP50_per_category"] == {"-1": pytest.approx(1.0)}
    assert "AP50 of any category" in answer.out


def test_the_breakdown(say: Callable[..., Answer]) -> None:
    answer = say("evaluate", *FILES, "--breakdown", "--json", "out.json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(Path("out.json").read_text())["breakdown"]
    assert set(found) == {"instances", "classes", "length", "area", "absence"}
    assert found["instances"]["1"]["videos"] == found["instances"]["1"]["tracks"] == 3
    assert found["instances"]["≥ 5"] == {"AP50": -1.0, "AP": -1.0, "tracks": 0, "videos": 0}
    assert "instances in the video" in answer.out
    assert "> 256² pixels" in answer.out


def test_intervals_and_a_comparison(say: Callable[..., Answer]) -> None:
    worse = _results()[:1]
    Path("other.json").write_text(json.dumps(worse))
    answer = say("evaluate", *FILES, "--bootstrap", "40", "--seed", "3", "--json", "out.json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(Path("out.json").read_text())["bootstrap"]
    assert (found["resamples"], found["seed"]) == (40, 3)
    assert set(found) == {"resamples", "seed", "AP50", "AP"}
    answer = say("evaluate", *FILES, "--compare", "other.json", "--json", "out.json")
    found = json.loads(Path("out.json").read_text())["bootstrap"]
    assert found["resamples"] == 1000
    assert found["difference"]["AP50"]["value"] > 0
    assert "AP50 difference" in answer.out
    assert f"{100 * found['difference']['AP50']['value']:+.1f}" in answer.out
    say("evaluate", *FILES, "--compare", "results.json", "--json", "out.json")
    difference = json.loads(Path("out.json").read_text())["bootstrap"]["difference"]["AP50"]
    assert difference == {"value": 0.0, "low": 0.0, "high": 0.0, "bias": 0.0, "above": 0.0}


# Bad input: one message that names the file, the entry and the mend, and exit code 2.


def _changed(content: Any, where: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    place = content
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    return content


OTHER_SIZE = {"size": [WIDTH, HEIGHT], "counts": _rle(1, 1)["counts"]}
NO_SKIP = "correct or remove the entry, or quarantine it with --skip-invalid"
WRONG_ENTRIES = [
    ("truth", ("annotations", 0, "category_id"), 4, ["annotations[0] (id 1)", "category_id: 4"]),
    ("truth", ("annotations", 1, "id"), 1, ["annotations[1] (id 1)", "id: 1 is already used"]),
    (
        "truth",
        ("annotations", 1, "segmentations", 2),
        OTHER_SIZE,
        ["annotations[1] (id 2)", "frame 2: size: [13, 11] differs from the video's [11, 13]"],
    ),
    (
        "truth",
        ("annotations", 0, "segmentations"),
        [None],
        ["annotations[0] (id 1)", "1 entries for video 3 of 3 frames"],
    ),
    ("truth", ("videos", 0, "length"), 4, ["videos[0] (id 3)", "length: 4 differs"]),
    (
        "truth",
        ("videos", 2, "file_names", 1),
        "../../secret.jpg",
        ["videos[2] (id 8)", "file_names[1]", "leaves the frames' root"],
    ),
    ("results", (0, "category_id"), 4, ["results[0]", "category_id: 4 is not in the annotations"]),
    ("results", (1, "video_id"), 99, ["results[1]", "video_id: 99", "known: 3, 7, 8"]),
    ("results", (2, "score"), float("nan"), ["results[2]", "score: nan", "a finite number"]),
    ("results", (1, "segmentations", 0), OTHER_SIZE, ["results[1]", "frame 0: size"]),
    ("results", (0, "segmentations"), [None] * 4, ["results[0]", "4 entries for video 3 of 3"]),
]


@pytest.mark.parametrize(("file", "where", "value", "parts"), WRONG_ENTRIES)
def test_a_wrong_entry_is_named_or_quarantined(
    say: Callable[..., Answer], file: str, where: tuple[Any, ...], value: Any, parts: list[str]
) -> None:
    content = _truth() if file == "truth" else _results()
    Path(f"{file}.json").write_text(json.dumps(_changed(content, where, value)))
    answer = say("evaluate", *FILES)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith(f"error: {file}.json: ")
    assert answer.err.endswith(f"; {NO_SKIP}\n")
    assert answer.err.count("\n") == 1
    for part in parts:
        assert part in answer.err

    answer = say("evaluate", *FILES, "--skip-invalid", "--json", "out.json")
    assert (answer.code, answer.err) == (0, "")
    first = json.loads(Path("out.json").read_text())["quarantined"][0]
    assert first["file"] == f"{file}.json"
    assert first["entry"] == parts[0]
    assert f"  {file}.json: {first['entry']}: {first['reason']}" in answer.out


def test_what_refers_to_a_skipped_video_is_skipped(say: Callable[..., Answer]) -> None:
    Path("truth.json").write_text(json.dumps(_changed(_truth(), ("videos", 0, "width"), None)))
    answer = say("evaluate", *FILES, "--skip-invalid", "--json", "out.json")
    written = json.loads(Path("out.json").read_text())
    assert [one["entry"] for one in written["quarantined"]] == [
        "videos[0] (id 3)",
        "annotations[0] (id 1)",
        "results[0]",
    ]
    assert "quarantined: 3 entries" in answer.out
    assert written["AP50"] == pytest.approx(51 / 101)


def test_only_the_first_of_many_are_listed(say: Callable[..., Answer]) -> None:
    wrong = [one | {"score": None} for one in _results() for _ in range(11)]
    Path("results.json").write_text(json.dumps(_results() + wrong))
    answer = say("evaluate", *FILES, "--skip-invalid", "--json", "out.json")
    assert "quarantined: 33 entries" in answer.out
    assert f"… and {33 - LISTED} more" in answer.out
    assert sum(line.startswith("  results.json: ") for line in answer.out.splitlines()) == LISTED
    assert len(json.loads(Path("out.json").read_text())["quarantined"]) == 33


def test_nothing_to_skip_is_said_too(say: Callable[..., Answer]) -> None:
    assert "quarantined: 0 entries" in say("evaluate", *FILES, "--skip-invalid").out


@pytest.mark.parametrize("file", ["truth", "results"])
@pytest.mark.parametrize("skip", [[], ["--skip-invalid"]])
def test_a_truncated_file(say: Callable[..., Answer], file: str, skip: list[str]) -> None:
    path = Path(f"{file}.json")
    path.write_text(path.read_text()[:-100])
    answer = say("evaluate", *FILES, *skip)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {file}.json: not valid JSON at line 1, column ")
    assert answer.err.endswith("is the file cut short? Copy it again\n")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--compare", "none.json"], ["--compare: none.json is no file"]),
        (["--bootstrap", "0"], ["--bootstrap", "1", "--help"]),
        (["--bootstrap", "many"], ["--bootstrap", "integer"]),
        (["--seed", "-1"], ["--seed", "0", "--help"]),
        (["--results", "truth.json"], ["truth.json", "is this an annotation file?"]),
        (["--compare", "truth.json"], ["truth.json", "is this an annotation file?"]),
        (["--json", "."], ["--json: . cannot be written"]),
    ],
)
def test_wrong_options(say: Callable[..., Answer], words: list[str], parts: list[str]) -> None:
    answer = say("evaluate", *FILES, *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    for part in parts:
        assert part in answer.err


@pytest.mark.parametrize("option", ["--breakdown", "--skip-invalid", "--bootstrap=9"])
def test_options_of_files_do_not_go_with_an_experiment(
    say: Callable[..., Answer], option: str
) -> None:
    answer = say("evaluate", "good.yaml", option)
    assert answer.code == 2
    assert option.partition("=")[0] in answer.err and "exclude each other" in answer.err


STEERING = "swan\x1b[31m\r\nAP50 100.0\u202e\ud800"
SEEN = "swan�[31m��AP50 100.0��"


def _named(name: str) -> None:
    truth = _truth()
    truth["categories"][0]["name"] = name
    # Half a character is refused where a file is named.
    truth["videos"][0]["file_names"][0] = name.replace("\ud800", "") + "/0.jpg"
    Path("truth.json").write_text(json.dumps(truth))


def test_a_name_cannot_steer_the_terminal(say: Callable[..., Answer]) -> None:
    _named(STEERING)
    answer = say("evaluate", *FILES, "--json", "out.json", "--breakdown", "--bootstrap", "3")
    assert answer.code == 0
    assert f"AP50 {SEEN}" in answer.out
    assert answer.out.replace("\n", "").isprintable()
    assert Path("out.json").read_text().isascii()


@pytest.mark.parametrize("skip", [True, False])
def test_a_wrong_entry_cannot_steer_the_terminal(say: Callable[..., Answer], skip: bool) -> None:
    _named(STEERING)
    results = _results()
    results[0]["score"] = STEERING
    Path("results.json").write_text(json.dumps(results))
    answer = say("evaluate", *FILES, "--json", "out.json", *(["--skip-invalid"] if skip else []))
    assert answer.code == (0 if skip else 2)
    assert (answer.out + answer.err).replace("\n", "").isprintable()
    assert "results[0]: score" in (answer.out if skip else answer.err)
    if skip:
        assert Path("out.json").read_text().isascii()
