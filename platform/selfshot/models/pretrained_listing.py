"""The pretrained networks in the hub's cache of this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from huggingface_hub import CacheNotFound, constants, scan_cache_dir

from selfshot.errors import Reported
from selfshot.models.pretrained import PACKAGED, describe_network, packaged_network
from selfshot.models.pretrained_files import find_network, weights_files


@dataclasses.dataclass(frozen=True)
class NetworkHere:
    """A network that can be named.

    Attributes:
        name: as `--encoder` takes it.
        spec: of `describe_network`.
        size: of its weights, in bytes.
    """

    name: str
    spec: dict[str, Any]
    size: int


def networks_here() -> tuple[list[NetworkHere], list[tuple[str, str]]]:
    """The networks on this machine, and the repositories with a config that are none, and why."""
    packaged = packaged_network()
    size = sum(p.numel() * p.element_size() for p in packaged.parameters())
    found = [NetworkHere(PACKAGED, packaged.spec, size)]
    others: list[tuple[str, str]] = []
    for repository, folder in _snapshots():
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue  # A dataset, or a repository of which only other files were fetched.
        of_timm = isinstance(config, dict) and "architecture" in config
        name = f"timm/hf-hub:{repository}" if of_timm else f"hf/{repository}"
        try:
            spec = describe_network(find_network(name, setting=name), setting=name)
        except Reported as error:
            others.append((name, str(error).removeprefix(f"{name}: ")))
            continue
        size = sum(path.stat().st_size for path in weights_files(folder))
        found.append(NetworkHere(name, spec, size))
    return found, others


def _snapshots() -> list[tuple[str, Path]]:
    """Repositories of models in the hub's cache, and the folder of the newest revision of each."""
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    return sorted(
        (one.repo_id, max(one.revisions, key=lambda r: r.last_modified).snapshot_path)
        for one in cache.repos
        if one.repo_type == "model" and one.revisions
    )
