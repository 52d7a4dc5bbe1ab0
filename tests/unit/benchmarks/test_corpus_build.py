"""Corpus manifests out of folders, lists, CSVs and tars: the same every time, and resumed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from refusals import refused
from selfshot.benchmarks import corpus_build
from selfshot.benchmarks.corpus_build import Cutting, build_manifest, cut_spans
from selfshot.benchmarks.corpus_items import of_segments, of_tars, of_uris, of_videos
from selfshot.data import storage
from selfshot.data.corpus_manifest import check_manifest, open_manifest, place_of
from selfshot.data.fetch import sample_stored_clip
from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.video import sample_frames
from selfshot.errors import StorageError

SIZE = {"num_frames": 2, "height": 32, "width": 64}


def film(path: Path, shots: list[tuple[int, int]]) -> None:
    """A video at 10 frames a second: for each shot a grey value and a number of frames."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for grey, length in shots:
            for frame in range(length):
                pixels = np.full((32, 64, 3), grey, dtype=np.uint8)
                pixels[4:12, 2 * (frame % 24) : 2 * (frame % 24) + 9] = 255 - grey
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    film(root / "a.mp4", [(30, 23), (200, 31), (90, 17)])
    film(root / "deep" / "b c.mp4", [(120, 13)])
    (root / "deep" / "broken.mp4").write_bytes(b"no video")
    (root / "notes.txt").write_text("not a clip")
    return root


def build(items: Any, root: Path | str, out: Path | str, **more: Any) -> dict[str, Any]:
    settings = {"items_per_file": 2, "workers": 2, "made_from": "a test", "cutting": Cutting(),
                "on_message": lambda text: None}  # fmt: skip
    return build_manifest(items, str(root), str(out), **{**settings, **more})


def rows_of(out: Path) -> list[dict[str, Any]]:
    manifest = open_manifest(str(out))
    check_manifest(manifest)
    tables = [pq.read_table(out / file.name).to_pylist() for file in manifest.files]
    return [row for table in tables for row in table]


def test_a_folder_gives_the_same_ids_every_time(videos: Path, tmp_path: Path) -> None:
    facts = build(of_videos(str(videos), []), videos, tmp_path / "one")
    assert (facts["items"], facts["clips"], facts["unread"]) == (3, 3, 0)
    rows = rows_of(tmp_path / "one")
    assert {row["uri"] for row in rows} == {"a.mp4", "deep/b c.mp4", "deep/broken.mp4"}
    assert all(len(row["sha256"]) == 64 and row["bytes"] > 0 for row in rows)
    build(of_videos(str(videos), []), videos, tmp_path / "two", items_per_file=5, workers=1)
    assert sorted(row["clip_id"] for row in rows_of(tmp_path / "two")) == sorted(
        row["clip_id"] for row in rows
    )


