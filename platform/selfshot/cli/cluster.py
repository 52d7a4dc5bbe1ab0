"""`selfshot cluster check`: what a cluster lacks, before a job is sent to it."""

from __future__ import annotations

from typing import Annotated

import typer

from selfshot.cli.app import ExperimentFile, Overrides, cluster_app
from selfshot.cli.experiments import opened


@cluster_app.callback()
def _cluster() -> None:
    pass


@cluster_app.command("check")
def check(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="Of the cluster, if not the file's."),
    ] = None,
) -> None:
    """Look for what the cluster lacks: versions, GPUs, shared storage, the tracking server.

    Exits with 1 if a run could not work. Give it where the run will be given: on the head node, or
    with `ray job submit -- selfshot cluster check EXPERIMENT.yaml`.
    """
    from selfshot.config.messages import placed
    from selfshot.distributed.session import ray_session

    with opened(experiment, overrides) as study:
        loaded, data = study.experiment, study.data
    compute = loaded.compute
    from selfshot.distributed.capacity import check_capacity
    from selfshot.distributed.checks import Finding, check_cluster, check_faiss, check_tracking

    with ray_session(address or compute.address) as session:
        print(f"Ray: {session.num_cpus:g} CPUs and {session.num_gpus:g} GPUs on its nodes")
        if session.embedded:
            print("this is a Ray of this command's own: give --address to look at a cluster")
        findings = check_cluster(loaded.output, loaded.storage)
        lack = check_capacity(
            session,
            num_workers=compute.num_workers,
            threads_per_worker=compute.threads_per_worker,
            use_gpu=compute.use_gpu,
        )
    if lack is None:
        words = f"{compute.num_workers} training workers{', a GPU each,' * compute.use_gpu} fit"
        findings.append(Finding("capacity", "ok", words))
    elif compute.autoscales:
        findings.append(Finding("capacity", "warning", f"waited for by a run: {lack}"))
    else:
        findings.append(Finding("capacity", "wrong", str(placed(lack, data))))
    findings.append(check_faiss(compute.use_gpu))
    findings.append(check_tracking(loaded.tracking.uri, loaded.output))
    for finding in findings:
        print(f"{finding.status:8s}{finding.what}: {finding.words}")
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)
