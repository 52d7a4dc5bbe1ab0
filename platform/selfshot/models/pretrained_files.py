"""Pretrained networks by name: where their files lie, what they are, and under which licence.

    timm/NAME             a network of timm; its weights from the hub's cache on this machine
    timm/hf-hub:OWNER/REPO  a repository that timm wrote
    timm/local-dir:FOLDER   a folder that timm's save_for_hf wrote
    hf/OWNER/REPO         a repository of transformers
    hf/FOLDER             a folder that save_pretrained wrote

Nothing here needs torch, and nothing is downloaded unless it is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfshot.errors import StorageError, UserError
from selfshot.files import digest_file, digest_pieces

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, the best first; either may be cut into shards, with an index beside them."""

_WANTED = ("*.json", "*.safetensors", "pytorch_model*.bin", "README.md")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORBIDS = re.compile(r"-nc\b|non-?commercial|dinov3|^other$|research", re.IGNORECASE)
_UNLABELLED = re.compile(r"dino|mae|mim|lvd|ijepa|jepa|moco|simclr|byol|swav", re.IGNORECASE)
_CAPTIONS = re.compile(r"clip|laion|webli|openai|datacomp|dfn|metaclip|siglip", re.IGNORECASE)
_LABELS = re.compile(r"in1k|in12k|in2[12]k|_in1k|jft|coco|ade20k|kinetics|ssv2", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class NetworkFiles:
    """A pretrained network on this machine.

    Attributes:
        name: as it was given, `timm/…` or `hf/…`.
        folder: of its config and weights; None where the weights are drawn at random.
        config: what its config.json holds; of a network of timm's registry without a folder, its
            architecture alone.
        revision: commit of the repository; None of a folder.
        licence: of the weights, as its model card or timm says; None where neither does.
        supervision: what it was trained with: `labels`, `captions` or `none`; None where nothing
            says.
    """

    name: str
    folder: Path | None
    config: dict[str, Any]
    revision: str | None = None
    licence: str | None = None
    supervision: str | None = None

    @property
    def library(self) -> str:
        """`timm` or `hf`."""
        return self.name.partition("/")[0]

    @property
    def facts(self) -> dict[str, Any]:
        """For manifests, reports and MLflow."""
        return {
            "name": self.name,
            "revision": self.revision,
            "licence": self.licence,
            "supervision": self.supervision,
        }

    def digest(self) -> str:
        """SHA-256 over the names and contents of the weights and the configs, hexadecimal.

        The hub's cache names a file by its SHA-256, so that nothing is read there.
        """
        if self.folder is None:
            return digest_pieces([self.name.encode()])
        files = [p for p in sorted(self.folder.iterdir()) if p.name.endswith(_READ)]
        pieces = [f"{p.name}\0{_sha256(p)}\0" for p in files]
        return digest_pieces(x.encode() for x in (str(self.config.get("architecture")), *pieces))


_READ = (".safetensors", ".bin", "config.json", ".index.json")


def _sha256(path: Path) -> str:
    real = path.resolve()
    return real.name if _SHA256.fullmatch(real.name) else digest_file(real)


def anywhere(name: str) -> str:
    """A name that means the same in every working folder: one of a folder with its whole path."""
    library, _, rest = name.partition("/")
    source, _, place = rest.partition(":")
    if library == "timm" and source == "local-dir":
        return f"timm/local-dir:{Path(place).expanduser().resolve()}"
    if library == "hf" and Path(rest).expanduser().is_dir():
        return f"hf/{Path(rest).expanduser().resolve()}"
    return name


def is_pretrained_name(text: str) -> bool:
    """Whether a text names a network of timm or transformers."""
    return text.startswith(("timm/", "hf/"))


def find_network(
    name: str,
    *,
    setting: str,
    revision: str | None = None,
    allow_download: bool = False,
    weights: str | None = None,
) -> NetworkFiles:
    """The files of a network by its name.

    Args:
        name: see the head of this module.
        setting: what named it, for messages.
        revision: branch, tag or commit of its repository; None: the newest on this machine, or of
            the hub where a download is allowed.
        allow_download: fetch from the hub what is not on this machine.
        weights: of a network of timm's registry: `random`, or a file that is read later; its own
            weights are then not looked for.

    Raises:
        UserError: the name is wrong, or its files are not on this machine.
        StorageError: the hub does not answer.
    """
    library, _, rest = name.partition("/")
    if library == "timm":
        source, sep, place = rest.partition(":")
        if not sep:
            return _of_timm(name, rest, setting, revision, allow_download, weights)
        if source not in ("hf-hub", "local-dir") or not place:
            raise UserError(
                f"{setting}: {name} is no network (allowed: timm/NAME, timm/hf-hub:OWNER/REPO, "
                "timm/local-dir:FOLDER)",
                setting=setting,
            )
        folder = Path(place).expanduser() if source == "local-dir" else None
        repository = place
    else:
        folder = Path(rest) if Path(rest).is_dir() or rest.startswith(("/", ".", "~")) else None
        repository = rest
    if weights is not None:
        raise UserError(
            f"{setting}: {name} brings its own weights; leave weights out (it is for the networks "
            "of timm's registry, timm/NAME)",
            setting=setting,
        )
    if folder is not None:
        if revision is not None:
            raise UserError(
                f"{setting}: {name} is a folder and has no revision {revision}; leave revision out",
                setting=setting,
            )
        return _read_folder(name, folder.expanduser(), setting)
    folder = _snapshot(name, repository, setting, revision, allow_download)
    return dataclasses.replace(_read_folder(name, folder, setting), revision=folder.name)


def _of_timm(
    name: str,
    rest: str,
    setting: str,
    revision: str | None,
    allow_download: bool,
    weights: str | None,
) -> NetworkFiles:
    """A network of timm's registry: its architecture, and the folder of the weights it names."""
    # Imported here: it takes seconds, and most runs need none of it.
    import timm

    architecture, _, tag = rest.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"; near: {', '.join(f'timm/{one}' for one in near)}" if near else ""
        raise UserError(
            f"{setting}: timm has no network {architecture}{hint} (allowed: a name of "
            "timm.list_models(), with or without a tag)",
            setting=setting,
        )
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"{setting}: timm has no weights {tag} of {architecture} (allowed: "
            f"{', '.join(tags) or 'none'})",
            setting=setting,
        )
    if weights is not None:
        if weights == "random":
            return NetworkFiles(name, None, {"architecture": architecture}, supervision="none")
        return NetworkFiles(name, None, {"architecture": architecture})
    known = timm.get_pretrained_cfg(rest)
    if known is None or not known.hf_hub_id:
        raise UserError(
            f"{setting}: timm has no weights of {architecture}; name another network, or give "
            "its weights in weights, a file or random",
            setting=setting,
        )
    folder = _snapshot(name, known.hf_hub_id, setting, revision, allow_download)
    found = _read_folder(name, folder, setting)
    config = found.config
    if config["architecture"] != architecture:
        # Weights that several networks share: the repository names one, the person another.
        config = {**config, "architecture": architecture, "model_args": {}}
    return dataclasses.replace(found, config=config, revision=folder.name)


