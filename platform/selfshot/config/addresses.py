"""Addresses such as s3://bucket/folder: what one is, and what one may not hold."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SECRET = frozenset(
    {"access_key", "secret_key", "session_token", "key", "secret", "token", "password", "sas"}
)


def is_address(text: str) -> bool:
    """Whether a text is the address of a folder elsewhere (`s3://…`), and not a path."""
    return _ADDRESS.match(text) is not None


def secret_problem(name: str, text: str | None) -> str | None:
    """What is wrong with an address that holds credentials; it is not repeated in the words.

    Settings are written into reports, manifests and MLflow.
    """
    if text is None or not is_address(text):
        return None
    parts = urlsplit(text)
    named = _SECRET & {key.lower() for key in parse_qs(parts.query)}
    if parts.password is None and not named and "@" not in parts.netloc.rpartition(":")[0]:
        return None
    return (
        f"{name}: an address with credentials is not allowed, as settings are written into reports "
        "and MLflow; take them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
        "AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS …) in the environment"
    )


def scheme_problem(address: str) -> str | None:
    """What is wrong with an address that is to be written to."""
    from fsspec import available_protocols

    scheme, _, rest = address.partition("://")
    if scheme.lower() not in available_protocols():
        return f"{address} is not allowed: fsspec knows no scheme {scheme} (s3, gs, abfs, hdfs …)"
    return None if rest.strip("/") else f"{address} names no bucket or folder (s3://bucket/folder)"
