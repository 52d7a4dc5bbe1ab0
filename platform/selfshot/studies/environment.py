"""What a run was made with, found out without loading any of it."""

from __future__ import annotations

import os
import platform as machine
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from selfshot.store.local import git_revision


def run_environment() -> dict[str, str]:
    """What a run was made with: the code, the machine and the libraries."""
    return {
        "git revision": git_revision() or "not a git checkout",
        "machine": f"{machine.system()} {machine.machine()}, {os.cpu_count()} cores",
        "Python": machine.python_version(),
        **{name: version(name) for name in ("torch", "ray", "deepspeed", "mlflow", "decord")},
    }


NO_LABELS = "by their kinds and tags, no network in it learned from labels"
LEARNED = {"labels": "labels", "captions": "captions", "none": "no labels"}


def networks_told(networks: Iterable[Mapping[str, Any]]) -> str:
    """Pretrained networks in a line: name, revision, licence, and what each learned from.

    Args:
        networks: name, revision, licence and supervision of each; the last three may be None.
    """
    told = []
    for one in networks:
        at = f" at {one['revision'][:12]}" if one["revision"] else ""
        learned = LEARNED.get(one["supervision"], "what is not stated")
        licence = one["licence"] or "no licence stated"
        told.append(f"{one['name']}{at} ({licence}; by its kind and tag, learned from {learned})")
    return "; ".join(told) or "none"


def label_free(networks: Iterable[Mapping[str, Any]], backbone: str) -> str:
    """What labels the retrieval rests on, in a sentence.

    Args:
        networks: see `networks_told`.
        backbone: `encoder.backbone`.
    """
    reads = []
    if backbone == "pretrained":
        reads.append("the seen classes' masks and labels, which its backbone learned from")
    for kind, what in (("labels", "labels"), ("captions", "captions"), (None, "unstated data")):
        names = [one["name"] for one in networks if one["supervision"] == kind]
        if names:
            reads.append(f"{what} that {' and '.join(names)} learned from, unseen classes included")
    return f"it rests on {'; '.join(reads)}" if reads else NO_LABELS
