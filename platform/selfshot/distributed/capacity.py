"""Whether the running Ray has the capacity that trainings request, before anything is made."""

from __future__ import annotations

from selfshot.distributed.session import Session
from selfshot.errors import UserError


def gpu_share(session: Session, parallel: int, *, autoscales: bool) -> float:
    """The share of a GPU with which so many trials at a time fit on the cluster's; 0: it has none.

    Args:
        session: the running Ray.
        parallel: trials at a time.
        autoscales: whether nodes with GPUs come when they are requested.
    """
    if not session.num_gpus:
        return 1.0 if autoscales else 0.0
    # Ray counts in ten-thousandths; rounded down, the last trial fits too.
    return min(1.0, int(10_000 * session.num_gpus / parallel) / 10_000)


def check_capacity(
    session: Session, *, num_workers: int, threads_per_worker: int | None, use_gpu: bool
) -> UserError | None:
    """What is missing for a training, with what mends it; None: nothing.

    Cores are no reason on one machine, where more threads than cores are slow but right.

    Args:
        session: the running Ray.
        num_workers: of a training.
        threads_per_worker: cores of each; None: as many as there are.
        use_gpu: whether each wants a GPU.
    """
    grows = "add nodes, or set compute.autoscales where nodes come when they are asked for"
    if use_gpu and session.num_gpus < num_workers:
        where = "this machine" if session.embedded else "the cluster"
        mend = "or the compute.address of a cluster" if session.embedded else grows
        return UserError(
            f"compute.use_gpu: true with compute.num_workers: {num_workers} needs as many GPUs, "
            f"and {where} has {session.num_gpus:g}; set compute.use_gpu to false, fewer workers, "
            f"{mend}",
            setting="compute.use_gpu",
        )
    if session.embedded:
        return None
    threads = threads_per_worker or 1
    if threads > session.node_cpus:
        return UserError(
            f"compute.threads_per_worker: {threads} is more than the largest node's "
            f"{session.node_cpus:g} CPUs, so a worker would wait for ever; lower it, {grows}",
            setting="compute.threads_per_worker",
        )
    if threads * num_workers > session.num_cpus:
        return UserError(
            f"compute.num_workers: {num_workers} × compute.threads_per_worker: {threads} are more "
            f"than the cluster's {session.num_cpus:g} CPUs; lower one, {grows}",
            setting="compute.num_workers",
        )
    return None
