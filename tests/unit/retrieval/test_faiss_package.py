"""FAISS comes with an extra: where there is none, or one without GPUs, that is said."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfshot.distributed import checks
from selfshot.errors import UserError
from selfshot.retrieval import building
from selfshot.retrieval import index as index_module
from selfshot.retrieval.building import BuildSettings, build_from_embeddings
from selfshot.retrieval.index import gpus, lack_of_gpus, load_faiss
from selfshot.studies.resources import refuse_without_faiss


class _Without:
    """FAISS as its package for processors is: without some names."""

    def __init__(self, *names: str, num_gpus: int | None = None) -> None:
        self._names, self._num_gpus = names, num_gpus

    def __getattr__(self, name: str) -> Any:
        import faiss

        if name in self._names:
            raise AttributeError(name)
        if name == "get_num_gpus" and self._num_gpus is not None:
            return lambda: self._num_gpus
        if name == "StandardGpuResources":
            return object
        return getattr(faiss, name)


CPU_PACKAGES = [
    _Without("get_num_gpus", "StandardGpuResources"),
    _Without("get_num_gpus"),
    _Without("StandardGpuResources"),
    _Without(num_gpus=0),
]


@pytest.mark.parametrize("package", CPU_PACKAGES, ids=["neither", "no count", "no class", "none"])
def test_a_gpu_that_faiss_does_not_see_is_said(
    package: Any, write_shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    shards = tmp_path / "embeddings"
    write_shards(shards, vectors, (97, 211))
    monkeypatch.setattr(building, "TIMED_S", 0.0)
    found = {}
    for name, use_gpu in (("cpu", False), ("gpu", True)):
        if use_gpu:
            monkeypatch.setattr(index_module, "load_faiss", lambda: package)
        said: list[str] = []
        folder = tmp_path / name
        (folder / "scratch").mkdir(parents=True)
        settings = BuildSettings(factory="IVF7,Flat", use_gpu=use_gpu)
        build_from_embeddings(shards, folder, folder / "scratch", settings, said.append)
        lines = [line for line in said if "FAISS sees no GPU" in line]
        assert len(lines) == use_gpu
        assert all("install selfshot[gpu], and not faiss-cpu beside it" in line for line in lines)
        found[name] = (folder / "lists.bin").read_bytes()
    assert gpus() == 0 and found["cpu"] == found["gpu"]


def test_gpus_that_faiss_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "load_faiss", lambda: _Without(num_gpus=3))
    assert gpus() == 3 and lack_of_gpus() is None


@pytest.mark.parametrize("what", ["absent", "broken", "remains"])
def test_without_faiss_the_extra_is_named(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "faiss")
    if what == "absent":
        monkeypatch.setitem(sys.modules, "faiss", None)
    else:
        (tmp_path / "faiss").mkdir()
        if what == "broken":
            code = "raise ImportError('libcudart.so.12: cannot open shared object file')"
            (tmp_path / "faiss" / "__init__.py").write_text(code)
            monkeypatch.syspath_prepend(tmp_path)
        else:
            monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"FAISS cannot be imported .*install selfshot\[cpu\]"):
        load_faiss()
    # A run is refused at its start, not after hours of embedding.
    with pytest.raises(UserError, match=r"selfshot\[gpu\]"):
        refuse_without_faiss(["embeddings", "index"])
    refuse_without_faiss(["vis", "evaluation"])
    assert checks.check_faiss(False).status == "wrong"


def test_the_check_of_a_cluster_looks_at_either_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"faiss-gpu-cu12": "1.14.1"}

    def version(name: str) -> str:
        if name.startswith("faiss") and name not in installed:
            raise PackageNotFoundError(name)
        return installed.get(name, "1.0")

    monkeypatch.setattr(checks, "version", version)
    assert checks.versions()["faiss"] == "1.14.1" and "faiss-cpu" not in checks.versions()
    installed["faiss-cpu"] = "1.15.1"
    assert checks.versions()["faiss"] == "1.14.1 and 1.15.1"
    installed.clear()
    assert checks.versions()["faiss"] == "missing"
    assert checks.check_faiss(False).status == "ok"
    monkeypatch.setattr(index_module, "load_faiss", lambda: _Without("StandardGpuResources"))
    lacking = checks.check_faiss(True)
    assert lacking.status == "warning" and "FAISS sees no GPU" in lacking.words
