"""Weights that other programs wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from selfshot.errors import StorageError, UserError
from selfshot.models.foreign_weights import (
    fit_foreign_weights,
    read_foreign_weights,
    weights_digest,
)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(resnet18(weights=None).state_dict())


def _fit(path: Path) -> tuple[Any, Any]:
    network = resnet18(weights=None)
    del network.fc
    return network, fit_foreign_weights(network, path, setting="backbone.weights")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.body."])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_any_prefix_and_file(
    state: dict[str, torch.Tensor], tmp_path: Path, prefix: str, kind: str
) -> None:
    named = {prefix + name: value for name, value in state.items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(named, path)
    else:
        torch.save({"model": named, "epoch": 3} if kind == "wrapped" else named, path)
    network, report = _fit(path)
    assert report.prefix == prefix and not report.missing
    assert {name.removeprefix(prefix) for name in report.unexpected} == {"fc.weight", "fc.bias"}
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name])
    assert f"{report.loaded} weights from" in str(report) and "not used" in str(report)


def test_a_weight_that_is_missing_is_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del state["layer2.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"backbone\.weights.*lacks 1 .*layer2\.0\.conv1\.weight"):
        _fit(tmp_path / "w.safetensors")


def test_another_shape_is_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"conv1\.weight has the shape \(64, 3, 3, 3\)"):
        _fit(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layer1.2.conv1.weight", "more layers"),  # as in ResNet-34
        ("layer3.0.se.fc1.weight", "a part named se"),
        ("bn2.weight", "a part named bn2"),  # the three convolutions of CLIP's and ResNet-D's stem
        ("attnpool.q_proj.weight", "a part named attnpool"),
    ],
)
def test_a_deeper_or_another_resnet_is_an_error(
    state: dict[str, torch.Tensor], tmp_path: Path, name: str, said: str
) -> None:
    save_file({**state, name: torch.ones(64)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"backbone\.weights.*{name}.*{said}"):
        _fit(tmp_path / "w.safetensors")


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize("kind", ["code", "text", "empty", "module", "absent", "numbers"])
def test_what_is_no_weights(tmp_path: Path, kind: str, capsys: Any) -> None:
    path = tmp_path / "w.pth"
    if kind == "code":
        torch.save({"model": _Evil()}, path)
    elif kind == "module":
        torch.save(nn.Linear(2, 3), path)
    elif kind == "numbers":
        torch.save({"epoch": 3}, path)
    elif kind != "absent":
        path.write_bytes(b"" if kind == "empty" else b"not weights")
    with pytest.raises(UserError, match=r"w\.pth"):
        read_foreign_weights(path)
    assert "run" not in capsys.readouterr().out


def test_addresses(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        path = tmp_path / name
        read = read_foreign_weights(f"file://{path}")
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)
        assert weights_digest(path) == weights_digest(f"file://{path}")
    assert weights_digest(tmp_path / "w.pth") != weights_digest(tmp_path / "w.safetensors")
    for wrong in ("nowhere://x/y.pt", f"file://{tmp_path}/missing.pt"):
        with pytest.raises(UserError, match=r"it cannot be read \("):
            read_foreign_weights(wrong)
    with pytest.raises(UserError, match=r"missing.pt: it cannot be read"):
        weights_digest(tmp_path / "missing.pt")


def test_an_outage_is_no_mistake_in_the_address(web_server: Any) -> None:
    address = f"{web_server.address}/w.pth"
    web_server.times = 100
    with pytest.raises(StorageError, match=r"w\.pth: it cannot be read \(503"):
        read_foreign_weights(address)
    with pytest.raises(StorageError, match=r"w\.pth: it cannot be read"):
        read_foreign_weights("http://127.0.0.1:9/w.pth")
    web_server.refusal = 404
    with pytest.raises(UserError, match=r"w\.pth: it cannot be read"):
        read_foreign_weights(address)


@pytest.mark.parametrize("etags", [("", ""), ("one", "other")])
def test_other_weights_behind_one_web_address_are_others(
    web_server: Any, etags: tuple[str, str]
) -> None:
    address = f"{web_server.address}/w.pth"
    web_server.content, web_server.etag = b"abc", etags[0]
    first = weights_digest(address)
    assert weights_digest(address) == first
    web_server.content, web_server.etag = b"abd", etags[1]
    assert weights_digest(address) != first
