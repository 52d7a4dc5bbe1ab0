"""The hub's cache: a network in it is found by its name and revision, and listed."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tests.refusals import refused
from tests.unit.models.test_pretrained_networks import SIZES, write_hf, write_timm
from transformers import BertConfig, ViTConfig

from selfshot.errors import StorageError, UserError
from selfshot.models.pretrained_files import find_network
from selfshot.models.pretrained_listing import networks_here

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repository: str, folder: Path) -> Path:
    """The files of a folder as the hub's cache keeps them: blobs by digest, links by commit."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for part in (snapshot, place / "blobs", place / "refs"):
        part.mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for path in folder.iterdir():
        content = path.read_bytes()
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    folders: dict[str, Any] = {}
    for name in ("vit", "text", "timm"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    write_hf(folders["vit"], ViTConfig(**SIZES, image_size=48, patch_size=16), 48)
    (folders["vit"] / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    write_hf(folders["text"], BertConfig(**SIZES), 48)
    write_timm(folders["timm"], "resnet10t", {"channels": (8, 16, 24, 32)})
    for name, folder in folders.items():
        cached(tmp_path / "hub", f"someone/{name}", folder)
    return tmp_path / "hub"


@pytest.mark.usefixtures("cache")
def test_they_are_listed() -> None:
    found, others = networks_here()
    said = {
        one.name: (one.spec["pooled_dim"], one.spec["facts"]["name"], one.spec["facts"]["licence"])
        for one in found
    }
    assert said == {
        "efficientnet_lite0": (1280, "efficientnet_lite0", "apache-2.0"),
        "hf/someone/vit": (32, "hf/someone/vit", "cc-by-nc-4.0"),
        "timm/hf-hub:someone/timm": (32, "timm/hf-hub:someone/timm", "apache-2.0"),
    }
    sizes = {one.name: one.size / 1e6 for one in found}
    assert 13 < sizes["efficientnet_lite0"] < 14 and sizes["hf/someone/vit"] < 1
    ((name, reason),) = others
    assert name == "hf/someone/text" and "no images" in reason


def test_they_are_found_by_name_and_revision(cache: Path) -> None:
    network = find_network("hf/someone/vit", setting="encoder.backbone")
    assert network.revision == COMMIT and network.folder is not None
    assert network.folder.is_relative_to(cache)
    same = find_network("hf/someone/vit", setting="encoder.backbone", revision=COMMIT)
    assert same.digest() == network.digest()
    with refused("encoder.backbone"):
        find_network("hf/someone/vit", setting="encoder.backbone", revision="b" * 40)


def test_a_part_of_a_repository_names_the_command_that_fetches_the_rest(cache: Path) -> None:
    (cache / "models--someone--vit" / "snapshots" / COMMIT / "config.json").unlink()
    with refused("encoder.backbone"):
        find_network("hf/someone/vit", setting="encoder.backbone")


def test_the_command(
    cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from selfshot.cli import main

    assert main(["encoders"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("hf/someone/vit"))
    assert line.split() == ["hf/someone/vit", "frames", "32", "48x48", "0", "cc-by-nc-4.0",
                            "not", "stated"]  # fmt: skip
    assert "limits commercial use" in said and "not usable: hf/someone/text" in said


def test_validate_says_what_a_network_wants(
    cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from selfshot.cli import main

    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("name: a\nencoder: {backbone: hf/someone/vit, layers: 0}\n")
    assert main(["validate", str(experiment)]) == 0
    said = capsys.readouterr().out
    assert "hf/someone/vit: frames, 48 x 48 (multiples of 16, bilinear)" in said
    assert "mean [127.5, 102.0, 76.5]" in said and "licence: cc-by-nc-4.0" in said
    for name in ("text", "nothing"):
        words = ["validate", str(experiment), "--set", f"encoder.backbone=hf/someone/{name}"]
        assert main(words) == 2
        assert f"someone/{name}" in capsys.readouterr().err


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that answers every request alike."""

    status, said = 503, ""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.said)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (404, "RepoNotFound", UserError),
        (404, "RevisionNotFound", UserError),
        (403, "GatedRepo", UserError),
        (401, "", UserError),
        (429, "", StorageError),
        (503, "", StorageError),
    ],
)
def test_what_the_hub_answers(
    status: int, said: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "status", status)
    monkeypatch.setattr(Hub, "said", said)
    with refused("encoder.backbone", kind):
        find_network("hf/a/b", setting="encoder.backbone", revision="x", allow_download=True)


def test_a_hub_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with refused("encoder.backbone", StorageError):
        find_network("hf/a/b", setting="encoder.backbone", allow_download=True)
