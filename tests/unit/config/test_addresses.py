"""The setting `storage`: what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusals import refused
from selfshot.config.load import parse_experiment
from selfshot.config.paths import check_inputs


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:very-secret@bucket/runs",
        "s3://bucket/runs?secret_key=very-secret&access_key=KEY",
        "s3://bucket/runs?region=x&session_token=very-secret",
        "gs://bucket/runs?TOKEN=very-secret",
    ],
)
@pytest.mark.parametrize("setting", ["storage", "encoder.weights"])
def test_credentials_in_an_address_are_refused_and_not_repeated(
    address: str, setting: str
) -> None:
    text = f"name: a\nstorage: {address}\n"
    if setting != "storage":
        section = f"{{backbone: timm/inception_v3, weights: '{address}', layers: 0}}"
        text = f"name: a\nencoder: {section}\n"
    with refused() as caught:
        parse_experiment(text, "x.yaml")
    assert "very-secret" not in str(caught.value) and "AWS_ACCESS_KEY_ID" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "ss3://bucket/runs",
        "s3://",
        "file://",
        "{tmp}/a_file",
    ],
)
def test_what_is_no_storage_is_refused(address: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    address = address.replace("{tmp}", str(tmp_path))
    experiment = parse_experiment(f"name: a\noutput: {tmp_path}\nstorage: '{address}'", "x.yaml")
    with refused("storage"):
        check_inputs(experiment)


@pytest.mark.parametrize("address", ["s3://bucket/runs", "gs://bucket", "/shared/runs", "hdfs://n/a"])
def test_storage_is_in_no_key(address: str) -> None:
    without = parse_experiment("name: a", "x.yaml")
    named = parse_experiment(f"name: a\nstorage: {address}", "x.yaml")
    assert named.storage == address
    for name in type(named).model_fields:
        section = getattr(named, name)
        if hasattr(section, "model_dump"):
            assert section == getattr(without, name)
