"""The command line: what it calls, and one message with exit code 2 for every mistake."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from selfshot import __version__, cli
from selfshot.config.load import load_experiment
from selfshot.config.schema import Experiment
from selfshot.errors import StorageError, UserError
from selfshot.studies.run import plan_experiment

FOLDER = (
    "benchmark: {kind: folder, annotations: none.json, frames: none, corpus: none, "
    "val_classes: [a], test_classes: [b]}"
)


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in a folder that holds `good.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABSENT", raising=False)
    Path("good.yaml").write_text("name: good\n")

    def run(*words: str) -> Answer:
        code = cli.main(words)
        return Answer(code, *capsys.readouterr())

    return run


@dataclass
class Plan:
    stage: str
    status: str
    key: str = "0123456789abcdef"
    path: Path = Path("runs/store/x")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for `selfshot.studies.run`, noting what it is asked."""
    module = ModuleType("selfshot.studies.run")
    module.calls = []  # type: ignore[attr-defined]
    module.status = "to do"  # type: ignore[attr-defined]
    module.problems = []  # type: ignore[attr-defined]

    def run_experiment(experiment: Experiment, *, until: str | None = None) -> Path:
        module.calls.append((experiment.name, until))
        return Path("runs/good/report")

    module.run_experiment = run_experiment  # type: ignore[attr-defined]
    module.plan_experiment = lambda e: [Plan("benchmark", module.status), Plan("vis", "to do")]  # type: ignore
    module.report_experiment = lambda e: Path("runs/good/report")  # type: ignore[attr-defined]
    module.verify_experiment = lambda e: module.problems  # type: ignore[attr-defined]
    parent = ModuleType("selfshot.studies")
    parent.run = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selfshot.studies", parent)
    monkeypatch.setitem(sys.modules, "selfshot.studies.run", module)
    return module


