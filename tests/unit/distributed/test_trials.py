"""Results of trials that are read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfshot.data.storage import Storage
from selfshot.distributed.trials import _read_result
from selfshot.store.folders import RemoteFolder


@pytest.mark.parametrize("content", [b"", b'{"rows": [', b"\xff"])
def test_a_result_that_is_cut_short_is_made_again_or_fetched(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "one.json").write_bytes(content)
    assert _read_result(tmp_path, "one") is None
    storage = Storage(tmp_path / "there")
    remote = RemoteFolder(storage, "trials", tmp_path)
    assert _read_result(tmp_path, "one", remote) is None
    storage.write("trials/one.json", b'{"score": 1}')
    assert _read_result(tmp_path, "one", remote) == {"score": 1}
    assert _read_result(tmp_path, "one") == {"score": 1}
    assert _read_result(tmp_path, "two", remote) is None
