"""What MLflow is to have of a run, read from what the run leaves on disk.

    <output>/<name>/mlflow/<hash>/run.json   of an experiment; the hash is that of its settings
    <output>/<name>/mlflow/study/run.json    of a study

The stages, their histories and trials are in the store, a study's results in `<name>/trials`.
`run.json` says which of them are the run's, and what is of the run as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfshot.config.load import resolved_yaml
from selfshot.config.schema import Experiment
from selfshot.config.sweep import parse_study
from selfshot.distributed.mlflow_runs import Record, RunTree, Target, flatten
from selfshot.distributed.tracking import Tracker, locked, token_of
from selfshot.files import digest_file, write_atomically
from selfshot.store.local import MANIFEST, SCRATCH, Store, git_revision
from selfshot.studies.environment import networks_told, run_environment
from selfshot.studies.reports.tables import Table, shown, to_markdown
from selfshot.studies.scores import figure_name

if TYPE_CHECKING:
    from selfshot.distributed.sharing import Sharing

FACTS = "run.json"
LONGEST_NOTE = 5000
"""Characters of a description that every MLflow keeps."""
TRAINED = ("backbone", "encoder", "vis", "vis_no_fuser")

Facts = dict[str, Any]


class TrackedRun:
    """A run that goes on, and the tracker that logs it.

    Attributes:
        outcome: how it ends in MLflow if no exception ends it.
    """

    def __init__(self, folder: Path, facts: Facts, store: Store) -> None:
        self.folder, self.facts, self.outcome = folder, facts, "FINISHED"
        self.write()
        self.tracker = Tracker(
            target_of(folder, facts), folder, lambda tree: records(folder, store, tree)
        )

    def write(self, **changes: Any) -> None:
        """Keep what is known of the run; the tracker reads it."""
        self.facts |= changes
        write_atomically(self.folder / FACTS, json.dumps(self.facts, default=str))


@contextlib.contextmanager
def tracked(
    experiment: Experiment, folder: Path, store: Store, sharing: Sharing | None, **facts: Any
) -> Iterator[TrackedRun]:
    """Log a run to MLflow while a block runs, and how the block ended.

    A `KeyboardInterrupt` ends it as KILLED, any other exception as FAILED.

    Args:
        experiment: what is run.
        folder: below the output folder, for what is kept of this run.
        store: where the stages are.
        sharing: with a tracking server, another machine goes on with the same run.
        facts: `kind`, and `stages` (name → key) or `trials` (key → label and stages).
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = experiment.tracking.uri
    token_of(folder, sharing.remote(folder.resolve()) if sharing and server else None)
    revision = (git_revision() or "").removesuffix("-dirty")
    facts |= {
        "name": experiment.name,
        "uri": server,
        "experiment": experiment.tracking.experiment,
        "status": "RUNNING",
        "start": time.time(),
        "end": None,
        "settings": resolved_yaml(experiment),
        "params": experiment.model_dump(mode="json"),
        "tags": {f"environment.{name}": value for name, value in run_environment().items()}
        # MLflow's own names of these, for its column "Source" and the run's page.
        | {"mlflow.source.name": "selfshot run", "mlflow.source.type": "LOCAL"}
        | ({"mlflow.source.git.commit": revision} if revision else {}),
    }
    run = TrackedRun(folder, facts, store)
    status = "FAILED"
    try:
        yield run
        status = run.outcome
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.write(status=status, end=time.time())
        run.tracker.close()


def target_of(folder: Path, facts: Facts) -> Target:
    """Where a run is logged to; the output folder may have been moved since."""
    return Target(facts["uri"], facts["experiment"], folder.resolve().parents[2])