WRONG_LINES: list[tuple[list[str], list[str]]] = [
    ([], ["Missing command", "validate", "--help"]),
    (["rnu", "good.yaml"], ["'rnu'", "Did you mean 'run'?"]),
    (["run"], ["EXPERIMENT.yaml", "selfshot run --help"]),
    (["run", "good.yaml", "extra"], ["extra"]),
    (["run", "good.yaml", "--sett", "seed=1"], ["--sett", "--set"]),
    (["run", "good.yaml", "--set"], ["--set", "argument"]),
    (["run", "good.yaml", "--dry-run=3"], ["--dry-run", "value"]),
    (["run", "god.yaml"], ["god.yaml", "did you mean good.yaml?"]),
    (["run", "nowhere/good.yaml"], ["no such file"]),
    (["run", "."], ["a folder"]),
    (["--verbose"], ["--verbose", "--version"]),
    (["train"], ["Missing command", "backbone, encoder, vis"]),
    (["train", "encodr", "good.yaml"], ["'encodr'", "'encoder'"]),
    (["train", "good.yaml"], ["good.yaml", "selfshot train --help"]),
    (["benchmark"], ["Missing command", "build"]),
    (["benchmark", "build"], ["EXPERIMENT.yaml"]),
    (["benchmark", "build", "self_viz"], ["self_viz is no kind", "did you mean self_vis?"]),
    (["benchmark", "build", "self_vis"], ["--config: missing"]),
    (["benchmark", "build", "god.yaml"], ["god.yaml", "did you mean good.yaml?"]),
    (["benchmark", "build", "good.yaml", "--config", "good.yaml"], ["--config: belongs to a KIND"]),
    (["benchmark", "build", "davis", "--config", "good.yaml"], ["kind sprites, not davis"]),
    (["benchmark", "build", "good.yaml", "--out", "."], ["--out: . is there already"]),
    (["embed", "--set", "seed=1"], ["--corpus: missing", "EXPERIMENT.yaml"]),
    (["embed", "--corpus", "x"], ["--out: missing"]),
    (["index"], ["--embeddings: missing", "EXPERIMENT.yaml"]),
    (["index", "--embeddings", "x"], ["--out: missing"]),
    (["index", "good.yaml", "--out", "x"], ["--out: does not go with", "good.yaml"]),
    (["index", "--embeddings", "x", "--out", "y", "--set", "vis.heads=6"], ["--set vis.heads=6"]),
    (["index", "--embeddings", "x", "--out", "y"], ["x has no shard-", "selfshot embed"]),
    (["embed", "good.yaml", "--out", "x"], ["--out: does not go with", "good.yaml"]),
    (["embed", "--corpus", "x", "--out", "y", "--set", "vis.heads=6"], ["--set vis.heads=6"]),
    (["embed", "--corpus", "x", "--out", "y", "--set", "embedding.dtype=f"], ["embedding.dtype"]),
    (["embed", "--corpus", "x", "--out", "y", "--size", "0x4"], ["--size: '0x4'", "224x224"]),
    (["embed", "--corpus", "x", "--out", "y"], ["x", "selfshot corpus build"]),
    (["embed", "--corpus", "no.parquet", "--out", "y"], ["no.parquet", "manifest of clips"]),
    (["corpus", "build"], ["--out"]),
    (["corpus", "build", "--out", "y"], ["--videos, --uris, --segments or --tars"]),
    (["corpus", "build", "--videos", "no/where", "--out", "y"], ["no/where is no folder"]),
    (["schema", "good.yaml"], ["good.yaml"]),
    (["evaluate"], ["EXPERIMENT.yaml", "--ground-truth", "--results"]),
    (["evaluate", "--results", "r.json"], ["--ground-truth is missing"]),
    (["evaluate", "--ground-truth", "g.json"], ["--results is missing"]),
    (["evaluate", "good.yaml", "--class-agnostic"], ["exclude each other"]),
    (
        ["evaluate", "--ground-truth", "g.json", "--results", "good.yaml"],
        ["--ground-truth: g.json"],
    ),
    (["evaluate", "--ground-truth", "good.yaml", "--results", "."], ["--results: . is no file"]),
    (
        ["evaluate", "--ground-truth", "good.yaml", "--results", "good.yaml", "--json", "no/o"],
        ["--json: no/o"],
    ),
    (
        ["evaluate", "--ground-truth", "good.yaml", "--results", "good.yaml", "--resume"],
        ["--resume"],
    ),
    (["show", "--annotations", "g" * 300, "--frames", "."], ["ggg: a name that is too long for a"]),
    (["evaluate", "--results", "r" * 300, "--ground-truth", "good.yaml"], ["rrr: a name that is"]),
    (["validate", "good.yaml", "--set", "seed"], ["--set seed", "no '='"]),
    (["validate", "good.yaml", "--set", "vis.heads=abc"], ["vis.heads: 'abc'", "valid integer"]),
    (["validate", "good.yaml", "--set", "vis.hedas=4"], ["vis.hedas", "mean heads?", "--set"]),
    (["validate", "good.yaml", "--set", "supports.shots=[1"], ["YAML", "--set supports.shots"]),
    (["validate", "good.yaml", "--set", "output=good.yaml/x"], ["output: good.yaml is a file"]),
    (["validate", "good.yaml", "--set", "output=$ABSENT/x"], ["output", "ABSENT", "not set"]),
]

WRONG_FILES: list[tuple[str, list[str]]] = [
    ("", ["empty", "name"]),
    ("name: a\nseed: -1", ["seed: -1 is not allowed (should be ", "wrong.yaml, line 2"]),
    ("name: a\nvis:\n  optimizer: {}", ["vis.optimizer", "did you mean optimiser?", "line 3"]),
    ("name: a\nbenchmark: {kind: spritez}", ["benchmark.kind", "'sprites'", "line 2"]),
    ("name: a\nname: b", ["name: given twice", "line 2"]),
    ("name: [a", ["not valid YAML", "line 1"]),
    ("name: a\n\tseed: 1", ["tabs", "line 2"]),
    ("name: ../a", ["name: '../a'", "line 1"]),
    ("- a", ["keys and values"]),
    ("name: a\n---\nname: b", ["another document"]),
    ("name: !!python/object:os.system {}", ["tag", "line 1"]),
    ("name: a\nsupports: {shots: [0]}", ["supports.shots[0]: 0", "equal to 1"]),
    ("name: a\nbackbone: {dim: 71}", ["backbone.dim: 71", "multiple", "line 2"]),
    ("name: a\nencoder: {backbone: resnet}", ["encoder.backbone: 'resnet'", "efficientnet_lite0"]),
    ("name: a\n" + FOLDER, ["benchmark.annotations: none.json", "benchmark.corpus", "does not ex"]),
    ("name: a\nbenchmark: {kind: folder}", ["benchmark.annotations: missing", "line 2"]),
]


