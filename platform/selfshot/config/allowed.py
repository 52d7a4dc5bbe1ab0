"""What the schema allows at a place, in words: for messages and for finding path fields."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from selfshot.config.document import Location, dotted
from selfshot.config.schema import Experiment

Rule = dict[str, Any]


@cache
def experiment_rule() -> Rule:
    """The JSON schema of a whole experiment."""
    return Experiment.model_json_schema()


def resolve(rule: Rule) -> Rule:
    """Follows a `$ref` to what it names."""
    while "$ref" in rule:
        rule = experiment_rule()["$defs"][rule["$ref"].rsplit("/", 1)[1]]
    return rule


def keys_of(rule: Rule) -> dict[str, Rule]:
    """The keys of a section, or none if it is not one."""
    properties: dict[str, Rule] = resolve(rule).get("properties", {})
    return properties


def find_rule(location: Location) -> tuple[Location, Rule | None]:
    """Follows a pydantic error's location through the schema.

    Returns:
        The location without the union tags that pydantic puts into it, and the rule there; no
        rule if the schema does not know the place.
    """
    shown: list[str | int] = []
    rule: Rule | None = experiment_rule()
    for part in location:
        rule = resolve(rule) if rule else None
        tags = rule.get("discriminator", {}).get("mapping", {}) if rule else {}
        if part in tags:
            rule = {"$ref": tags[part]}
            continue
        shown.append(part)
        if rule is None:
            continue
        rule = rule.get("items") if isinstance(part, int) else keys_of(rule).get(part)
    return tuple(shown), resolve(rule) if rule else None


def describe(rule: Rule) -> str:
    """What a rule allows, such as `an integer ≥ 1`."""
    rule = resolve(rule)
    if "const" in rule:
        return shown(rule["const"])
    if "enum" in rule:
        return "one of " + ", ".join(shown(value) for value in rule["enum"])
    if "discriminator" in rule:
        key = rule["discriminator"]["propertyName"]
        return f"keys and values, with {key}: " + " or ".join(rule["discriminator"]["mapping"])
    if "anyOf" in rule:
        return " or ".join(describe(choice) for choice in rule["anyOf"])
    match rule.get("type"):
        case "integer":
            return "an integer" + _bounds(rule)
        case "number":
            return "a number" + _bounds(rule)
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "string" if rule.get("format") == "path":
            return "a path"
        case "string":
            return "a text" + _form(rule)
        case "array":
            least = rule.get("minItems", 0)
            return f"a list, each {describe(rule['items'])}" + f", at least {least} of them" * bool(
                least
            )
        case "object":
            return f"keys and values: {', '.join(keys_of(rule))}"
    return "something else"


def _bounds(rule: Rule) -> str:
    parts = [
        f"{sign} {rule[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
            ("multipleOf", "a multiple of"),
        )
        if key in rule
    ]
    return " " + " and ".join(parts) if parts else ""


def _form(rule: Rule) -> str:
    text = f" that matches {rule['pattern']}" if "pattern" in rule else ""
    return text + (f", at most {rule['maxLength']} characters" if "maxLength" in rule else "")


def shown(value: Any) -> str:
    """A value as the person wrote it, cut to a readable length."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, float):
        return repr(value)
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def nearest(word: object, words: list[str]) -> str | None:
    """The known word that the person probably meant."""
    matches = difflib.get_close_matches(str(word).lower().replace("-", "_"), words, 1, 0.6)
    return matches[0] if matches else None


def all_keys(rule: Rule | None = None, at: Location = ()) -> Iterator[Location]:
    """Every place that an experiment may fill."""
    rule = resolve(experiment_rule() if rule is None else rule)
    for choice in rule.get("discriminator", {}).get("mapping", {}).values():
        yield from all_keys({"$ref": choice}, at)
    for key, inner in keys_of(rule).items():
        yield (*at, key)
        yield from all_keys(inner, (*at, key))


def elsewhere(key: str, section: Location) -> str | None:
    """Where a key that its section does not know is known: deeper in the section, or outside."""
    places = {place for place in all_keys() if place[-1] == key}
    within = {place for place in places if place[: len(section)] == section}
    return " or ".join(sorted(dotted(place) for place in within or places)[:3]) or None


def with_defaults(data: Any, rule: Rule | None = None) -> Any:
    """Fills in what a section leaves out from the defaults of its own place.

    An optimiser, for one, has other defaults in each stage, and no default by itself: without
    this, naming one of its keys would lose all the others.
    """
    rule = experiment_rule() if rule is None else rule
    if not isinstance(data, dict) or "discriminator" in resolve(rule):
        return data
    known = keys_of(rule)
    if not known:
        return data
    filled = dict(rule.get("default", {})) | data
    return {
        key: with_defaults(value, known[key]) if key in known else value
        for key, value in filled.items()
    }


def editor_rule() -> Rule:
    """The JSON schema without requirements that a section's default always meets."""
    root = deepcopy(experiment_rule())
    for section in [root, *root["$defs"].values()]:
        for rule in section["properties"].values():
            if "$ref" in rule and "default" in rule:
                root["$defs"][rule["$ref"].rsplit("/", 1)[1]].pop("required", None)
    return root


def is_path(rule: Rule) -> bool:
    """Whether a rule takes a path."""
    rule = resolve(rule)
    return rule.get("format") == "path" or any(is_path(one) for one in rule.get("anyOf", ()))
