"""Self-VIS and Self-OVIS from files in the datasets' own spelling."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from selfshot.benchmarks.manifest import Benchmark, load_benchmark
from selfshot.benchmarks.published import match_categories, published_benchmarks
from selfshot.benchmarks.self_shot import build_self_ovis, build_self_vis
from selfshot.benchmarks.statistics import table_6

# fmt: off
VIS_2019 = [
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake",
    "monkey", "hand", "rabbit", "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear",
    "motorbike", "giraffe", "leopard", "fox", "deer", "owl", "surfboard", "airplane", "truck",
    "zebra", "tiger", "elephant", "snowboard", "boat", "shark", "mouse", "frog", "eagle",
    "earless_seal", "tennis_racket",
]
VIS_2021 = [
    "airplane", "bear", "bird", "boat", "car", "cat", "cow", "deer", "dog", "duck", "earless_seal",
    "elephant", "fish", "flying_disc", "fox", "frog", "giant_panda", "giraffe", "horse", "leopard",
    "lizard", "monkey", "motorbike", "mouse", "parrot", "person", "rabbit", "shark", "skateboard",
    "snake", "snowboard", "squirrel", "surfboard", "tennis_racket", "tiger", "train", "truck",
    "turtle", "whale", "zebra",
]
OVIS = [
    "Person", "Bird", "Cat", "Dog", "Horse", "Sheep", "Cow", "Elephant", "Bear", "Zebra", "Giraffe",
    "Poultry", "Giant_panda", "Lizard", "Parrot", "Monkey", "Rabbit", "Tiger", "Fish", "Turtle",
    "Bicycle", "Motorcycle", "Airplane", "Boat", "Vehical",
]
# fmt: on
SELF_VIS, SELF_OVIS = published_benchmarks()["self_vis"], published_benchmarks()["self_ovis"]


def _each(names: list[str], count: int) -> list[tuple[list[str], str]]:
    return [([name], f"{name}_{i}") for name in names for i in range(count)]


def _vis(folder: Path, settings: dict[str, Any], **more: Any) -> Benchmark:
    return build_self_vis(
        folder, **{"extra_annotations": None, "val_share": 0.5, **settings, **more}
    )


class TestTable7:
    """The class lists against the sums that the paper's Table 6 gives."""

    @pytest.mark.parametrize(
        ("published", "videos", "classes"), [(SELF_VIS, 2123, 40), (SELF_OVIS, 607, 25)]
    )
    def test_counts_are_those_of_table_6(self, published, videos: int, classes: int) -> None:
        figures = published.table_6
        assert len(published.seen) == figures["train_classes"]
        assert len(published.unseen) == figures["val_test_classes"]
        names = {**published.seen, **published.unseen}
        assert len(set(names.values())) == len(names) == classes
        assert figures["train_videos"] + figures["val_test_videos"] == videos

    def test_every_category_of_the_datasets_is_known(self) -> None:
        assert len(set(VIS_2019)) == len(set(VIS_2021)) == 40 and len(set(OVIS)) == 25
        in_2019 = match_categories(SELF_VIS, VIS_2019, "2019.json")
        assert sorted(in_2019.values()) == sorted(VIS_2019)
        in_2021 = match_categories(SELF_VIS, VIS_2021, "2021.json")
        unlisted = {name for name, matched in in_2021.items() if matched is None}
        assert unlisted == {"bird", "flying_disc", "squirrel", "whale"}
        assert in_2021["car"] == "sedan"
        absent = {*SELF_VIS.seen.values(), *SELF_VIS.unseen.values()} - set(in_2021.values())
        assert absent == {"ape", "eagle", "hand", "owl"}
        assert sorted(match_categories(SELF_OVIS, OVIS, "o.json").values()) == sorted(OVIS)

    def test_the_papers_names_are_those_of_the_datasets_without_marks(self) -> None:
        for published in (SELF_VIS, SELF_OVIS):
            for paper_name, name in {**published.seen, **published.unseen}.items():
                assert paper_name.lower() == name.replace("_", "").lower()

    @pytest.mark.parametrize("name", ["Giant Panda", "GIANT-PANDA", "giant_panda"])
    def test_case_and_marks_do_not_matter(self, name: str) -> None:
        assert match_categories(SELF_VIS, [name], "f.json") == {name: "giant_panda"}

    def test_an_unknown_category_is_named_with_the_nearest(self) -> None:
        with refused("benchmark.annotations"):
            match_categories(SELF_VIS, ["dgo", "dog", "lighthouse"], "mine.json")


