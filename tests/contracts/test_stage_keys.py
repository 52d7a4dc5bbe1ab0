"""The stage keys of the experiments: a change that only moves code leaves them equal.

A key that changes makes every stored stage anew. Where that is meant, write the file again:

    SELFSHOT_GOLDEN=write pytest tests/contracts/test_stage_keys.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from selfshot.config.sweep import load_study
from selfshot.studies.run import stage_keys, stage_settings, wanted_stages

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("stage_keys.json")
# Their keys hold hashes of videos and weights that not every machine has.
BROUGHT = ("paper_model", "real", "_paper")


def keys_of(path: Path) -> list[str]:
    """`stage key` of every stage of an experiment, or of all trials of a study."""
    study = load_study(path, ())
    found = set()
    for experiment in [trial.experiment for trial in study.trials] or [study.experiment]:
        stages = wanted_stages(experiment)
        keys = stage_keys(stages, stage_settings(stages, experiment))
        found |= {f"{stage} {key[:12]}" for stage, key in keys.items()}
    return sorted(found)


def test_stage_keys_are_those_of_the_golden_file() -> None:
    keys = {
        path.relative_to(ROOT).as_posix(): keys_of(path)
        for path in sorted((ROOT / "experiments").rglob("*.yaml"))
        if not any(name in path.stem for name in BROUGHT)
    }
    if os.environ.get("SELFSHOT_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(keys, indent=1) + "\n")
    assert keys == json.loads(GOLDEN.read_text())
