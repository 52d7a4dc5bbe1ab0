"""What all tests share: checked shapes, the folder of shared inputs, and a clean process."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Ray reads its mode when it is imported, and a session of ours asks for a token. So the mode is
# there before a test imports Ray for something else.
os.environ.setdefault("RAY_AUTH_MODE", "token")
if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# No test asserts a time: a busy machine is no fault of an example.
settings.register_profile("selfshot", deadline=None)
settings.load_profile("selfshot")

# The same: a session of ours forbids Ray to start by itself.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

_OPS = Path(__file__).resolve().parents[1] / "platform" / "selfshot" / "ops"
# Numba cannot compile what is wrapped in a check.
_CHECKED = [
    f"selfshot.ops.{path.stem}"
    for path in sorted(_OPS.glob("[a-z]*.py"))
    if path.stem != "rle_kernels"
]


def _check_shapes() -> None:
    """Check the shapes in the signatures of `selfshot.ops` wherever a test imports it."""
    if not sys.modules.keys().isdisjoint(_CHECKED):
        return  # Imported before pytest came here: too late, and no reason to fail.
    try:
        from jaxtyping import install_import_hook
    except ImportError:
        return
    install_import_hook(_CHECKED, "beartype.beartype")


_check_shapes()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of inputs beside the project; the test is skipped where there is none."""
    named = os.environ.get("SELFSHOT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared inputs at {folder}; set SELFSHOT_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sprites benchmark of 32 × 32 pixels and 3 frames."""
    from selfshot.benchmarks.sprites.build import build_sprites
    from selfshot.config.benchmarks import SpritesBenchmark

    root = tmp_path_factory.mktemp("tiny_sprites")
    (root / "benchmark").mkdir()
    sizes = SpritesBenchmark(
        height=32, width=32, num_frames=3, train_classes=3, val_classes=1, test_classes=1,
        train_queries=3, train_supports=3, eval_queries=1, eval_supports=1, corpus_clips=13,
        corpus_seen_classes=1,
    )  # fmt: skip
    build_sprites(root / "benchmark", root / "scratch", map, sizes, seed=0)
    return root / "benchmark"


@pytest.fixture(scope="session")
def backbone_settings(tiny_sprites: Path) -> dict[str, Any]:
    """Arguments of `BackboneTask`."""
    section = {
        "width": 8, "dim": 12, "classes_per_batch": 3,
        "optimiser": {"steps": 100, "learning_rate": 5e-3},
    }  # fmt: skip
    return {"benchmark": str(tiny_sprites), "seed": 1, "backbone": section}


@pytest.fixture(scope="session")
def backbone_folder(
    backbone_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What `BackboneTask.export` writes after a few steps."""
    from selfshot.training.backbone import BackboneTask
    from selfshot.training.loop import Schedule, run_plain

    folder = tmp_path_factory.mktemp("backbone")
    task = BackboneTask(**backbone_settings)
    run_plain(task, Schedule(steps=4, warmup_steps=1, weight_decay=1e-4, clip_norm=1.0))
    task.export(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_settings(tiny_sprites: Path, backbone_folder: Path) -> dict[str, Any]:
    """Arguments of `EncoderTask`."""
    section = {
        "layers": 1, "heads": 2, "videos_per_batch": 4, "crops_per_video": 2, "queue_length": 16,
        "momentum": 0.9, "optimiser": {"steps": 10, "learning_rate": 1e-3, "warmup_steps": 0},
    }  # fmt: skip
    return {
        "benchmark": str(tiny_sprites), "backbone": str(backbone_folder), "seed": 1,
        "backbone_network": {"width": 8, "dim": 12}, "encoder": section,
    }  # fmt: skip


@pytest.fixture(scope="session")
def vis_settings(tiny_sprites: Path, backbone_folder: Path) -> dict[str, Any]:
    """Arguments of `VisTask`."""
    section = {
        "heads": 2, "ffn_dim": 24, "num_instances": 3, "episodes_per_batch": 2,
        "weights": {"dice": 2.0}, "optimiser": {"steps": 100, "learning_rate": 2e-3},
    }  # fmt: skip
    return {
        "benchmark": str(tiny_sprites), "backbone": str(backbone_folder), "seed": 1, "vis": section,
    }  # fmt: skip


@pytest.fixture(scope="session")
def change() -> Callable[..., dict[str, Any]]:
    """Gives a task's arguments with other values, of its section or its own."""

    def with_changes(settings: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
        section = {**settings[name], "optimiser": {**settings[name]["optimiser"]}}
        own = {}
        for key, value in changes.items():
            known = key in settings and (name, key) != ("encoder", "backbone")
            if known or key in ("fuser", "accumulate", "checkpointing"):
                own[key] = value
            elif key in ("steps", "learning_rate"):
                section["optimiser"][key] = value
            else:
                section[key] = value
        return {**settings, name: section, **own}

    return with_changes