class TestSelfVis:
    def test_the_2019_edition_has_every_class(
        self, world, check_promises, written, tmp_path: Path
    ) -> None:
        several = [(["dog", "person"], "pair_0"), (["cat", "fox"], "pair_1")]
        made = _vis(tmp_path / "out", world(VIS_2019, [*_each(VIS_2019, 4), *several]))
        check_promises(made, written(tmp_path / "out"))
        assert load_benchmark(tmp_path / "out") == made and made.videos
        figures = made.statistics
        for name in ("train_classes", "val_test_classes", "mean_classes"):
            assert figures[name] == SELF_VIS.table_6[name]
        assert figures["train_videos"] == 120 and figures["val_test_videos"] == 40
        assert figures["mean_length"] == figures["mean_instances"] == 1
        # Every video of an unseen class asks, and half of each class is for val.
        for split in ("val", "test"):
            counted = Counter(name for _, name in made.queries[split])
            assert counted == dict.fromkeys(SELF_VIS.unseen.values(), 2)
        assert made.counts["videos_quarantined"] == 2
        reasons = dict(made.quarantined)
        assert reasons["video 161 (pair_0)"] == "it shows 2 classes: dog, person"
        assert made.counts["queries_with_repeated_supports"] == 40

    def test_what_is_written_is_hashed(self, world, tmp_path: Path) -> None:
        settings = world(VIS_2019, _each(VIS_2019, 4))
        made = _vis(tmp_path / "out", settings)
        assert set(made.files) == {"annotations.json", "corpus.parquet"}
        for name, digest in made.files.items():
            content = (tmp_path / "out" / name).read_bytes()
            assert digest == hashlib.sha256(content).hexdigest()
        content = settings["annotations"].read_bytes()
        assert made.inputs["annotations"] == hashlib.sha256(content).hexdigest()
        assert set(made.inputs) == {"annotations", "frames", "corpus"}
        (settings["frames"] / "dog_0" / "00000.jpg").write_bytes(
            (settings["frames"] / "dog_0" / "00000.jpg").read_bytes() + b" "
        )
        again = _vis(tmp_path / "again", settings)
        assert again.inputs["frames"] != made.inputs["frames"]
        assert again.files == made.files

    def test_the_seed_deals_val_and_test(self, world, tmp_path: Path) -> None:
        settings = world(VIS_2019, _each(VIS_2019, 6))
        one, same = _vis(tmp_path / "a", settings), _vis(tmp_path / "b", settings)
        assert one == same
        assert (tmp_path / "a/benchmark.json").read_bytes() == (
            tmp_path / "b/benchmark.json"
        ).read_bytes()
        other = _vis(tmp_path / "c", settings, seed=4)
        assert other.queries["train"] == one.queries["train"]
        assert other.queries["val"] != one.queries["val"] and other.pairs != one.pairs

    @pytest.mark.parametrize(
        ("count", "share", "val"), [(2, 0.5, 0), (3, 0.5, 0), (4, 0.1, 2), (8, 0.9, 6), (8, 0, 0)]
    )
    def test_each_side_keeps_one_to_ask_and_one_to_help(
        self, world, tmp_path: Path, count: int, share: float, val: int
    ) -> None:
        settings = world(VIS_2019, _each(["cat", "dog"], count))
        made = _vis(tmp_path / "out", settings, val_share=share)
        assert len(made.queries["val"]) == val
        assert len(made.queries["test"]) == count - val

    def test_the_2021_edition_says_what_it_lacks(
        self, world, check_promises, written, tmp_path: Path
    ) -> None:
        messages: list[str] = []
        settings = world(VIS_2021, _each(VIS_2021, 4), on_message=messages.append)
        made = _vis(tmp_path / "out", settings)
        check_promises(made, written(tmp_path / "out"))
        assert made.statistics["train_classes"] == 28
        assert made.statistics["val_test_classes"] == 8
        assert "sedan" in made.classes["train"]
        assert len(made.supports["train"]["sedan"]) == 4
        assert made.counts["videos_quarantined"] == 16
        said = "\n".join(messages)
        assert "2 of Table 7's 30 seen classes are in no file: Owl, Ape" in said
        assert "2 of Table 7's 10 unseen classes are in no file: Eagle, Hand" in said
        assert "16 of a class that Table 7 does not list (bird, flying_disc, squirrel, wh" in said
        reasons = dict(made.quarantined)
        assert reasons["video 9 (bird_0)"] == "it shows only bird, which Table 7 does not list"

    def test_both_editions_together(self, world, check_promises, written, tmp_path: Path) -> None:
        old = [*_each(["owl", "eagle", "cat"], 4), (["dog"], "both_0"), (["fox"], "crowd_0")]
        # The 2021 edition calls the same owls and eagles birds, and has one more thing in crowd_0.
        new = [
            *[(["bird"], folder) for _, folder in old[:8]],
            *_each(["cat", "dog"], 5),
            (["dog"], "both_0"),
            (["fox", "bear"], "crowd_0"),
        ]
        world(VIS_2019, old, file_name="2019.json")
        settings = world(VIS_2021, new, file_name="2021.json")
        made = _vis(tmp_path / "out", settings, extra_annotations=tmp_path / "2019.json")
        annotations = written(tmp_path / "out")
        check_promises(made, annotations)
        folders = [video.file_names[0] for video in annotations.videos.values()]
        assert len(folders) == len(set(folders)) == 20, "a video that both have is there once"
        assert len(made.supports["train"]["owl"]) == 4
        assert len({video for video, name in made.queries["val"] if name == "eagle"}) == 2
        assert [what for what, why in made.quarantined if "2 classes" in why] == [
            "video 20 (crowd_0)"
        ]
        assert set(made.inputs) >= {"annotations", "extra_annotations"}
        assert {len(annotations.tracks_of(v)) for v in annotations.videos} == {1, 2}

    def test_nothing_to_train_on(self, world, tmp_path: Path) -> None:
        settings = world(VIS_2019, _each(["dog"], 4))
        with refused("benchmark"):
            _vis(tmp_path / "out", settings)
        settings = world(VIS_2019, _each(["cat"], 4))
        with refused("benchmark"):
            _vis(tmp_path / "out", settings)

    def test_missing_frames_are_said(self, world, tmp_path: Path) -> None:
        settings = world(VIS_2019, _each(["cat", "dog"], 4))
        settings["frames"] = tmp_path / "clips"
        with refused("benchmark"):
            _vis(tmp_path / "out", settings)

    def test_clips_of_a_querys_source_are_left_out(self, world, tmp_path: Path) -> None:
        messages: list[str] = []
        settings = world(VIS_2019, _each(["cat", "dog"], 4), on_message=messages.append)
        (settings["corpus"] / "dog_1.mp4").write_bytes(b"the same recording")
        (settings["corpus"] / "cat_1.mp4").write_bytes(b"of a training video: harmless")
        made = _vis(tmp_path / "out", settings)
        assert made.counts["corpus_clips"] == 3
        assert made.counts["corpus_clips_of_query_sources"] == 1
        assert ("corpus: dog_1.mp4", "it is of the source of a val or test query, dog_1") in (
            made.quarantined
        )
        assert any("1 clips are of a val or test query's source" in one for one in messages)
        for name in ("one.mp4", "two.mp4", "cat_1.mp4"):
            (settings["corpus"] / name).unlink()
        with refused("benchmark.corpus"):
            _vis(tmp_path / "none", settings)


