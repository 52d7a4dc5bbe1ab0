"""What all tests share: checked shapes, the folder of shared inputs, and a clean process."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

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
