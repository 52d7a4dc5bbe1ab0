"""What a cluster has no room for, in words."""

from __future__ import annotations

import pytest

from selfshot.distributed.capacity import check_capacity, gpu_share
from selfshot.distributed.session import Session

HERE = Session(True, 2.0, 0.0, 2.0)
CLUSTER = Session(False, 12.0, 3.0, 5.0)


@pytest.mark.parametrize(
    ("session", "workers", "threads", "gpu", "words"),
    [
        (HERE, 7, 5, False, None),
        (HERE, 1, None, True, "this machine has 0; set compute.use_gpu to false"),
        (CLUSTER, 2, 5, False, None),
        (CLUSTER, 3, None, True, None),
        (CLUSTER, 4, None, True, "and the cluster has 3; set"),
        (CLUSTER, 1, 6, False, "compute.threads_per_worker: 6 is more than the largest node's 5"),
        (CLUSTER, 3, 5, False, "compute.num_workers: 3 × compute.threads_per_worker: 5 are more"),
        (CLUSTER, 13, None, False, "compute.threads_per_worker: 1 are more than the cluster's 12"),
    ],
)
def test_what_is_missing(
    session: Session, workers: int, threads: int | None, gpu: bool, words: str | None
) -> None:
    found = check_capacity(session, num_workers=workers, threads_per_worker=threads, use_gpu=gpu)
    if words is None:
        assert found is None
    else:
        assert found is not None and words in str(found)
        assert found.setting == str(found).removeprefix("and ").partition(":")[0]


@pytest.mark.parametrize(
    ("gpus", "parallel", "autoscales", "share"),
    [
        (0, 2, False, 0.0),
        (0, 2, True, 1.0),
        (1, 1, False, 1.0),
        (1, 3, False, 0.3333),
        (2, 3, False, 0.6666),
        (8, 3, False, 1.0),
    ],
)
def test_trials_at_a_time_share_the_gpus(
    gpus: float, parallel: int, autoscales: bool, share: float
) -> None:
    assert gpu_share(Session(True, 4.0, gpus, 4.0), parallel, autoscales=autoscales) == share
