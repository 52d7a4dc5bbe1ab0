"""The paper's benchmarks as data: Table 7's classes in each dataset's spelling, and Table 6."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from selfshot.config.document import read_yaml
from selfshot.errors import UserError

PUBLISHED = Path(__file__).parent / "published.yaml"
NEAREST = 3


@dataclasses.dataclass(frozen=True)
class PublishedBenchmark:
    """One of the paper's benchmarks.

    Attributes:
        name: the paper's.
        dataset: that it is made of.
        table_6: its figures, by the names of `statistics`.
        seen, unseen: Table 7's classes: the paper's name → the name here.
        spellings: folded spelling in a dataset's file → the name here.
        unlisted: folded names of the dataset's categories that Table 7 does not list.
    """

    name: str
    dataset: str
    table_6: dict[str, float]
    seen: dict[str, str]
    unseen: dict[str, str]
    spellings: dict[str, str]
    unlisted: frozenset[str]


@cache
def published_benchmarks() -> dict[str, PublishedBenchmark]:
    """The paper's benchmarks by their kind."""
    content = read_yaml(PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name)
    made = {}
    for kind, entry in content.items():
        classes = {**entry["train"], **entry["val_test"]}
        made[kind] = PublishedBenchmark(
            name=entry["name"],
            dataset=entry["dataset"],
            table_6=entry["table_6"],
            seen={name: spellings[0] for name, spellings in entry["train"].items()},
            unseen={name: spellings[0] for name, spellings in entry["val_test"].items()},
            spellings={
                folded(one): spellings[0] for spellings in classes.values() for one in spellings
            },
            unlisted=frozenset(map(folded, entry["unlisted"])),
        )
    return made


def folded(name: str) -> str:
    """A category's name without what differs between editions: case, spaces, hyphens."""
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def match_categories(
    published: PublishedBenchmark,
    categories: Iterable[str],
    file_name: str,
    field: str = "annotations",
) -> dict[str, str | None]:
    """The class of Table 7 of each category of a file; None for one that Table 7 does not list.

    Raises:
        UserError: a category is none that the dataset has.
    """
    known = {**published.spellings, **dict.fromkeys(published.unlisted)}
    problems = []
    matched: dict[str, str | None] = {}
    for name in categories:
        key = folded(name)
        if key in known:
            matched[name] = known[key]
            continue
        close = difflib.get_close_matches(key, known, NEAREST, 0.5)
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        problems.append(f"{name!r} is no category of {published.dataset}{hint}")
    if problems:
        raise UserError(
            f"benchmark.{field}: {file_name}: {'; '.join(problems)}; give the dataset's own "
            "training JSON, or build other videos with the kind 'folder'",
            setting=f"benchmark.{field}",
        )
    return matched
