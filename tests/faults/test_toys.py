"""A toy experiment and a toy study whose storage fails in every call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faulty import Plan
from tally import EVERY
from toys import Case, Toys

from selfshot.config.load import load_experiment
from selfshot.studies.run import wanted_stages

pytestmark = [
    pytest.mark.faults, pytest.mark.timeout(0), pytest.mark.usefixtures("ray_running")
]  # fmt: skip

TOY = Path(__file__).parents[1] / "integration" / "toy.yaml"
STAGES = [stage.name for stage in wanted_stages(load_experiment(TOY))]
# They make the calls that the backbone makes, and take as long.
TRAININGS = ("encoder", "vis", "vis_no_fuser")
STUDY = ["name=toystudy", "evaluation.supports=[random,seen_penalty]",
         "sweep.over={supports.expand_by: [0, 1]}"]  # fmt: skip


@pytest.fixture(scope="module")
def toys(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Toys:
    return Toys(plan, tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def after(toys: Toys, ray_running: None) -> dict[str, Path]:
    """The undisturbed run's folder as it was after each stage, and before the first ("")."""
    place = toys.folder / "undisturbed"
    (place / "storage").mkdir(parents=True)
    snapshots = {}
    for stage in ["", *STAGES, None]:
        if stage != "":
            ending = toys.run(place, stage)
            assert ending.code == 0, ending.said
        name = "whole" if stage is None else stage
        snapshots[name] = shutil.copytree(place, toys.folder / f"after-{name}")
    return snapshots


@pytest.mark.parametrize("how", ["once", "from_then_on"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_made(stage: str, how: str, toys: Toys, after: dict[str, Path]) -> None:
    if stage in TRAININGS and not EVERY:
        pytest.skip("its calls are those of the backbone; SELFSHOT_FAULTS=every")
    before = after[["", *STAGES][STAGES.index(stage)]]
    case = Case(toys, before, after[stage], stage, within=f"/storage/store/{stage}/")
    getattr(case, how)()
    case.check()


@pytest.mark.parametrize("how", ["once", "from_then_on"])
def test_all_stages_are_there_already(how: str, toys: Toys, after: dict[str, Path]) -> None:
    case = Case(toys, after[STAGES[-1]], after["whole"], None)
    getattr(case, how)()
    case.check()


@pytest.mark.parametrize("how", ["once", "from_then_on"])
def test_all_stages_are_fetched(how: str, toys: Toys, after: dict[str, Path]) -> None:
    def emptied(place: Path) -> None:
        shutil.rmtree(place / "output")

    case = Case(toys, after["whole"], after["whole"], None, prepare=emptied)
    getattr(case, how)()
    case.check()


@pytest.mark.parametrize("how", ["once", "from_then_on"])
def test_a_study(how: str, toys: Toys, after: dict[str, Path]) -> None:
    """Its shared stages are there: what it makes itself are trials, and what they are ranked by."""
    whole = toys.folder / "study"
    if not whole.exists():
        shutil.copytree(after["whole"], whole)
        ending = toys.run(whole, None, STUDY)
        assert ending.code == 0, ending.said
    case = Case(toys, after["whole"], whole, None, STUDY)
    getattr(case, how)()
    case.check()