def log_left_over(folder: Path, open_store: Callable[[Experiment], Store]) -> tuple[int, list[str]]:
    """Log what MLflow lacks of a run that no process goes on with.

    Args:
        folder: with its run.json.
        open_store: opens the store of an experiment.

    Returns:
        how many runs were logged, and what was refused, with the reasons.

    Raises:
        Exception: whatever MLflow raises if the run cannot be found or made.
    """
    lock = locked(folder)
    if lock is None:
        return 0, []  # The process that goes on with it logs it.
    try:
        facts = json.loads((folder / FACTS).read_text())
        output = folder.resolve().parents[2]
        experiment = parse_study(facts["settings"], str(folder / FACTS)).experiment
        store = open_store(experiment.model_copy(update={"output": output}))
        if facts["end"] is None:  # Its process was killed.
            facts |= {"status": "KILLED", "end": _last_sign(folder, facts, store)}
            write_atomically(folder / FACTS, json.dumps(facts))
        tree = RunTree(target_of(folder, facts), token_of(folder))
        arrived = tree.log(records(folder, store, tree))
        return arrived, [*tree.refused.values()]
    finally:
        lock.release()


def _last_sign(folder: Path, facts: Facts, store: Store) -> float:
    """When a killed process was last seen to work."""
    signs = [folder / FACTS]
    for stage, key in _stages_of(facts):
        final = store.root / stage / key
        signs += [final / MANIFEST, _partial(final) / "scratch" / "seconds"]
    return max(path.stat().st_mtime for path in signs if path.exists())