def _snapshot(
    name: str, repository: str, setting: str, revision: str | None, allow_download: bool
) -> Path:
    """The folder of a repository in the hub's cache."""
    from huggingface_hub import errors, snapshot_download

    at = f" at {revision}" if revision else ""
    wanted = f" --revision {revision}" if revision else ""
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                local_files_only=not allow_download,
                allow_patterns=list(_WANTED),
            )
        )
    except errors.HFValidationError as error:
        raise UserError(
            f"{setting}: {name} is neither a folder nor the name of a repository ({error})",
            setting=setting,
        ) from None
    except errors.GatedRepoError:
        raise UserError(
            f"{setting}: {repository} is gated: accept its terms on the hub and log in with "
            "hf auth login",
            setting=setting,
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{setting}: {repository} has no revision {revision}; name another, or leave it out",
            setting=setting,
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{setting}: the hub has no repository {repository}, or it is private; correct the "
            "name, or log in with hf auth login",
            setting=setting,
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if allow_download:
            raise StorageError(
                f"{setting}: {repository}{at} is not on this machine and the hub does not answer; "
                "run the same command again when it does",
                setting=setting,
            ) from None
        allow = "" if setting.startswith("--") else ", set allow_download: true"
        raise UserError(
            f"{setting}: {repository}{at} is not on this machine; fetch it with: hf download "
            f"{repository}{wanted}{allow}, or give a folder",
            setting=setting,
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{setting}: the hub lets nobody read {repository}{at} who is not logged in, or "
                "not you; log in with hf auth login",
                setting=setting,
            ) from None
        raise StorageError(
            f"{setting}: {repository}{at} cannot be fetched from the hub "
            f"({str(error).splitlines()[0][:200]}); run the same command again when it answers",
            setting=setting,
        ) from error
    if not (folder / "config.json").is_file():
        # As other programs leave it, which fetch the weights alone.
        raise UserError(
            f"{setting}: only a part of {repository}{at} is on this machine; fetch the rest with: "
            f"hf download {repository}{wanted}",
            setting=setting,
        )
    return folder


def _read_folder(name: str, folder: Path, setting: str) -> NetworkFiles:
    """What a folder says of its network.

    Raises:
        UserError: it is no folder, or lacks a config or weights.
    """
    library = name.partition("/")[0]
    wrote = {"timm": "timm's save_for_hf", "hf": "save_pretrained"}[library]
    if not folder.is_dir():
        raise UserError(
            f"{setting}: {folder} is no folder (allowed: one that {wrote} wrote)", setting=setting
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: {folder} has no config.json that can be read ({error}); give a folder "
            f"that {wrote} wrote",
            setting=setting,
        ) from None
    wanted = {"timm": "architecture", "hf": "model_type"}[library]
    if not isinstance(config, dict) or wanted not in config:
        other = {"timm": "hf", "hf": "timm"}[library]
        raise UserError(
            f"{setting}: {folder}/config.json names no {wanted}, so it is no network of "
            f"{ {'timm': 'timm', 'hf': 'transformers'}[library] }; give a folder that {wrote} "
            f"wrote, or try {other}/…",
            setting=setting,
        )
    if not weights_files(folder):
        raise UserError(
            f"{setting}: {folder} has no weights ({' or '.join(WEIGHTS)}); fetch the whole "
            "repository, or give another folder",
            setting=setting,
        )
    card = _card(folder / "README.md")
    own = config.get("pretrained_cfg") or {}
    return NetworkFiles(
        name,
        folder,
        config,
        licence=card.get("license_name") or card.get("license") or own.get("license"),
        supervision=_supervision(name, config, own),
    )


def weights_files(folder: Path) -> list[Path]:
    """The files of weights in a folder, whole or in shards; of several kinds the best."""
    for name in WEIGHTS:
        stem, _, suffix = name.rpartition(".")
        found = [folder / name] if (folder / name).is_file() else []
        found = found or sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
        if found:
            return found
    return []


def _card(path: Path) -> dict[str, Any]:
    """The front matter of a model card; nothing where there is none that can be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        said = YAML(typ="safe").load(found[1]) if found else {}
    except YAMLError:
        return {}
    return said if isinstance(said, dict) else {}


def _supervision(name: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """What a network was trained with, as far as its kind and its tag tell."""
    tag, kinds = own.get("tag") or "", [config.get("architecture"), config.get("model_type")]
    # A folder's path says nothing: anyone may have named it.
    place = name.partition(":")[2] or name.partition("/")[2]
    told = " ".join(str(one) for one in (tag, *kinds) if one) + (
        "" if Path(place).is_dir() else name
    )
    classifies = any("Classification" in one for one in config.get("architectures") or ())
    if classifies or "ft_in" in told:
        return "labels"
    patterns = {"none": _UNLABELLED, "captions": _CAPTIONS, "labels": _LABELS}
    return next((kind for kind, pattern in patterns.items() if pattern.search(told)), None)


def licence_warning(facts: Mapping[str, Any]) -> str | None:
    """What a network's licence may forbid, in one line; None where it allows commercial use.

    Args:
        facts: of `NetworkFiles.facts`.
    """
    name, licence = facts["name"], facts["licence"]
    if licence is None:
        return f"{name}: its files name no licence; look for its terms before you use it"
    if _FORBIDS.search(licence):
        return (
            f"{name}: its licence is {licence}, which limits commercial use or redistribution; "
            "read its terms before you publish what it gives"
        )
    return None
