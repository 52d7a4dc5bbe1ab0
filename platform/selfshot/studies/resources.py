"""Whether machines can place what an experiment requests, before anything is made."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial

from selfshot.config.schema import Experiment

GPU_STAGES = ("backbone", "encoder", "embeddings", "vis", "vis_no_fuser")
WAITED = "what is missing is waited for"


def refuse_without_capacity(experiment: Experiment, missing: Collection[str]) -> str | None:
    """Refuse a run that would come to a training which nothing can place.

    Args:
        experiment: what is to be run.
        missing: stages that are to be made.

    Returns:
        what a person should know of a cluster that lacks the capacity yet; None: nothing.

    Raises:
        UserError: it cannot be placed, and no nodes come by themselves.
    """
    compute = experiment.compute
    # On one machine only a GPU can be missing: more threads than cores are slow but right.
    if is_here(experiment) and not compute.use_gpu:
        return None
    if not set(missing) & set(GPU_STAGES):
        return None
    words = check_resources(experiment)
    return words if words.endswith(WAITED) else None


def refuse_without_faiss(missing: Collection[str]) -> None:
    """Refuse a run that would come to an index and could not build or search it.

    Args:
        missing: stages that are to be made.

    Raises:
        UserError: FAISS is not installed.
    """
    if {"index", "supports"} & set(missing):
        from selfshot.retrieval.index import load_faiss

        load_faiss()


def check_resources(experiment: Experiment) -> str:
    """Whether what the experiment requests can be placed, in words.

    Raises:
        UserError: it cannot, and no nodes come by themselves.
    """
    from selfshot.distributed.capacity import check_capacity
    from selfshot.distributed.session import Session, ray_session

    compute = experiment.compute
    lack_in = partial(
        check_capacity,
        num_workers=compute.num_workers,
        threads_per_worker=compute.threads_per_worker,
        use_gpu=compute.use_gpu,
    )
    wanted = f"{compute.num_workers} training workers"
    if compute.use_gpu:
        wanted += ", a GPU each"
    if is_here(experiment):
        cores = len(os.sched_getaffinity(0))
        gpus = 0
        if compute.use_gpu:
            import torch

            gpus = torch.cuda.device_count()
        lack = lack_in(Session(True, cores, gpus, cores))
        if lack is not None:
            raise lack
        return f"{wanted}; this machine has {cores} cores, on which they fit"
    with ray_session(compute.address) as session:
        lack = lack_in(session)
        if lack is not None and not compute.autoscales:
            raise lack
        has = f"the cluster has {session.num_cpus:g} CPUs and {session.num_gpus:g} GPUs"
        if lack is not None:
            return f"{wanted}; {has} now, and {WAITED}"
        return f"{wanted}; {has}, on which they fit"


def is_here(experiment: Experiment) -> bool:
    """Whether it runs on this machine, and on no cluster."""
    from selfshot.distributed.session import cluster_address

    return cluster_address(experiment.compute.address)[0] is None