class TestSelfOvis:
    def test_every_class_in_its_own_spelling(
        self, world, check_promises, written, tmp_path: Path
    ) -> None:
        made = build_self_ovis(tmp_path / "out", val_share=0.5, **world(OVIS, _each(OVIS, 4)))
        check_promises(made, written(tmp_path / "out"))
        for name in ("train_classes", "val_test_classes"):
            assert made.statistics[name] == SELF_OVIS.table_6[name]
        assert made.statistics["train_videos"] == 4 * 17
        assert made.statistics["val_test_videos"] == 4 * 8
        assert {"Vehical", "Giant_panda"} <= set(made.classes["train"])

    def test_seen_and_unseen_in_one_video(
        self, world, check_promises, written, tmp_path: Path
    ) -> None:
        mixed = [(["Person", "Dog", "Horse"], f"mixed_{i}") for i in range(6)]
        settings = world(OVIS, [*_each(["Dog", "Cow", "Person"], 4), *mixed])
        made = build_self_ovis(tmp_path / "out", val_share=0.5, **settings)
        check_promises(made, written(tmp_path / "out"))
        assert made.counts["videos_of_seen_and_unseen"] == 6
        assert len(made.supports["train"]["Dog"]) == 4
        asked = [*made.queries["val"], *made.queries["test"]]
        # A video of two unseen classes asks once for each.
        assert Counter(Counter(video for video, _ in asked).values()) == {1: 4, 2: 6}
        assert Counter(name for _, name in asked) == {"Person": 10, "Horse": 6}
        assert made.statistics["mean_instances"] == pytest.approx((12 + 18) / 18)
        assert made.statistics["mean_classes"] == pytest.approx((12 + 18) / 18)


def test_table_6_stands_beside_the_papers(world, tmp_path: Path) -> None:
    made = _vis(tmp_path / "out", world(VIS_2019, _each(VIS_2019, 4)))
    headings, *rows = table_6(made)
    assert headings == ["", "Self-VIS", "Self-VIS (paper)", "Self-OVIS (paper)"]
    assert rows == [
        ["mean length (frames)", "1.0", "30.2", "69.4"],
        ["mean class number", "1.0", "1", "1.6"],
        ["mean instance number", "1.0", "1.7", "5.9"],
        ["number of train videos", "120", "1,651", "449"],
        ["number of val+test videos", "40", "472", "158"],
        ["number of train classes", "30", "30", "17"],
        ["number of val+test classes", "10", "10", "8"],
    ]
    assert table_6(load_benchmark(tmp_path / "out")) == [headings, *rows]
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["statistics"]