def assert_refused(answer: Answer, parts: list[str]) -> None:
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("error:") == 1
    assert "Traceback" not in answer.err
    for part in parts:
        assert part in answer.err


@pytest.mark.parametrize(("words", "parts"), WRONG_LINES, ids=lambda x: " ".join(x) or "nothing")
def test_a_wrong_command_line(say, words: list[str], parts: list[str]) -> None:
    assert_refused(say(*words), parts)


@pytest.mark.parametrize("command", ["validate", "run", "train vis"])
@pytest.mark.parametrize(("text", "parts"), WRONG_FILES)
def test_a_wrong_file(say, study, command: str, text: str, parts: list[str]) -> None:
    Path("wrong.yaml").write_text(text)
    assert_refused(say(*command.split(), "wrong.yaml"), parts)
    assert study.calls == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["validate", "absent.yaml"], ["absent.yaml: no such file"]),
        (["rnu"], ["No such command 'rnu'"]),
        (["validate", "good.yaml", "--set", "sead=1"], ["did you mean seed?"]),
    ],
)
def test_the_installed_program_refuses_alike(
    tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    (tmp_path / "good.yaml").write_text("name: good\n")
    assert_refused(_program(tmp_path, *words), parts)


def _program(folder: Path, *words: str) -> Answer:
    return _python(folder, "-m", "selfshot.cli", *words)


def _python(folder: Path, *words: str) -> Answer:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_validate_loads_nothing_heavy(tmp_path: Path) -> None:
    """What takes seconds to import is not imported for an answer that does not need it."""
    (tmp_path / "good.yaml").write_text("name: good\n")
    asked = (
        "import atexit, sys; from selfshot.cli.app import main; "
        "atexit.register(lambda: print('loaded', *sorted(sys.modules.keys() & {"
        "'torch', 'ray', 'mlflow', 'faiss', 'deepspeed', 'pandas', 'matplotlib', 'numba'}))); "
        "sys.argv = ['selfshot', 'validate', 'good.yaml']; main()"
    )
    done = _python(tmp_path, "-c", asked)
    assert (done.code, done.err) == (0, "")
    said = done.out.splitlines()
    assert said == ["good.yaml: valid (good, benchmark sprites)", "loaded"]


def test_a_pipe_that_breaks_in_the_work_is_told(tmp_path: Path) -> None:
    """Only a reader that has gone ends a command without a word."""
    (tmp_path / "good.yaml").write_text("name: good\n")
    asked = (
        "import sys; from selfshot.cli import experiments, main\n"
        "def opened(*given, **named): raise BrokenPipeError('a worker has gone')\n"
        "experiments.opened = opened\n"
        "sys.exit(main(['validate', 'good.yaml']))"
    )
    done = _python(tmp_path, "-c", asked)
    assert done.code == 1 and "BrokenPipeError: a worker has gone" in done.err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "selfshot.cli", "schema"],
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout and program.stderr
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait(60) == 1
    program.stderr.close()


@pytest.mark.parametrize(
    ("words", "until"),
    [
        ("run", None),
        ("benchmark build", "benchmark"),
        ("train backbone", "backbone"),
        ("train encoder", "encoder"),
        ("embed", "embeddings"),
        ("index", "index"),
        ("train vis", "vis"),
        ("evaluate", "evaluation"),
    ],
)
def test_a_stage_command_runs_up_to_its_stage(say, study, words: str, until: str | None) -> None:
    answer = say(*words.split(), "good.yaml", "--set", "name=other")
    assert (answer.code, answer.err) == (0, "")
    assert study.calls == [("other", until)]
    assert "runs/good/report" in answer.out


