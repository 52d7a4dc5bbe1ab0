"""What a Ray cluster lacks for our runs, found out before a job is sent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from selfshot.config.addresses import is_address
from selfshot.data.storage import Storage
from selfshot.distributed.sharing import CACHE
from selfshot.errors import StorageError, UserError
from selfshot.retrieval.index import faiss_facts, gpus, lack_of_gpus

PACKAGES = ("selfshot", "ray", "torch", "deepspeed", "mlflow", "decord", "av")
FAISS = ("faiss-cpu", "faiss-gpu-cu12")
"""Packages of the extras `cpu` and `gpu`; nodes may differ in which of them they have."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `warning` or `wrong`, and what a person should know."""

    what: str
    status: str
    words: str


def versions() -> dict[str, str]:
    """Python and the packages that must agree between nodes; `missing` where one is not there."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    installed = []
    for name in FAISS:
        with contextlib.suppress(PackageNotFoundError):
            installed.append(version(name))
    found["faiss"] = " and ".join(sorted(set(installed))) or "missing"
    return found


def _look(folder: str, token: str, output: str) -> dict[str, Any]:
    """On a node: its versions, its GPUs, and what it sees of the shared folder or of storage."""
    import socket

    facts: dict[str, Any] = {"host": socket.gethostname(), "versions": versions()}
    try:
        import torch

        facts["gpus"] = torch.cuda.device_count()
    except ImportError:
        facts["gpus"] = 0
    files = Storage(folder)
    answer = f"{token}.{os.getpid()}.{facts['host']}"
    facts["sees"], facts["wrote"], facts["error"] = False, "", ""
    try:
        facts["sees"] = files.size(token) is not None
        files.write(answer, b"seen")
        facts["wrote"] = answer
        if is_address(folder):
            facts["folder"] = _own_folder(output)
    except (UserError, StorageError, OSError) as error:
        facts["error"] = str(error)
    return facts


def _own_folder(output: str) -> str:
    """This node's output folder, if it can be written.

    Raises:
        OSError: it cannot.
    """
    folder = Path(os.environ.get(CACHE) or output)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".cluster-check-{uuid.uuid4().hex}"
    probe.touch()
    probe.unlink()
    return str(folder)


def check_cluster(output: Path, storage: str | None = None) -> list[Finding]:
    """Look at every node of the running Ray.

    Args:
        output: where runs are written; without storage it must be the same folder on every node.
        storage: address that every node must reach; None: the output folder is shared.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    token = f".cluster-check-{uuid.uuid4().hex}"
    shared = str(output) if storage is None else storage
    files = Storage(shared)
    if storage is not None:
        files.check()
    files.write(token, b"here")
    alive = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0)(_look)
    answers: dict[str, Any] = {}
    looks = {
        node["NodeID"]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(shared, token, str(output))
        for node in alive
    }
    findings = []
    names = {node["NodeID"]: f"node {node['NodeManagerAddress']}" for node in alive}
    for node_id, reference in looks.items():
        try:
            answers[node_id] = ray.get(reference, timeout=120)
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            last = lines[-1].strip() if lines else repr(error)
            findings.append(Finding(names[node_id], "wrong", f"cannot run our code: {last}"))
    there = files.sizes("")
    findings += _of_nodes(answers, names, shared, set(there))
    for name in there:
        if name.startswith(token):
            files.remove(name)
    return findings


def _of_nodes(
    answers: dict[str, Any], names: dict[str, str], shared: str, there: set[str]
) -> list[Finding]:
    mine = versions()
    findings = []
    for node_id, facts in answers.items():
        where = names[node_id]
        differ = [
            f"{name} {theirs} (here {mine[name]})"
            for name, theirs in facts["versions"].items()
            if theirs != mine[name]
        ]
        if differ:
            findings.append(Finding(where, "wrong", f"other versions: {', '.join(differ)}"))
        if not facts["wrote"] or facts["error"]:
            words = f"cannot write to {shared}: {facts['error']}"
            if facts["wrote"]:
                words = f"its output folder cannot be written: {facts['error']}"
            findings.append(Finding(where, "wrong", words))
        elif not facts["sees"] or facts["wrote"] not in there:
            words = (
                f"{shared} there is another folder than here; share it, or set `storage` to an "
                "address that all nodes reach"
            )
            findings.append(Finding(where, "wrong", words))
        elif not differ:
            own = f", its own folder is {facts['folder']}" if "folder" in facts else ""
            words = f"the same versions, sees {shared}{own}, {facts['gpus']} GPUs"
            findings.append(Finding(where, "ok", words))
    return findings


def check_faiss(use_gpu: bool) -> Finding:
    """Whether an index can be built and searched here, and on a GPU if that is wanted."""
    try:
        facts = faiss_facts()
        lack = lack_of_gpus() if use_gpu else None
    except UserError as error:
        return Finding("FAISS", "wrong", str(error))
    if lack is not None:
        return Finding("FAISS", "warning", lack)
    return Finding("FAISS", "ok", f"{facts['faiss']}, it sees {gpus()} GPUs")


def check_tracking(uri: str | None, output: Path) -> Finding:
    """Whether the tracking server answers."""
    from selfshot.distributed.mlflow_runs import Target, reason_of

    if uri is None:
        where = output.resolve() / "mlflow.db"
        return Finding("tracking", "ok", f"SQLite in {where}; nodes need no server")
    try:
        Target(uri, "selfshot", output).connect().search_experiments(max_results=1)
    except Exception as error:
        words = f"{uri} does not answer ({reason_of(error)}); runs go on and are logged later"
        return Finding("tracking", "warning", words)
    return Finding("tracking", "ok", f"{uri} answers")
