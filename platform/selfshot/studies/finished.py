"""Where the finished stages of an experiment lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfshot.config.schema import Experiment
from selfshot.errors import UserError
from selfshot.studies.run import open_store, plan_experiment


def stage_folders(experiment: Experiment, wanted: Sequence[str]) -> dict[str, Path]:
    """Folders of finished stages.

    Raises:
        UserError: one of them is not done.
    """
    plans = {plan.stage: plan for plan in plan_experiment(experiment)}
    missing = [name for name in wanted if name not in plans or plans[name].status != "done"]
    if missing:
        raise UserError(
            f"{experiment.name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            f"done in {experiment.output}; run `selfshot run` on the experiment first, with the "
            "same --set"
        )
    store = open_store(experiment)
    for name in wanted:
        if plans[name].stored is not None and store.find(name, plans[name].key) is None:
            raise UserError(
                f"{experiment.name}: {plans[name].stored} is damaged; run `selfshot run` again"
            )
    return {name: plans[name].path for name in wanted}
