"""The report: it says what the rows say, survives what is missing, and is one safe page."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfshot.data.ytvis import Prediction, Track
from selfshot.ops.masks import encode_rle
from selfshot.studies.reports import figures, findings, gallery, page

NASTY = "<script>alert('x')</script> | \"quoted\""
PUBLISHED = [
    {"supports": "random", "shots": 1, "AP50": 44.3},
    {"supports": "self_shot", "shots": 1, "AP50": 51.4},
    {"supports": "oracle", "shots": 1, "AP50": 53.2},
]


def cell(*per_fold: float | None) -> dict[str, Any]:
    known = [value for value in per_fold if value is not None]
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": std, "per_fold": list(per_fold)}


def row(supports: str, shots: int, *per_fold: float, extra: int = 0) -> dict[str, Any]:
    figures = {metric: cell(*per_fold) for metric in findings.METRICS}
    return {"supports": supports, "shots": shots, "extra": extra, **figures}


def good_rows() -> list[dict[str, Any]]:
    return [
        row("none", 0, 30, 31, 32),
        row("query_itself", 1, 45, 47, 46),
        row("random", 1, 34, 36, 35),
        row("self_shot", 1, 61, 63, 65),
        row("oracle", 1, 74, 75, 76),
    ]


def item(*, title: str = "first", query_class: str = "kite") -> gallery.GalleryItem:
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (3, 16, 20, 3), dtype=np.uint8)
    mask = np.zeros((16, 20), dtype=bool)
    mask[4:12, 4:12] = True
    masks, nothing = (encode_rle(mask),) * 3, (None,) * 3
    clips = [
        gallery.Support(frames, query_class, 0.912, True, "clip-1"),
        gallery.Support(frames, None, float("nan"), None, "clip-2"),
        gallery.Support(frames, "other", None, False, "clip-3"),
    ]
    return gallery.GalleryItem(
        video=1,
        fold=0,
        title=title,
        query_class=query_class,
        frames=frames,
        mask_size=(16, 20),
        truth=[Track(1, 1, 2, masks, nothing, nothing)],
        supports={"random": [], "self_shot": clips},
        predictions={
            "self_shot": [Prediction(1, 2, 0.9, masks), Prediction(1, 2, 0.2, masks)],
            "random": [],
            "odd": [Prediction(1, 2, 0.1, masks)],
        },
    )


def write(folder, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "a run",
        "description": "what it is",
        "rows": good_rows(),
        "retrieval": {},
        "benchmark": {},
        "gallery": [],
        "curves": {},
        "timings": [],
        "published": PUBLISHED,
        "mlflow": {},
        "environment": {},
    }
    page.write_report(folder, page.Report(**(arguments | changes)))
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes, and the text of table cells, by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.in_cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("img", "meta", "link", "br", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.in_cell = True
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes at {self.getpos()} what is not open"
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def full_page(folder) -> str:
    return write(
        folder,
        gallery=[item()],
        retrieval={
            "precision_at": {"1": 0.7, "5": 0.65},
            "chance": 0.05,
            "num_queries": 24,
            "excluded_near_duplicates": 2,
            "per_class": {"kite": 0.8, "boat": 0.5, "unknown": -1},
            "alternatives": {"global": {"precision_at": {"5": 0.4}}, "flat": {"5": 0.3}},
        },
        benchmark={"name": "sprites", "counts": {"clips": 3000}, "classes": {"test": ["kite"]}},
        curves={
            "vis": [{"step": s, "loss": 9.0 - s, "dice": float("nan")} for s in range(5)],
            "empty": [],
        },
        timings=[
            {"stage": "benchmark", "seconds": 12.0, "status": "reused", "key": "00ff"},
            {"stage": "vis", "seconds": 225.0, "status": "made", "key": "11ee"},
        ],
        mlflow={"uri": "http://localhost:5000", "command": "mlflow ui", "run_id": "r1"},
        environment={"seed": "0", "settings": "a: 1\nb: 2"},
    )


def test_results_json_is_the_rows(tmp_path):
    write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == good_rows()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.md",
        "results.json",
    ]


def test_results_json_takes_numpy_and_is_strict_json(tmp_path):
    rows = good_rows()
    rows[0]["AP"] = {"mean": np.float32(1.5), "std": float("nan"), "per_fold": np.array([1, 2])}
    write(tmp_path, rows=rows)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)[0]["AP"] == {"mean": 1.5, "std": None, "per_fold": [1, 2]}


def test_page_shows_each_row_with_the_papers_figure(tmp_path):
    shown = Page(full_page(tmp_path))
    cells = [[re.sub(r"\s+", " ", text).strip() for text in line] for line in shown.rows]
    line = next(line for line in cells if line[0].startswith("Self-shot") and "1 shot" in line[1])
    assert line[2] == "63.0 ± 2.0"
    assert line[-1] == "51.4"
    assert next(line for line in cells if line[0].startswith("No supports"))[-1] == "–"
    assert not shown.open  # every element is closed
    html = (tmp_path / "report.html").read_text()
    assert "the figures themselves cannot" in html
    assert "YouTube-VIS" in html


def details() -> dict[str, Any]:
    """Of each row: a group, two classes; the figures tell the rows apart."""
    return {
        name: {
            "classes": {
                "kite": {"AP50": 10.0 + i, "queries": 7},
                "<boat>": {"AP50": 20.0 + i, "queries": 2},
            },
            "groups": {
                "real <videos>": {
                    "AP50": 30.0 + i, "low": 5.0, "high": None, "queries": 3,
                    "first_right": 33.3, "any_right": 66.7,
                }
            },
            "queries": [],
        }
        for i, name in enumerate(
            ["none_0+0", "query_itself_1+0", "random_1+0", "self_shot_1+0", "oracle_1+0"]
        )
    }  # fmt: skip


def test_groups_and_classes_have_tables(tmp_path):
    html = write(tmp_path, details=details())
    cells = [[text.strip() for text in line] for line in Page(html).rows]
    line = next(line for line in cells if line[0] == "Self-shot" and "to" in line[3])
    assert line[2:] == ["33.0", "5.0 to –", "33.3", "66.7"]
    line = next(line for line in cells if line[0] == "<boat>")
    assert line[1:] == ["2", "20.0", "21.0", "22.0", "23.0", "24.0"]
    text = (tmp_path / "report.md").read_text()
    assert "| Self-shot | 1 shot | 33.0 | 5.0 to – | 33.3 | 66.7 |" in text
    assert "| kite | 7 | 10.0 | 11.0 | 12.0 | 13.0 | 14.0 |" in text
    assert "Each class" not in write(tmp_path / "without")


def test_page_is_one_file_and_fetches_nothing(tmp_path):
    shown = Page(full_page(tmp_path))
    addresses = [value for _, name, value in shown.attributes if name in ("src", "href", "srcset")]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert "script" not in shown.tags
    html = (tmp_path / "report.html").read_text()
    assert "@import" not in html
    assert "url(" not in html
    images = [
        i for i, (tag, name, _) in enumerate(shown.attributes) if (tag, name) == ("img", "alt")
    ]
    assert len(images) == shown.tags.count("img") > 0
    assert all(shown.attributes[i][2] for i in images)


def test_moving_pictures_in_the_page_decode(tmp_path):
    html = full_page(tmp_path)
    encoded = re.findall(r'class="moving" src="data:image/webp;base64,([^"]+)"', html)
    assert encoded
    for one in encoded:
        with Image.open(io.BytesIO(base64.b64decode(one))) as image:
            assert image.n_frames == 3
            assert (image.width * 16, image.width % 20) == (image.height * 20, 0)


def test_every_string_is_escaped(tmp_path):
    html = write(
        tmp_path,
        title=NASTY,
        description=NASTY,
        gallery=[item(title=NASTY, query_class=NASTY)],
        rows=[*good_rows(), row(NASTY, 1, 50, 51)],
        retrieval={
            "precision_at": {"5": 0.5},
            "per_class": {NASTY: 0.5},
            "alternatives": {NASTY: {"5": 0.1}},
        },
        benchmark={"name": NASTY, "counts": {NASTY: 1}, "classes": {NASTY: [NASTY]}},
        curves={NASTY: [{"step": 1, NASTY: 1.0}]},
        timings=[{"stage": NASTY, "seconds": 1, "status": NASTY, "key": NASTY}],
        mlflow={"uri": NASTY, "command": NASTY, "experiment": NASTY, "run_id": NASTY},
        environment={NASTY: NASTY},
    )
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "script" not in Page(html).tags
    markdown = (tmp_path / "report.md").read_text()
    assert "<script" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("| &lt;script")]
    assert table
    assert all("\\|" in line for line in table)


def test_gap_by_hand():
    gap = findings.gap_share(good_rows(), (1, 0), PUBLISHED)
    assert gap.share == pytest.approx((63 - 35) / (75 - 35))  # 0.70
    assert gap.published == pytest.approx(7.1 / 8.9)  # the paper's 0.80


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([row("random", 1, 50), row("self_shot", 1, 52), row("oracle", 1, 50)], "no meaning"),
        ([row("random", 1, 50), row("self_shot", 1, 52), row("oracle", 1, 40)], "no meaning"),
        ([row("random", 1, 50), row("self_shot", 1, 52)], "no figure for oracle"),
        ([row("self_shot", 1, 52)], "no figure for random and oracle"),
    ],
)
def test_gap_without_meaning_says_why(tmp_path, rows, note):
    gap = findings.gap_share(rows, (1, 0))
    assert gap.share is None
    assert note in gap.note
    assert note in write(tmp_path, rows=rows).lower()
    assert note in (tmp_path / "report.md").read_text()


def test_paired_difference_by_hand():
    one = findings.difference(good_rows(), (1, 0), "self_shot", "random")
    assert one is not None
    assert one.per_fold == (27, 27, 30)
    assert one.mean == pytest.approx(28)
    assert one.std == pytest.approx(np.sqrt(3))
    assert (one.wins, one.verdict) == (3, "clear")


def test_paired_difference_leaves_out_folds_without_a_score():
    rows = [row("random", 1, 10, 20, 30), row("self_shot", 1, 15, 26, 30)]
    rows[1]["AP50"]["per_fold"][2] = -1
    one = findings.difference(rows, (1, 0), "self_shot", "random")
    assert one is not None
    assert one.per_fold == (5, 6)


@pytest.mark.parametrize(
    ("self_shot", "random", "says", "says_not"),
    [
        ((61, 63, 65), (34, 36, 35), "better than random", "worse"),
        ((34, 36, 35), (61, 63, 65), "did worse than random", "better"),
        ((40, 36, 35), (38, 37, 34), "does not separate", "better"),
        ((36,), (35,), "stand above random", "better"),
        ((35,), (36,), "stand below random", "better"),
        ((35,), (35,), "stand level with random", "better"),
    ],
)
def test_claim_follows_the_figures(self_shot, random, says, says_not):
    rows = [row("self_shot", 1, *self_shot), row("random", 1, *random)]
    text = findings.claim(rows)
    assert says in text
    assert says_not not in text
    assert "gap" not in text  # there is no oracle


def test_claim_with_an_oracle_and_without_a_comparison():
    assert "recover 70% of the gap" in findings.claim(good_rows())
    above = [*good_rows()[:4], row("oracle", 1, 50, 51, 52)]
    assert "no worse than supports picked by their labels" in findings.claim(above)
    assert "does not compare" in findings.claim([row("oracle", 1, 50, 51)])
    assert "no score yet" in findings.claim([])


def test_extra_supports_are_their_own_setting(tmp_path):
    more = [row(kind, 5, *folds, extra=3) for kind, *folds in (("random", 1, 2), ("oracle", 9, 8))]
    rows = [*good_rows(), *more]
    assert findings.settings(rows) == [(1, 0), (5, 3)]
    assert "5+3 shots" in write(tmp_path, rows=rows)


@pytest.mark.parametrize("missing", [None, -1, float("nan"), float("inf"), "n/a"])
def test_missing_numbers_are_dashes(tmp_path, missing):
    rows = good_rows()
    rows[3]["AP75"] = {"mean": missing, "std": missing, "per_fold": [missing] * 3}
    rows[2]["AR10"] = missing
    del rows[1]["AP"]
    shown = Page(write(tmp_path, rows=rows))
    line = next(line for line in shown.rows if line[0].startswith("Self-shot"))
    assert line[4].strip() == "–"
    assert "nan" not in (tmp_path / "report.md").read_text().lower()


@pytest.mark.parametrize("published", [[], PUBLISHED])
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("none", 0, 40)],
        [row("random", 1, 40)],
        [{"supports": "self_shot", "shots": 1, "extra": 0}],
        [row("self_shot", 1, 0.0, 0.0), row("random", 1, 0.0, 0.0), row("oracle", 1, 0.0, 0.0)],
        [row("oracle", 1, 100.0), row("self_shot", 1, 100.0), row("random", 1, 0.0)],
    ],
)
def test_any_rows_make_a_page(tmp_path, rows, published):
    shown = Page(write(tmp_path, rows=rows, published=published))
    assert not shown.open
    assert (tmp_path / "report.md").read_text().startswith("# a run\n")


def test_gallery_marks_and_captions():
    (view,) = gallery.gallery_view([item()])
    assert [group["kind"] for group in view["supports"]] == ["self_shot"]  # empty ones left out
    clips = view["supports"][0]["clips"]
    assert [(clip["mark"], clip["score"]) for clip in clips] == [
        ("right", "0.91"),
        ("unknown", "–"),
        ("wrong", "–"),
    ]
    predictions = {one["kind"]: one for one in view["predictions"]}
    assert list(predictions) == ["random", "self_shot", "odd"]
    assert predictions["self_shot"]["iou"] == 1.0
    assert predictions["self_shot"]["scores"] == ["0.90"]
    assert predictions["random"]["iou"] == 0.0
    assert predictions["odd"]["scores"] == ["0.10"]  # the strongest, though below the threshold


def test_interval_chart_places_figures_in_percent_of_its_width():
    chart = figures.interval_chart([row("random", 1, 30, 50), row("none", 0, 20)])
    assert chart["ticks"][-1] == {"value": 60, "x": 100.0}
    first, second = chart["lines"]
    assert first["x"] == pytest.approx(100 * 40 / 60, abs=0.01)
    assert first["folds"] == [50.0, pytest.approx(83.33)]
    assert (second["low"], second["high"]) == (None, None)  # one fold has no deviation


def test_learning_curves_keep_the_ends_and_drop_what_is_not_finite():
    points = [{"step": step, "loss": 10.0 - step / 100} for step in range(1000)]
    points[500]["loss"] = float("nan")
    points[501]["loss"] = "text"
    points[502]["loss"] = None
    points[503]["loss"] = np.float32(2.5)
    (stage,) = figures.learning_curves({"vis": points, "nothing": [{"step": 1}]})
    pairs = stage["main"]["path"].split()
    assert len(pairs) <= 301
    assert pairs[0] == "0.00,0.00"
    assert pairs[-1] == "100.00,99.90"  # drawn from 0
    assert "nan" not in stage["main"]["path"]
