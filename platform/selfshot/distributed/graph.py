"""Work that depends on other work, on Ray: each unit starts when what it needs is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from selfshot.distributed.trials import INSIDE, last_line

OnEnd = Callable[[str, str | None], None]


def run_graph(
    function: str,
    units: Mapping[str, tuple[Mapping[str, Any], frozenset[str]]],
    *,
    parallel: int,
    max_failures: int = 0,
    on_end: OnEnd | None = None,
) -> dict[str, str]:
    """Call `function(config)` for every unit, in processes of their own that keep no core.

    Args:
        function: dotted path; what it makes is its own business, and it may be called again.
        units: id → its config (JSON values) and the ids that must be done before; in the order
            in which they start when several may.
        parallel: units at one time.
        max_failures: times that a unit is tried again whose process died. What the function raises
            is not tried again: the work that it starts has retries of its own.
        on_end: receives the id of each unit that ends, with its error or None.

    Returns:
        id → the last line of the error of each unit that failed, or that needs one that did.
    """
    import ray

    work = ray.remote(num_cpus=0, max_retries=0)(_call)
    left = dict(units)
    attempts = dict.fromkeys(units, 0)
    running: dict[Any, str] = {}
    done: set[str] = set()
    failures: dict[str, str] = {}
    while left or running:
        for name, (config, needs) in list(left.items()):
            broken = sorted(needs & set(failures))
            if broken:
                del left[name]
                failures[name] = f"it needs {broken[0]}, which failed: {failures[broken[0]]}"
                if on_end is not None:
                    on_end(name, failures[name])
            elif needs & set(units) <= done and len(running) < parallel:
                del left[name]
                running[work.remote(function, dict(config))] = name
        if not running:
            continue
        (reference,), _ = ray.wait(list(running), num_returns=1)
        name = running.pop(reference)
        try:
            ray.get(reference)
        except Exception as error:  # whatever it is, units that do not need it go on
            raised = isinstance(error, ray.exceptions.RayTaskError)
            attempts[name] += 1
            if not raised and attempts[name] <= max_failures:
                left = {name: units[name], **left}
                continue
            failures[name] = last_line(error)
        else:
            done.add(name)
        if on_end is not None:
            on_end(name, failures.get(name))
    return failures


def _call(function: str, config: dict[str, Any]) -> None:
    from selfshot.training.loop import resolve

    os.environ[INSIDE] = "1"
    resolve(function)(config)
