"""A function over many units on Ray: started together, taken as they end."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Unit = dict[str, Any]
OnDone = Callable[[int, int], None]


def parallel_map(
    on_done: OnDone | None = None, *, max_failures: int, carried: bool = False
) -> Callable[..., Iterable[Any]]:
    """A map over units on the running Ray, one core each, in the order in which they end.

    Args:
        on_done: receives how many units are done, and of how many.
        max_failures: times that a unit is tried again whose process died.
        carried: the units' `folder` and `path` are on this machine alone: a worker writes
            elsewhere, and what it wrote comes back through Ray.
    """

    def run(function: Callable[[Unit], Any], units: Sequence[Unit]) -> Iterator[Any]:
        import ray

        # Inside a trial of Tune, tasks would otherwise have to fit into the trial's own place.
        @ray.remote(num_cpus=1, max_retries=max_failures, scheduling_strategy="DEFAULT")
        def work(unit: Unit) -> Any:
            return _packed(function, unit) if carried else function(unit)

        left = [unit for unit in units if not (carried and Path(unit["path"]).exists())]
        references = {work.remote(unit): unit for unit in left}
        waiting = list(references)
        done = len(units) - len(left)
        while waiting:
            finished, waiting = ray.wait(waiting)
            for reference in finished:
                result = ray.get(reference)
                if carried:
                    result = _unpack(result, references[reference])
                del references[reference]
                done += 1
                if on_done is not None:
                    on_done(done, len(units))
                yield result

    return run


def _packed(function: Callable[[Unit], Any], unit: Unit) -> bytes:
    """Do a unit in a folder of this machine's own, and return the files."""
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "files"
        inside.mkdir()
        function({**unit, "folder": str(inside), "path": str(Path(folder) / "unit.json")})
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as files:
            for path in sorted(Path(folder).rglob("*")):
                files.write(path, path.relative_to(folder))
        return packed.getvalue()


def _unpack(packed: bytes, unit: Unit) -> str:
    """Put a unit's files where they belong; its `path` comes last, for it says that it is done."""
    with (
        tempfile.TemporaryDirectory(dir=Path(unit["path"]).parent) as folder,
        zipfile.ZipFile(io.BytesIO(packed)) as files,
    ):
        files.extractall(folder)
        inside, target = Path(folder) / "files", Path(unit["folder"])
        for path in inside.rglob("*"):
            place = target / path.relative_to(inside)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        (Path(folder) / "unit.json").replace(unit["path"])
    return str(unit["path"])
