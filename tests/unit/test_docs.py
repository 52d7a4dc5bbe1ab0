"""The documentation says what is there: settings, paths, links and command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from selfshot import cli
from selfshot.config.schema import Experiment
from selfshot.config.sweep import parse_study

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS_PAGE = ROOT / "docs" / "guide" / "experiments.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(docs|platform|experiments|tests|cluster)/[\w./-]*")
ROW = re.compile(r"^\| `([a-z_0-9.]+)` \| ([^|]+) \|", re.MULTILINE)
NAMED = re.compile(r"`(platform/[\w/]+\.py)`:\s((?:`[\w.]+`(?:,\s)?)+)")


def _sections(annotation: object) -> list[type[BaseModel]]:
    """The sections that a field may hold: none, one, or one of each kind."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _shown(value: Any) -> str:
    """A default as the guide writes it."""
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "null"
    if value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value) or "empty"


def _settings(
    section: type[BaseModel], at: str = "", given: BaseModel | None = None
) -> list[tuple[str, str]]:
    """Every setting's dotted path with its default; paths of two kinds come twice.

    Args:
        section: walked through.
        at: its own path, with a dot at the end.
        given: the default that the section has as a whole.
    """
    found = []
    for name, field in section.model_fields.items():
        default = getattr(given, name) if given is not None else field.default
        inner = _sections(field.annotation)
        for one in inner:
            of_kind = default if isinstance(default, one) else None
            found += _settings(one, f"{at}{name}.", of_kind)
        if not inner:
            found.append((at + name, _shown(default)))
    return found


SETTINGS = _settings(Experiment)


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_walk_reaches_every_depth_and_kind() -> None:
    paths = [path for path, _ in SETTINGS]
    assert paths.count("benchmark.height") == 7
    assert {"benchmark.annotations", "benchmark.corpus_clips", "vis.weights.l1"} <= set(paths)
    assert {"benchmark.sources.images", "benchmark.scene.zoom"} <= set(paths)
    assert "vis.optimiser.steps" in paths
    assert len(paths) > 90


@pytest.mark.parametrize(("path", "default"), SETTINGS)
def test_every_setting_is_in_the_guide_with_its_default(path: str, default: str) -> None:
    rows = ROW.findall(SETTINGS_PAGE.read_text(encoding="utf-8"))
    defaults = [cell.strip() for setting, cell in rows if setting == path]
    assert defaults, f"{_name(SETTINGS_PAGE)} has no row for `{path}`"
    assert default in defaults


def test_the_guides_name_no_other_setting() -> None:
    paths = {path for path, _ in SETTINGS}
    sections = {path[: end.start()] for path in paths for end in re.finditer(r"\.", path)}
    dotted = re.compile(rf"(?:{'|'.join(sorted(Experiment.model_fields))})\.[a-z_0-9.]+")
    # Names of files and of tables in MLflow look alike.
    files = re.compile(r"\.(json|jsonl|yaml|html|md|parquet|csv|py|safetensors)$")
    for page in PAGES:
        for word in INLINE.findall(_prose(page)):
            key = word.partition(":")[0].partition("=")[0].strip()
            if dotted.fullmatch(key) and not files.search(key):
                assert key in paths | sections, f"{_name(page)}: `{word}` is no setting"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{_name(page)}: {target} does not exist"
        if heading:
            assert heading in _anchors(found), f"{_name(page)}: {target} has no such heading"


def _anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_in_the_text_exist(page: Path) -> None:
    for word in INLINE.findall(_prose(page)):
        if FILE.fullmatch(word):
            assert (ROOT / word).exists(), f"{_name(page)}: `{word}` does not exist"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_functions_and_classes_are_where_the_text_says(page: Path) -> None:
    for path, names in NAMED.findall(_prose(page)):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in INLINE.findall(names):
            last = name.rpartition(".")[2]
            assert re.search(rf"^ *(?:def|class) {last}\b", source, re.MULTILINE), (
                f"{_name(page)}: {path} has no {name}"
            )


def _yaml_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{page.stem} {number}")
        for page in PAGES
        for number, (language, block) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
        if language == "yaml"
    ]


@pytest.mark.parametrize("text", _yaml_blocks())
def test_experiments_in_the_text_are_valid(text: str) -> None:
    parse_study(text, "the page")


def _command_lines() -> list[Any]:
    """What the pages tell a reader to type in a terminal."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "sh":
                lines = block.replace("\\\n", " ").splitlines()
                words = (shlex.split(line, comments=True) for line in lines)
                found += [pytest.param(one, id=f"{page.stem}: {' '.join(one)}") for one in words]
    return [one for one in found if one.values[0]]


@pytest.mark.parametrize("words", _command_lines())
def test_command_lines_are_understood(words: list[str]) -> None:
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif program == "selfshot":
        _parse(words[1:])
    else:
        assert program in {".", "mlflow", "pre-commit"}


def _parse(words: list[str]) -> None:
    """Parse a command line as the program would, and run nothing."""
    words = words[: words.index(">")] if ">" in words else words
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        assert words, f"{command.name}: a command is missing"
        assert words[0] in command.commands, f"selfshot has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    chosen = command.make_context(command.name, list(words)).params
    experiment = chosen.get("experiment")
    if experiment is not None and str(experiment).startswith("experiments/"):
        assert (ROOT / experiment).is_file()
    paths = {path for path, _ in SETTINGS}
    for override in chosen.get("overrides") or ():
        assert override.partition("=")[0] in paths, f"--set {override}: no such setting"


def test_the_commands_of_the_readme_are_all_there_are() -> None:
    listed = set()
    for line in re.findall(r"^\| (`selfshot .+?) \|", (ROOT / "README.md").read_text(), re.M):
        listed |= {words.removeprefix("selfshot ") for words in INLINE.findall(line)}
    there = set()
    app: Any = typer.main.get_command(cli.app)
    for name, command in app.commands.items():
        inner = getattr(command, "commands", None)
        there |= {f"{name} {other}" for other in inner} if inner else {name}
    assert listed == there
