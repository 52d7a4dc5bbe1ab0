"""What a run was made with, found out without loading any of it."""

from __future__ import annotations

import os
import platform as machine
from importlib.metadata import version

from selfshot.store.local import git_revision


def run_environment() -> dict[str, str]:
    """What a run was made with: the code, the machine and the libraries."""
    return {
        "git revision": git_revision() or "not a git checkout",
        "machine": f"{machine.system()} {machine.machine()}, {os.cpu_count()} cores",
        "Python": machine.python_version(),
        **{name: version(name) for name in ("torch", "ray", "deepspeed", "mlflow", "decord")},
    }