def _partial(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial")


def _stages_of(facts: Facts) -> Counter[tuple[str, str]]:
    """Stages and keys of a run, and how many of its trials need each."""
    trials = facts.get("trials", {}).values()
    return Counter(facts.get("stages", {}).items()) + Counter(
        stage for trial in trials for stage in trial["stages"].items()
    )


def records(folder: Path, store: Store, tree: RunTree) -> Iterator[Record]:
    """What MLflow lacks of a run: first of the run itself, then of its parts."""
    facts = json.loads((folder / FACTS).read_text())
    if facts["end"] is None or not tree.has(tree.token, facts["end"]):
        yield _parent(folder, facts, store, tree.token)
    for name, key in facts.get("stages", {}).items():
        final = store.root / name / key
        finished = (final / MANIFEST).exists()
        if finished or _partial(final).exists():
            yield from _stage(tree, name, final, finished)
        if not finished:
            break
    if "trials" in facts:
        yield from _trials(folder, facts, store, tree)
    if facts["end"] is not None:
        tree.end_running(facts["status"], facts["end"])


def _parent(folder: Path, facts: Facts, store: Store, token: str) -> Record:
    """The run itself: settings, environment, data sets, and at its end tables and report."""
    stages = _stages_of(facts)
    benchmarks = [
        store.root / stage / key / "benchmark.json" for stage, key in stages if stage == "benchmark"
    ]
    points, report = list(facts.get("points", ())), folder.parents[1] / "report"
    for (stage, key), count in stages.items():
        if count > 1 and stage in TRAINED:  # Trainings that trials of a study share.
            points += _history(store.root / stage / key, f"{stage}-{key[:6]}/")
    return Record(
        token,
        facts["name"],
        status=facts["status"],
        start=facts["start"],
        end=facts["end"],
        params=facts["params"],
        tags={
            "selfshot.kind": facts["kind"],
            **facts["tags"],
            **({"mlflow.note.content": facts["note"]} if "note" in facts else {}),
            **{f"stage.{name}": key for name, key in facts.get("stages", {}).items()},
        },
        points=points,
        texts={"experiment.yaml": facts["settings"]},
        tables=facts.get("tables", {}),
        datasets=[_dataset(path) for path in benchmarks if path.exists()],
        files={str(report): "report"} if facts.get("report") and report.exists() else {},
    )


def _stage(tree: RunTree, name: str, final: Path, finished: bool) -> Iterator[Record]:
    """A stage, with its learning curve as far as it is, and the folds of an evaluation."""
    token = f"{tree.token}/{name}"
    here = final if finished else _partial(final)
    if not (finished and tree.has(token)):
        tags = {"selfshot.kind": "stage", "selfshot.key": final.name}
        points = _history(final)
        begun = _begun_at(_partial(final))
        running = Record(token, name, tree.token, start=begun, tags=tags, points=points)
        yield _ended(running, final) if finished else running
    for path in sorted((here / "trials").glob("*.json")):
        fold = f"{token}/{path.stem}"
        if not tree.has(fold):
            yield _fold(fold, token, f"{name}.{path.stem}", path)


def _begun_at(partial: Path) -> float:
    """When a stage began that is being made, killed attempts included, by the time it has noted."""
    noted = partial / SCRATCH / "seconds"
    try:
        return noted.stat().st_mtime - float(noted.read_text())
    except (FileNotFoundError, ValueError):  # It has just begun, or has just ended.
        return time.time()


def _ended(running: Record, final: Path) -> Record:
    """A stage that is finished."""
    manifest = json.loads((final / MANIFEST).read_text())
    end = datetime.fromisoformat(manifest["created"]).timestamp()
    export, pictures = final / "export", sorted(final.glob("*.png"))
    known = {key for point in running.points for key in point} | {"step", "steps", "time"}
    last = {key: value for key, value in manifest["metrics"].items() if key not in known}
    networks = last.pop("networks", None)
    last = {"step": 0, **flatten(last, "/"), "seconds": manifest["seconds"]}
    return dataclasses.replace(
        running,
        status="FINISHED",
        start=end - manifest["seconds"],
        end=end,
        params=manifest["settings"],
        tags={**running.tags}
        | {f"input.{name}": key for name, key in manifest["inputs"].items()}
        | ({"checkpoint": str(export.resolve())} if export.is_dir() else {})
        | ({} if networks is None else {"pretrained.networks": networks_told(networks)}),
        points=[*running.points, last],
        files={str(path): "" for path in (final / MANIFEST, *pictures)},
    )


def _fold(token: str, parent: str, name: str, path: Path) -> Record:
    """A fold of an evaluation."""
    result, end = json.loads(path.read_text()), path.stat().st_mtime
    figures = {
        figure_name(score, row): row[score]
        for row in result["rows"]
        for score in ("AP50", "AP", "AP75", "AR10")
    }
    return Record(
        token,
        name,
        parent,
        status="FINISHED",
        start=end,
        end=end,
        params={"trial": path.stem, "queries": result["queries"], "fold": result["fold"]},
        tags={"selfshot.kind": "trial"},
        points=[{"step": 0, **figures}],
    )


def _trials(folder: Path, facts: Facts, store: Store, tree: RunTree) -> Iterator[Record]:
    """The trials of a study: those that are done, and the curves of those that train."""
    stages = _stages_of(facts)
    for key, trial in facts["trials"].items():
        token, path = f"{tree.token}/{key}", folder.parents[1] / "trials" / f"{key}.json"
        if tree.has(token):
            continue
        if path.exists():
            yield _trial(token, tree.token, path, store, facts["settings"])
            continue
        begun = [
            (stage, final)
            for stage, one in trial["stages"].items()
            if stages[stage, one] == 1 and _partial(final := store.root / stage / one).exists()
        ]
        if begun:
            yield Record(
                token,
                trial["label"],
                tree.token,
                start=time.time(),
                tags={"selfshot.kind": "trial", "selfshot.key": key},
                points=[one for stage, final in begun for one in _history(final, f"{stage}/")],
            )


@functools.lru_cache(1)
def _settings(study: str) -> dict[str, str]:
    """Label of each trial of a study → its resolved YAML."""
    trials = parse_study(study, FACTS).trials
    return {trial.label: resolved_yaml(trial.experiment) for trial in trials}


def _trial(token: str, parent: str, path: Path, store: Store, study: str) -> Record:
    """A finished trial of a study.

    What it changes are its parameters, so that a list of hundreds reads as a table; everything
    else is in its experiment.yaml.
    """
    result = json.loads(path.read_text())
    stages = result["stages"]
    seconds = {f"{one['stage']}/seconds": one["seconds"] for one in result["timings"]}
    figures: dict[str, float] = {}
    for row in result.get("rows", ()):
        figures |= {figure_name(score, row): row[score]["mean"] for score in ("AP50", "AP", "AP75")}
        figures[figure_name("AP50_std", row)] = row["AP50"]["std"]
    for split in ("val", "test"):
        precision = result.get("retrieval", {}).get(split, {}).get("precision_at", {})
        figures |= {f"{split}/precision_at/{k}": value for k, value in precision.items()}
    points = [{"step": 0, **seconds, **figures}]
    datasets = []
    for stage, key in stages.items():
        if stage in TRAINED and (found := store.find_file(stage, key, "history.jsonl")):
            points += _points(found, f"{stage}/")
        if stage == "benchmark" and (found := store.find_file(stage, key, "benchmark.json")):
            datasets.append(_dataset(found))
    end = path.stat().st_mtime
    made = sum(one["seconds"] for one in result["timings"] if one["status"] != "reused")
    return Record(
        token,
        result["label"],
        parent,
        status="FINISHED",
        start=end - made,
        end=end,
        params={**({"case": result["case"]} if result["case"] else {}), **result["settings"],
                "seed": result["seed"]},
        tags={"selfshot.kind": "trial", "selfshot.key": result["key"]}
        | {f"stage.{stage}": key for stage, key in stages.items()}
        | {f"checkpoint.{stage}": export for stage, export in _exports(store, stages)},
        points=points,
        texts={"experiment.yaml": _settings(study)[result["label"]]},
        datasets=datasets,
    )  # fmt: skip


def _exports(store: Store, stages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Where the trained networks are."""
    for stage, key in stages.items():
        export = store.root / stage / key / "export"
        if export.is_dir():
            yield stage, str(export.resolve())
        elif store.shared is not None and stage in TRAINED:
            yield stage, store.shared.address(stage, key)


def _history(final: Path, prefix: str = "") -> list[dict[str, Any]]:
    """The logged points of a training, as far as it is."""
    name, partial = "history.jsonl", _partial(final)
    # With storage they come by way of a folder of the attempt.
    places = [final, partial, *partial.glob("scratch/sent-*")]
    found = [path for place in places if (path := place / name).exists()]
    return _points(max(found, key=lambda path: path.stat().st_mtime), prefix) if found else []


def _points(path: Path, prefix: str) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True)
    return [
        {key if key in ("step", "time") else prefix + key: value
         for key, value in json.loads(line).items()}
        for line in lines if line.endswith("\n")
    ]  # fmt: skip


@functools.cache
def _dataset(path: Path) -> dict[str, Any]:
    """The data set of a run, known by the hash of its manifest."""
    content = json.loads(path.read_text())
    return {
        "name": content["name"],
        "digest": digest_file(path),
        "source": str(path),
        "profile": {**content["counts"], "kind": content["kind"], "seed": content["seed"]},
        "context": "training and test",
    }


def results_of_experiment(rows: Sequence[Mapping[str, Any]]) -> Facts:
    """The table of an experiment, for its run."""
    table = [
        {"supports": row["supports"], "shots": row["shots"], "extra": row["extra"]}
        | {f"{s}_{part}": row[s][part] for s in ("AP50", "AP") for part in ("mean", "std")}
        for row in rows
    ]
    figures = {figure_name("AP50", row): row["AP50"]["mean"] for row in rows}
    return {"report": True, "tables": {"results": table}, "points": [{"step": 0, **figures}]}


def results_of_study(tables: Sequence[Table], description: str, done: int, left: int) -> Facts:
    """The tables of a study, for its run; they are on the run's face too, if they fit."""
    parts = [description, *(f"**{one.title}**\n\n{to_markdown(one)}" for one in tables)]
    note = "\n\n".join(part for part in parts if part)
    if len(note) > LONGEST_NOTE:
        note = f"{description}\n\nThe tables are in report/table.md."
    rows = [
        [{"": label, **dict(zip(one.columns, map(shown, cells), strict=True))}
         for label, cells in one.rows]
        for one in tables
    ]  # fmt: skip
    names = ["table", *(f"table_{number}" for number in range(2, len(rows) + 1))]
    return {
        "report": True,
        "note": note,
        "tables": dict(zip(names, rows, strict=False)),
        "points": [{"step": done, "trials_done": done, "trials_left": left}],
    }