def test_a_build_makes_only_what_is_missing(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(of_videos(str(videos), []), videos, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert sorted(before) == ["clips-00000.parquet", "clips-00001.parquet"]
    (tmp_path / "clips-00001.parquet").write_bytes(b"cut short")
    (tmp_path / "clips-00007.parquet").write_bytes(b"of a longer list")
    looked: list[str] = []
    look = corpus_build._Workers._look

    def counted(self: Any, item: Any) -> Any:
        looked.append(item.uri)
        return look(self, item)

    monkeypatch.setattr(corpus_build._Workers, "_look", counted)
    facts = build(of_videos(str(videos), []), videos, tmp_path)
    assert looked == ["deep/broken.mp4"] and facts["clips"] == 3
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert sorted(after) == sorted(before)
    assert after["clips-00000.parquet"] == before["clips-00000.parquet"]
    build(of_videos(str(videos), []), videos, tmp_path, cutting=Cutting(clip_s=1.0))
    assert len(looked) == 4  # With another length all are cut again.


def test_long_videos_are_cut_at_shots_and_lengths(videos: Path, tmp_path: Path) -> None:
    cutting = Cutting(clip_s=2.0, shots=True)
    build(of_videos(str(videos), []), videos, tmp_path, cutting=cutting)
    rows = rows_of(tmp_path)
    spans = sorted((row["start_s"], row["end_s"]) for row in rows if row["uri"] == "a.mp4")
    expected = [(0.0, 2.3), (2.3, 4.3), (4.3, 5.4), (5.4, 7.1)]
    np.testing.assert_allclose(spans, expected, atol=1e-6)
    assert len({row["clip_id"] for row in rows}) == len(rows) == 6
    # What cannot be opened is listed as a whole: embedding it says why.
    (broken,) = [row for row in rows if row["uri"] == "deep/broken.mp4"]
    assert broken["start_s"] is None and broken["end_s"] is None


def test_members_of_tars_are_addressed_where_they_are(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
        for name in ("a.mp4", "deep/b c.mp4"):
            archive.add(videos / name, arcname=name)
        about = tarfile.TarInfo("a.json")
        about.size = 2
        archive.addfile(about, io.BytesIO(b"{}"))
    whole = (tmp_path / "tars" / "0.tar").read_bytes()
    (tmp_path / "tars" / "1.tar").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "tars" / "2.tar").write_bytes(b"no tar" * 200)
    quarantined: list[tuple[str, str]] = []
    root = tmp_path / "tars"
    build(of_tars(str(root), quarantined), root, tmp_path / "m", cutting=Cutting(clip_s=4.0))
    assert any("2.tar" in what for what, _ in quarantined)
    rows = [row for row in rows_of(tmp_path / "m") if row["uri"] == "0.tar"]
    assert len(rows) == 3  # 7.1 s in two clips, 1.3 s in one
    for row in rows:
        name = "a.mp4" if row["source_id"] == "0/a" else "deep/b c.mp4"
        span = {"start_s": row["start_s"], "end_s": row["end_s"], **SIZE}
        frames = sample_stored_clip(
            place_of(str(root), row["uri"]), offset=row["offset"], length=row["bytes"], **span
        ).frames
        np.testing.assert_array_equal(frames, sample_frames(videos / name, **span))


def test_every_kind_of_video_is_listed_and_the_rest_is_named(
    videos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "mixed"
    root.mkdir()
    names = ["a.mpg", "b.TS", "c.3gp", "d.gif", "e.wmv", "f.flv", "g.m2ts", "h.ogv", "i.mp4"]
    others = ["j.json", "k.info.json", "l.tar.gz", "m.tar", "noise"]
    for name in [*names, *others]:
        (root / name).write_bytes((videos / "a.mp4").read_bytes())
    quarantined: list[tuple[str, str]] = []
    build(of_videos(str(root), quarantined), root, tmp_path / "m", cutting=Cutting(clip_s=60.0))
    rows = rows_of(tmp_path / "m")
    assert sorted(row["uri"] for row in rows) == names
    assert all(row["end_s"] == pytest.approx(7.1) for row in rows), "PyAV reads their contents"
    assert [what for what, _ in quarantined] == [
        "corpus: 1 file without a suffix, such as noise",
        "corpus: 2 files .json, such as j.json",
        "corpus: 1 file .tar, such as m.tar",
        "corpus: 1 file .tar.gz, such as l.tar.gz",
    ]
    assert "selfshot corpus build --tars" in quarantined[2][1]
    quarantined.clear()
    assert not list(of_tars(str(root), quarantined))
    reasons = dict(quarantined)
    assert "decompress it" in reasons["corpus: 1 file .tar.gz, such as l.tar.gz"]
    assert "corpus: m.tar" in reasons and len(reasons) == 13


def test_clips_are_cut_from_the_first_frame_on(shared: Path, tmp_path: Path) -> None:
    root = shared / "failing" / "start_offset"
    if not root.is_dir():
        pytest.skip("no failing inputs")
    facts = build(of_videos(str(root), []), root, tmp_path / "m", cutting=Cutting(clip_s=1.0))
    assert facts["seconds"] == pytest.approx(2.0 + 15.125)
    rows = rows_of(tmp_path / "m")
    assert len([row for row in rows if row["uri"] == "offset.mkv"]) == 2
    for row in rows:
        clip = Clip(str(root / row["uri"]), row["start_s"], row["end_s"])
        with GuardedDecoder(num_frames=2, height=32, width=32) as decoder:
            assert decoder.decode(clip).shape == (2, 32, 32, 3)


def test_lists_and_segments(videos: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/far/x.mp4", (videos / "a.mp4").read_bytes())
    listed = tmp_path / "list.txt"
    listed.write_text("# two\na.mp4\n\nmemory://far/x.mp4\nmemory://far/none.mp4\n")
    try:
        facts = build(of_uris(listed), videos, tmp_path / "uris")
    finally:
        files.rm("/far", recursive=True)
    rows = {row["uri"]: row for row in rows_of(tmp_path / "uris")}
    assert rows["a.mp4"]["sha256"] == rows["memory://far/x.mp4"]["sha256"]
    assert facts["unread"] == 1 and rows["memory://far/none.mp4"]["bytes"] is None
    table = tmp_path / "segments.csv"
    table.write_text("uri,start_s,end_s,source,label\na.mp4,1.5,,one,car\na.mp4,3,4.5,one,car\n")
    build(of_segments(table, 2.0, videos, []), videos, tmp_path / "cut")
    found = sorted(rows_of(tmp_path / "cut"), key=lambda row: row["start_s"])
    assert [(row["start_s"], row["end_s"]) for row in found] == [(1.5, 3.5), (3.0, 4.5)]
    assert {row["source_id"] for row in found} == {"one"}
    listed.write_text("# nothing\n")
    with refused():
        build(of_uris(listed), videos, tmp_path / "none")


class Outage:
    """Reads of memory:// fail from the call `first` on, so many `times`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, times: int = 10**6) -> None:
        self.calls = 0
        open_file = MemoryFileSystem._open

        def away(fs: Any, path: str, mode: str = "rb", **more: Any) -> Any:
            if mode == "rb":
                self.calls += 1
                if first <= self.calls < first + times:
                    raise OSError("503 Slow Down")
            return open_file(fs, path, mode, **more)

        monkeypatch.setattr(MemoryFileSystem, "_open", away)
        monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.0)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_an_outage_is_no_absent_file(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    out, memory = f"memory://{tmp_path.name}", fsspec.filesystem("memory")
    build(of_videos(str(videos), []), videos, out)
    there = {name: memory.cat(name) for name in memory.find(f"/{tmp_path.name}")}
    with monkeypatch.context() as patched:
        outage = Outage(patched, first)
        written: list[str] = []
        patched.setattr(corpus_build, "_write", lambda *given: written.append(given[1]))
        try:
            build(of_videos(str(videos), []), videos, out)
            assert outage.calls < first
        except StorageError as error:
            assert "503" in str(error)
        assert not written
    assert {name: memory.cat(name) for name in memory.find(f"/{tmp_path.name}")} == there
    memory.rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize("times", [1, 10**6])
def test_an_outage_is_no_unread_video(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/x.mp4", (videos / "a.mp4").read_bytes())
    listed = tmp_path / "list.txt"
    listed.write_text("memory://far/x.mp4\n")
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.0)
    with monkeypatch.context() as patched:
        Outage(patched, 1, times)
        if times == 1:
            assert build(of_uris(listed), videos, tmp_path / "m")["unread"] == 0
        else:
            with refused(kind=StorageError):
                build(of_uris(listed), videos, tmp_path / "m")
    memory.rm("/far", recursive=True)
    # A server of the web is one of many, and may be gone for good.
    listed.write_text("http://127.0.0.1:9/x.mp4\n")
    assert build(of_uris(listed), videos, tmp_path / "web")["unread"] == 1


@pytest.mark.parametrize(
    ("seconds", "shots", "clip_s", "expected"),
    [
        (7.0, [], None, [(0, 7)]),
        (7.0, [], 3.0, [(0, 3), (3, 7)]),
        (8.0, [], 3.0, [(0, 3), (3, 6), (6, 8)]),
        (1.0, [], 3.0, [(0, 1)]),
        (9.0, [4.0], None, [(0, 4), (4, 9)]),
        (9.0, [0.4, 4.0, 4.5, 8.7], 3.0, [(0, 4), (4, 7), (7, 9)]),
    ],
)
def test_spans(seconds: float, shots: list[float], clip_s: float | None, expected: Any) -> None:
    assert list(cut_spans(seconds, shots, clip_s, 1.0)) == expected


def test_videos_that_are_cut_without_their_shots_are_counted(
    videos: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    cutting = Cutting(shots=True, shots_timeout_s=1e-6)
    build(of_videos(str(videos), []), videos, tmp_path, cutting=cutting, on_message=told.append)
    assert any("the shots of 2 videos cannot be found" in line for line in told), told
