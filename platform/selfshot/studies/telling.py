"""What MLflow is told of a run: its stages, their trials, the table and the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.config.load import resolved_yaml
from selfshot.config.schema import Experiment
from selfshot.studies.stages import Stage
from selfshot.studies.store import StageFolder, Store, git_revision
from selfshot.studies.tables import Table, shown, to_markdown

LONGEST_NOTE = 5000
"""Characters of a description that every MLflow keeps."""

TRAINED = ("backbone", "encoder", "vis", "vis_no_fuser")


def tell_stage(stage: Stage, folder: StageFolder, parent: Any, ids: Path) -> None:
    """Tell MLflow of a stage of a run, once; `ids` is the folder of the run's ids.

    A kill in the middle leaves no mark, so the next run tells the rest to the same MLflow run.
    """
    id_file, told = ids / f"{stage.name}.id", ids / f"{stage.name}.told"
    if told.exists():
        return
    manifest = folder.manifest
    child = parent.child(
        stage.name,
        id_file=id_file,
        params=manifest["settings"],
        tags={"selfshot.kind": "stage", "selfshot.key": folder.key}
        | {f"input.{name}": key for name, key in manifest["inputs"].items()},
    )
    if stage.name == "benchmark":
        tell_benchmark(parent, folder.final)
    export = folder.final / "export"
    if export.is_dir():
        child.log_tags({"checkpoint": str(export.resolve())})
    history = folder.final / "history.jsonl"
    if history.exists():
        child.log_history([json.loads(line) for line in history.read_text().splitlines()])
    numbers = {k: v for k, v in manifest["metrics"].items() if isinstance(v, (int, float))}
    child.log_metrics({**numbers, "seconds": manifest["seconds"]})
    child.log_artifact(folder.final / "manifest.json")
    for picture in sorted(folder.final.glob("*.png")):
        child.log_artifact(picture)
    for trial in sorted((folder.final / "trials").glob("*.json")):
        result = json.loads(trial.read_text())
        grandchild = child.child(
            f"{stage.name}.{trial.stem}",
            id_file=ids / f"{stage.name}.{trial.stem}.id",
            params={"trial": trial.stem, "queries": result["queries"], "fold": result["fold"]},
            tags={"selfshot.kind": "trial"},
        )
        for row in result["rows"]:
            grandchild.log_metrics(
                {
                    f"{s}.{row['supports']}.{row['shots']}.{row['extra']}": row[s]
                    for s in ("AP50", "AP", "AP75", "AR10")
                }
            )
        grandchild.end()
    child.end()
    # It is in the spool, which is sent sooner or later.
    told.touch()


def tell_results(parent: Any, rows: list[dict[str, Any]], report: Path) -> None:
    """The table and the page in the parent run."""
    table = [
        {
            "supports": row["supports"],
            "shots": row["shots"],
            "extra": row["extra"],
            **{f"{s}_{part}": row[s][part] for s in ("AP50", "AP") for part in ("mean", "std")},
        }
        for row in rows
    ]
    parent.log_table(table, "results")
    parent.log_metrics(
        {
            f"AP50.{row['supports']}.{row['shots']}.{row['extra']}": row["AP50"]["mean"]
            for row in rows
        }
    )
    parent.log_artifacts(report, "report")


def tell_circumstances(run: Any, settings: str) -> None:
    """What a run was made with: its resolved YAML, the code and the libraries."""
    from selfshot.studies.environment import run_environment

    run.log_text(settings, "experiment.yaml")
    run.log_tags({f"environment.{name}": value for name, value in run_environment().items()})
    # MLflow's own names of these, for its column "Source" and the run's page.
    source = {"mlflow.source.name": "selfshot run", "mlflow.source.type": "LOCAL"}
    revision = git_revision()
    if revision is not None:
        source["mlflow.source.git.commit"] = revision.removesuffix("-dirty")
    run.log_tags(source)


def tell_benchmark(run: Any, folder: Path) -> None:
    """The data set of a run, known by the hash of its manifest."""
    manifest = folder / "benchmark.json"
    if not manifest.exists():
        return
    content = json.loads(manifest.read_text())
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    profile = {**content["counts"], "kind": content["kind"], "seed": content["seed"]}
    run.log_dataset(content["name"], digest, manifest, profile, "training and test")


def tell_trial(
    parent: Any, ids: Path, result: Mapping[str, Any], experiment: Experiment, store: Store
) -> bool:
    """A finished trial of a study as a child of the study's run, once.

    What it changes are its parameters, so that a list of hundreds reads as a table; everything
    else is in its experiment.yaml.

    Returns:
        whether there was something to tell.
    """
    told = ids / f"{result['key']}.told"
    if told.exists():
        return False
    changed = {"case": result["case"]} if result["case"] else {}
    child = parent.child(
        result["label"],
        id_file=ids / f"{result['key']}.id",
        params={**changed, **result["settings"], "seed": result["seed"]},
        tags={"selfshot.kind": "trial", "selfshot.key": result["key"]}
        | {f"stage.{stage}": key for stage, key in result["stages"].items()}
        | {f"checkpoint.{stage}": str(export) for stage, export in _exports(store, result)},
    )
    child.log_text(resolved_yaml(experiment), "experiment.yaml")
    for stage, key in result["stages"].items():
        if stage == "benchmark" and (manifest := store.find_file(stage, key, "benchmark.json")):
            tell_benchmark(child, manifest.parent)
        found = store.find_file(stage, key, "history.jsonl") if stage in TRAINED else None
        if found is not None:
            points = [json.loads(line) for line in found.read_text().splitlines()]
            child.log_history(points, prefix=f"{stage}.")
    metrics = {f"seconds.{one['stage']}": one["seconds"] for one in result["timings"]}
    for row in result.get("rows", ()):
        name = f"{row['supports']}.{row['shots']}.{row['extra']}"
        metrics |= {f"{score}.{name}": row[score]["mean"] for score in ("AP50", "AP", "AP75")}
        metrics[f"AP50_std.{name}"] = row["AP50"]["std"]
    for side in ("val", "test"):
        precision = result.get("retrieval", {}).get(side, {}).get("precision_at", {})
        metrics |= {f"precision_{k}.{side}": value for k, value in precision.items()}
    child.log_metrics(metrics)
    child.end()
    told.parent.mkdir(parents=True, exist_ok=True)
    told.touch()
    return True


def _exports(store: Store, result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the trained networks are."""
    for stage, key in result["stages"].items():
        export = store.root / stage / key / "export"
        if export.is_dir():
            yield stage, str(export.resolve())
        elif store.shared is not None and stage in TRAINED:
            yield stage, store.shared.address(stage, key)


def tell_study_report(
    parent: Any, report: Path, tables: Sequence[Table], description: str
) -> None:
    """The study's tables, its figure and its page in the study's run; the tables on its face."""
    parts = [description, *(f"**{one.title}**\n\n{to_markdown(one)}" for one in tables)]
    note = "\n\n".join(part for part in parts if part)
    if len(note) > LONGEST_NOTE:
        note = f"{description}\n\nThe tables are in report/table.md."
    parent.log_tags({"mlflow.note.content": note})
    for number, table in enumerate(tables):
        rows = [
            {"": label, **dict(zip(table.columns, map(shown, cells), strict=True))}
            for label, cells in table.rows
        ]
        parent.log_table(rows, "table" if not number else f"table_{number + 1}")
    parent.log_artifacts(report, "report")


def tell_study_extent(
    parent: Any, results: Sequence[Mapping[str, Any]], left: int, store: Path
) -> None:
    """How many trials a study has, and the data sets that they read, in the study's run."""
    parent.log_metrics({"trials_done": len({one["key"] for one in results}), "trials_left": left})
    keys = dict.fromkeys(one["stages"].get("benchmark") for one in results)
    for key in filter(None, keys):
        tell_benchmark(parent, store / "benchmark" / key)