def test_a_kind_is_built_from_its_settings_alone(say, study, monkeypatch) -> None:
    built: list[Experiment] = []

    def run_experiment(experiment: Experiment, *, until: str | None = None) -> Path:
        assert until == "benchmark"
        built.append(experiment)
        made = Path("store")
        made.mkdir(exist_ok=True)
        (made / "corpus.parquet").write_bytes(b"rows")
        return made

    study.run_experiment = run_experiment
    Path("c.yaml").write_text("seed: 4\ncorpus_clips: 99\nheight: 40\n")
    words = ("benchmark", "build", "sprites", "--config", "c.yaml")
    answer = say(*words, "--set", "benchmark.height=48", "--out", "made/here")
    assert (answer.code, answer.err, answer.out) == (0, "", "made/here\n")
    assert (built[0].seed, built[0].name) == (4, "sprites")
    assert (built[0].benchmark.corpus_clips, built[0].benchmark.height) == (99, 48)
    assert Path("made/here/corpus.parquet").read_bytes() == b"rows"
    assert_refused(say(*words, "--out", "made/here"), ["--out: made/here is there already"])
    assert say("benchmark", "build", "sprites").code == 0
    assert built[-1].benchmark.kind == "sprites"


def test_wrong_settings_of_a_kind_are_named_with_their_line(say, study) -> None:
    content = "corpus: clips\nannotations: a.json\nframes: f\n"
    Path("c.yaml").write_text(content + "val_shar: 0.3\n")
    answer = say("benchmark", "build", "self_vis", "--config", "c.yaml")
    assert_refused(answer, ["benchmark.val_shar: unknown key", "val_share", "c.yaml, line 4"])
    Path("c.yaml").write_text(content)
    answer = say("benchmark", "build", "self_vis", "--config", "c.yaml")
    assert_refused(answer, ["benchmark.corpus: clips does not exist"])


def test_what_is_found_late_is_named_with_its_line_before_any_work(say, study) -> None:
    Path("late.yaml").write_text(
        "name: late\nbenchmark:\n  kind: folder\n  annotations: none.json\n  frames: .\n"
        "  corpus: .\n  val_classes: [cat]\n  test_classes: [dog]\n"
    )
    for command in ("validate", "run"):
        answer = say(command, "late.yaml")
        assert_refused(answer, ["benchmark.annotations: none.json does not", "late.yaml, line 4"])


def test_a_gpu_too_few_is_named_with_its_line_before_any_work(say) -> None:
    Path("gpu.yaml").write_text("name: gpu\ncompute:\n  num_workers: 2\n  use_gpu: true\n")
    answer = say("run", "gpu.yaml")
    assert_refused(answer, ["compute.use_gpu: true", "this machine has", "gpu.yaml, line 4"])
    assert not Path("runs").exists()


def test_a_dry_run_shows_the_plan_and_runs_nothing(say) -> None:
    answer = say("run", "good.yaml", "--dry-run")
    assert answer.code == 0
    assert "benchmark" in answer.out and "to do" in answer.out and "evaluation" in answer.out
    assert "time: not known; the store has no earlier result of the" in answer.out
    assert "training workers" in answer.out
    assert not Path("runs").exists()


def test_a_dry_run_of_a_study_shows_its_trials(say) -> None:
    sweep = ("--set", "sweep.over={supports.vectors: [global, windows]}", "--set", "sweep.repeat=2")
    answer = say("run", "good.yaml", "--dry-run", *sweep)
    assert answer.code == 0
    assert "4 trials" in answer.out and "vectors=windows #2" in answer.out
    assert "evaluation" in answer.out and not Path("runs").exists()
    assert say("validate", "good.yaml", *sweep).out.endswith("4 trials)\n")


def test_a_study_goes_on_only_where_it_was_begun(say) -> None:
    sweep = ("--set", "sweep.over={supports.vectors: [global, windows]}")
    assert_refused(say("run", "good.yaml", "--resume", *sweep), ["--resume", "no trial", "begun"])
    assert_refused(say("report", "good.yaml", *sweep), ["none of the 2 trials is done"])


