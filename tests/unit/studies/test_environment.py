"""What a report says of the pretrained networks that a run used."""

from __future__ import annotations

from typing import Any

import pytest

from selfshot.studies.environment import NO_LABELS, label_free, networks_told


def one(name: str, supervision: str | None, licence: str | None = "mit") -> dict[str, Any]:
    return {"name": name, "revision": None, "licence": licence, "supervision": supervision}


def test_networks_in_a_line() -> None:
    networks = [one("hf/a", "none") | {"revision": "0123456789abcdef"}, one("timm/b", None, None)]
    assert networks_told(networks) == (
        "hf/a at 0123456789ab (mit; by its kind and tag, learned from no labels); "
        "timm/b (no licence stated; by its kind and tag, learned from what is not stated)"
    )
    assert networks_told([]) == "none"


@pytest.mark.parametrize(
    ("networks", "backbone", "said"),
    [
        ([], "scratch", [NO_LABELS]),
        ([one("hf/a", "none")], "hf/a", [NO_LABELS]),
        ([], "pretrained", ["the seen classes' masks"]),
        ([one("a", "labels"), one("b", "labels")], "a", ["labels that a and b", "unseen classes"]),
        ([one("a", "captions"), one("b", None)], "a", ["captions that a", "unstated data that b"]),
    ],
)
def test_what_labels_retrieval_rests_on(
    networks: list[dict[str, Any]], backbone: str, said: list[str]
) -> None:
    told = label_free(networks, backbone)
    assert all(part in told for part in said)
    assert (told == NO_LABELS) == (said == [NO_LABELS])
