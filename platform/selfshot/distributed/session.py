"""One Ray session for a whole run: embedded in this process, or a cluster that is already there."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfshot.errors import UserError

SOURCE_ROOT = Path(__file__).resolve().parents[2]
CONNECT_TIMEOUT_S = 5.0
EMBEDDED = "SELFSHOT_EMBEDDED_RAY"
"""Set in the environment of an embedded Ray, so that its workers know that it is one."""
# A socket path holds 107 bytes, and Ray appends about 65 of its own to the folder.
LONGEST_TEMP_DIR = 40

# What Ray reads when it starts; a person's own setting of any of these is left as it is.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    # Its C++ parts write to this terminal; "error" still shows lines that nobody can act on.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Data's own progress bars; ours are printed by the stages.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A worker that changes its folder breaks every relative path that it was given.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Train asks its workers every 2 s by default: 2 to 4 s lost at both ends of a short training.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Workers that wait for cores, or for nodes to come, are given up after a minute by default, and
    # what they had is free for others until they ask again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
}
ONE_MACHINE = {
    # Only a cloud reclaims a node with notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Nothing else starts workers here, and starting them early takes the cores from the program.
    "RAY_enable_worker_prestart": "0",
}


@dataclass(frozen=True)
class Session:
    """What is known of the running Ray.

    Attributes:
        embedded: it was started by this program and has one machine.
        num_cpus, num_gpus: of all nodes.
        node_cpus: of the largest node, which is what one worker can have at most.
    """

    embedded: bool
    num_cpus: float
    num_gpus: float
    node_cpus: float


@contextlib.contextmanager
def ray_session(address: str | None = None, *, worker_logs: bool = False) -> Iterator[Session]:
    """Run a block with Ray; it stops afterwards if it was started here.

    Inside another session, or where `ray.init` was called before, that one is used. Inside
    `ray job submit` the job's cluster is joined when no address is given.

    Args:
        address: "host:port" of a cluster, "auto" for the one on this machine, or None for a Ray
            of our own that ends with this process.
        worker_logs: print what workers print.

    Raises:
        UserError: nothing answers at the address, or it is of a kind that cannot be used.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given = address or os.environ.get("RAY_ADDRESS") or None
    if given is None or given == "local":
        for name, value in ONE_MACHINE.items():
            os.environ.setdefault(name, value)
        _choose_token()
    import ray

    if ray.is_initialized():
        yield current_session()
        return
    quieten()
    if given is None or given == "local":
        _start_embedded(worker_logs)
    else:
        os.environ.pop(EMBEDDED, None)
        _join(given, worker_logs)
    quieten()
    try:
        yield current_session()
    finally:
        _shut_down()
        os.environ.pop(EMBEDDED, None)


def _shut_down() -> None:
    """End Ray in this process, and nothing else of it.

    Ray ends the whole process, with exit code 1 and without a word, if one of its references is
    dropped in another thread just then; the thread that tells MLflow would drop those in cycles
    whenever it collects garbage. They are dropped here, before.
    """
    import ray

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def current_session() -> Session:
    """The session of this process.

    Raises:
        RuntimeError: there is none.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("Ray is not running; call this inside `with ray_session():`")
    resources = ray.cluster_resources()
    # In a worker of it, Ray itself does not say so.
    embedded = getattr(ray._private.worker._global_node, "head", False) or EMBEDDED in os.environ
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return Session(
        bool(embedded),
        resources.get("CPU", 1.0),
        resources.get("GPU", 0.0),
        max(nodes, default=0.0) or 1.0,
    )


def _start_embedded(worker_logs: bool) -> None:
    import ray

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ[EMBEDDED] = "1"
    with _import_path(), _without_stderr():
        ray.init(
            address="local",
            # Decoding and embedding hold a core each at the same time, so one is too few.
            num_cpus=max(2, cores),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=worker_logs,
            object_store_memory=int(min(2 * 2**30, max(2**27, memory // 10))),
            _temp_dir=str(_temp_dir()),
            # Reachable from this machine only, and a change of network does not break a run.
            _node_ip_address="127.0.0.1",
        )


def _join(address: str, worker_logs: bool) -> None:
    import ray

    if "://" in address:
        raise UserError(
            f"compute.address: {address!r} is not allowed (host:port of a Ray cluster, or auto); "
            "to run on a cluster from outside it, submit the run itself: "
            "ray job submit --address http://HOST:8265 -- selfshot run EXPERIMENT.yaml"
        )
    if address != "auto":
        _check_answers(address)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), **_workers_environment()}
    try:
        with _without_stderr():
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=worker_logs,
                # A submitted job brings its own runtime environment, which must not be
                # contradicted.
                runtime_env=None if inside_job else {"env_vars": variables},
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"compute.address: no Ray cluster can be joined at {address!r} ({first}); start one "
            "with `ray start --head`, mend the address, give the cluster's RAY_AUTH_TOKEN if it "
            "asks for a token, or leave the address out to run on this machine"
        ) from error


def _check_answers(address: str) -> None:
    """Ask the port first: Ray itself retries a dead address for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"compute.address: {address!r} is not allowed (host:port, as 10.0.0.5:6379, or auto)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"compute.address: nothing answers at {address!r} ({error}); start the cluster with "
            "`ray start --head`, mend the address, or leave it out to run on this machine"
        ) from error


def _workers_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ENVIRONMENT}


@contextlib.contextmanager
def _import_path() -> Iterator[None]:
    """Let workers, which inherit the environment, import what this process imports."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE_ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Hold back what C++ writes to the terminal; an exception shows it after all.

    Ray answers a log level of its environment with a line about having read it.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _temp_dir() -> Path:
    """Where an embedded Ray keeps its sockets and logs: short, and this user's own."""
    name = f"selfshot-ray-{os.getuid()}"
    chosen = os.environ.get("RAY_TMPDIR")
    base = Path(chosen) if chosen else Path(tempfile.gettempdir())
    folder = base if chosen else base / name
    if len(str(folder)) > LONGEST_TEMP_DIR:
        folder = Path("/tmp") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _choose_token() -> None:
    """Give an embedded Ray a token of its own, so that other users of the machine cannot enter."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" in sys.modules:
        # Ray read its mode when it was imported, and would start without the token.
        importlib.import_module("ray._raylet").Config.initialize('{"AUTH_MODE": "token"}')


def quieten() -> None:
    """Leave warnings of Ray's libraries to its own log files."""
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs the traceback of each failed trial, which `run_trials` reports in a line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
