"""A function over many units on Ray: started together, taken as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Unit = dict[str, Any]
OnDone = Callable[[int, int], None]


def parallel_map(on_done: OnDone | None = None) -> Callable[..., Iterable[Any]]:
    """A map over units on the running Ray, one core each, in the order in which they end.

    Args:
        on_done: told how many units are done, and of how many.
    """

    def run(function: Callable[[Unit], Any], units: Sequence[Unit]) -> Iterator[Any]:
        import ray

        # Inside a trial of Tune, tasks would otherwise have to fit into the trial's own place.
        @ray.remote(num_cpus=1, max_retries=2, scheduling_strategy="DEFAULT")
        def work(unit: Unit) -> Any:
            return function(unit)

        waiting = [work.remote(unit) for unit in units]
        done = 0
        while waiting:
            finished, waiting = ray.wait(waiting)
            for reference in finished:
                result = ray.get(reference)
                done += 1
                if on_done is not None:
                    on_done(done, len(units))
                yield result

    return run
