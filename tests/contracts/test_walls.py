"""The walls: which package may import which, and what no module may be called."""

from __future__ import annotations

import graphlib
import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "platform"
MODULES = sorted((SOURCE / "selfshot").rglob("*.py"))

JUNK_DRAWERS = {"utils", "util", "misc", "helpers", "helper", "common", "shared", "stuff", "tools"}


def _python(code: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_imports_go_down_only() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-logo", "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("selfshot", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"Each imports the one before it: {', '.join(error.args[1])}")


def test_the_source_root_does_not_hide_the_standard_library() -> None:
    assert not (SOURCE / "__init__.py").exists()
    found = _python("import platform; print(platform.python_version(), platform.__file__)")
    assert str(ROOT / "platform") not in found


@pytest.mark.parametrize(
    "module", ["selfshot.cli", "selfshot.config.load", "selfshot.config.paths"]
)
def test_settings_and_words_load_nothing_heavy(module: str) -> None:
    heavy = {"torch", "ray", "mlflow", "deepspeed", "faiss", "decord", "numpy", "matplotlib"}
    loaded = _python(f"import sys, {module}; print(' '.join(sys.modules))").split()
    assert heavy.isdisjoint(loaded)


def test_no_module_is_a_junk_drawer() -> None:
    named = {path: JUNK_DRAWERS & set(path.relative_to(SOURCE).with_suffix("").parts)
             for path in MODULES}  # fmt: skip
    assert not {path: names for path, names in named.items() if names}


def test_every_room_is_a_package() -> None:
    for folder in {path.parent for path in MODULES}:
        assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py"
