"""What all tests share: checked shapes, the folder of shared inputs, and a clean process."""

from __future__ import annotations

import os
import secrets
import sys
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

    root = tmp_path_factory.mktemp("tiny_sprites")
    (root / "benchmark").mkdir()
    build_sprites(
        root / "benchmark",
        root / "scratch",
        map,
        seed=0,
        height=32,
        width=32,
        num_frames=3,
        train_classes=3,
        val_classes=1,
        test_classes=1,
        train_queries=3,
        train_supports=3,
        eval_queries=1,
        eval_supports=1,
        corpus_clips=13,
        corpus_seen_classes=1,
        multi_shot_share=0.5,
    )
    return root / "benchmark"


@pytest.fixture(scope="session")
def backbone_settings(tiny_sprites: Path) -> dict[str, Any]:
    """Arguments of `BackboneTask`."""
    return {
        "benchmark": str(tiny_sprites),
        "seed": 1,
        "width": 8,
        "dim": 12,
        "classes_per_batch": 3,
        "temperature": 0.1,
        "learning_rate": 5e-3,
    }


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
    return {
        "benchmark": str(tiny_sprites),
        "backbone": str(backbone_folder),
        "backbone_settings": {"width": 8, "dim": 12},
        "seed": 1,
        "steps": 10,
        "trunk": "backbone",
        "dim": 12,
        "layers": 1,
        "heads": 2,
        "loss": "rank",
        "rank_temperature": 0.05,
        "rank_form": "ap",
        "nce_temperature": 0.1,
        "num_frames": 2,
        "videos_per_batch": 4,
        "crops_per_video": 2,
        "queue_length": 16,
        "momentum": 0.9,
        "learning_rate": 1e-3,
    }


@pytest.fixture(scope="session")
def vis_settings(tiny_sprites: Path, backbone_folder: Path) -> dict[str, Any]:
    """Arguments of `VisTask`."""
    return {
        "benchmark": str(tiny_sprites),
        "backbone": str(backbone_folder),
        "seed": 1,
        "model": {
            "heads": 2,
            "encoder_layers": 1,
            "fuser_layers": 1,
            "decoder_layers": 2,
            "ffn_dim": 24,
            "dropout": 0.0,
            "num_instances": 3,
            "deformable": False,
            "query_positions": True,
            "support_positions": True,
        },
        "weights": {
            "foreground": 1.0,
            "l1": 5.0,
            "giou": 2.0,
            "dice": 2.0,
            "focal": 40.0,
            "common": 2.0,
            "no_object": 0.1,
        },
        "episodes_per_batch": 2,
        "train_shots": 1,
        "learning_rate": 2e-3,
        "backbone_learning_rate": 2e-4,
    }
