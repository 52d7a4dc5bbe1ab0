"""What is installed: FAISS by an extra, and only versions that were tried."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
)
WANTED = [
    Requirement(one)
    for some in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for one in some
]


def test_whatever_installs_the_package_names_one_faiss() -> None:
    """Two packages have FAISS's files: the package itself needs neither, each extra one."""
    assert not any("faiss" in one for one in PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    assert [one.split(">")[0] for one in extras["cpu"]] == ["faiss-cpu"]
    assert [one.split(">")[0] for one in extras["gpu"]] == ["faiss-gpu-cu12"]
    assert "'.[cpu,dev]'" in (ROOT / "Makefile").read_text()
    assert 'ARG EXTRAS="cpu"' in (ROOT / "cluster" / "Containerfile").read_text()
    assert "'~/selfshot[cpu]'" in (ROOT / "ray_cluster.yaml").read_text()


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_the_versions_that_were_tried_are_allowed(wanted: Requirement) -> None:
    if wanted.name == "faiss-gpu-cu12":
        pytest.skip("the tests run with faiss-cpu, which has the same files")
    assert wanted.specifier.contains(PINNED[wanted.name])


@pytest.mark.parametrize("name", ["ray", "torch", "torchvision", "deepspeed"])
def test_no_other_version_of_what_has_private_names_in_use(name: str) -> None:
    """The next minor version may rename them, and one before was never tried."""
    (wanted,) = (one for one in WANTED if one.name == name)
    major, minor = map(int, PINNED[name].split(".")[:2])
    assert not wanted.specifier.contains(f"{major}.{minor + 1}.0")
    assert not wanted.specifier.contains(f"{major}.{minor - 1}.9")