def test_what_mlflow_lacks(say) -> None:
    Path("runs").mkdir()
    assert say("track", "sync").out == "nothing is left to log\n"
    assert_refused(say("track", "sync", "elsewhere"), ["elsewhere is not there"])


def test_resume_needs_something_to_resume(say, study) -> None:
    assert_refused(say("run", "good.yaml", "--resume"), ["--resume", "good.yaml", "leave"])
    study.status = "partial"
    assert say("run", "good.yaml", "--resume").code == 0
    assert study.calls == [("good", None)]


def test_report_and_verify(say, study) -> None:
    assert say("report", "good.yaml").out == "runs/good/report\n"
    assert say("verify", "good.yaml").code == 0
    study.problems = ["runs/store/vis/x/weights: changed"]
    answer = say("verify", "good.yaml")
    assert answer.code == 1
    assert "changed" in answer.out


def test_path_of_a_stage(say) -> None:
    assert_refused(
        say("path", "good.yaml", "vis"), ["good: vis is not done in runs", "selfshot run"]
    )
    assert_refused(
        say("path", "good.yaml", "seen"), ["STAGE: seen is not allowed (benchmark, backbone, "]
    )
    (plan,) = plan_experiment(load_experiment(Path("good.yaml")), "benchmark")
    plan.path.mkdir(parents=True)
    (plan.path / "manifest.json").write_text('{"files": {}}')
    answer = say("path", "good.yaml", "benchmark")
    assert answer.out == f"{plan.path}\n" and answer.code == 0


def test_a_stop_is_no_traceback(say, study) -> None:
    def stopped(experiment: Experiment, *, until: str | None = None) -> Path:
        raise KeyboardInterrupt

    study.run_experiment = stopped
    answer = say("run", "good.yaml")
    assert answer.code == 130
    assert answer.err.strip() == "stopped; run the same command to go on"


def test_a_mistake_found_by_a_worker_is_shown_without_its_traceback(say, study) -> None:
    class WrappedError(UserError):
        cause = UserError("video 3: no frames")

    def failed(experiment: Experiment, *, until: str | None = None) -> Path:
        raise WrappedError("Traceback of a remote worker")

    study.run_experiment = failed
    assert_refused(say("run", "good.yaml"), ["error: video 3: no frames\n"])


def test_storage_that_is_away_is_shown_without_a_traceback(say, study) -> None:
    def failed(experiment: Experiment, *, until: str | None = None) -> Path:
        raise StorageError("storage: s3://gone/x cannot be listed: 503")

    study.run_experiment = failed
    assert_refused(say("run", "good.yaml"), ["error: storage: s3://gone/x cannot be listed: 503"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/store/a"),
        OSError("480000 requested and 65408 written"),
        RuntimeError("Traceback of a worker\n  in f\nOSError: [Errno 122] Disk quota exceeded\n"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        sqlite3.OperationalError("database or disk is full"),
    ],
    ids=str,
)
def test_a_full_disk_is_one_line(say, study, error: Exception) -> None:
    def failed(experiment: Experiment, *, until: str | None = None) -> Path:
        raise TypeError("it failed") from error

    study.run_experiment = failed
    answer = say("run", "good.yaml")
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    said = str(error).strip().splitlines()[-1]
    assert answer.err.startswith(f"error: a disk is full ({said}); free some space and run")


def test_an_end_of_file_is_no_stop(say, study) -> None:
    def failed(experiment: Experiment, *, until: str | None = None) -> Path:
        raise EOFError("it is cut short")

    study.run_experiment = failed
    with pytest.raises(EOFError, match="cut short"):
        say("run", "good.yaml")


def test_a_bug_keeps_its_traceback(say, study) -> None:
    def failed(experiment: Experiment, *, until: str | None = None) -> Path:
        raise ZeroDivisionError

    study.run_experiment = failed
    with pytest.raises(ZeroDivisionError):
        say("run", "good.yaml")


def test_version_schema_and_help(say) -> None:
    assert say("--version").out == f"selfshot {__version__}\n"
    assert json.loads(say("schema").out)["properties"]["name"]["maxLength"] == 80
    answer = say("train", "--help")
    assert answer.code == 0
    assert "encoder" in answer.out
