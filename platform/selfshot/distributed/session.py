"""One Ray session for a whole run: embedded in this process, or a cluster that is already there."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
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
TEMP_PREFIX = "selfshot-ray-"

# What Ray reads when it starts; a person's own setting of any of these is left as it is.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    # A call that comes when Ray has ended is an error: Ray would start another one by itself.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Its C++ parts write to this terminal; "error" still shows lines that nobody can act on.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Data's own progress bars; ours are printed by the stages.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune would end early at Ctrl-C and return what it has, as if all were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A worker that changes its folder breaks every relative path that it was given.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Train polls its workers every 2 s by default: 2 to 4 s lost at both ends of a short training.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Workers that wait for cores, or for nodes to come, are given up after a minute by default, and
    # what they had is free for others until they request them again.
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
def ray_session(address: str | None = None) -> Iterator[Session]:
    """Run a block with Ray; it stops afterwards if it was started here.

    Inside another session, or where `ray.init` was called before, that one is used. Inside
    `ray job submit` the job's cluster is joined when no address is given.

    Args:
        address: "host:port" of a cluster, "auto" for the one on this machine, or None for a Ray
            of our own that ends with this process.

    Raises:
        UserError: nothing answers at the address, or it is of a kind that cannot be used.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given, setting = cluster_address(address)
    if given is None:
        for name, value in ONE_MACHINE.items():
            os.environ.setdefault(name, value)
        _choose_token()
    import ray

    if ray.is_initialized():
        yield current_session()
        return
    quieten()
    with contextlib.ExitStack() as stack:
        stack.callback(os.environ.pop, EMBEDDED, None)
        if given is None:
            folder = stack.enter_context(_temp_dir())
            stack.callback(_shut_down)
            _start_embedded(folder)
        else:
            stack.callback(_shut_down)
            _join(given, setting)
        quieten()
        yield current_session()


def cluster_address(address: str | None) -> tuple[str | None, str]:
    """The cluster to join, and the setting that names it.

    Args:
        address: as for `ray_session`.

    Returns:
        its address, None for a Ray of our own; `compute.address` or `RAY_ADDRESS`.
    """
    setting = "compute.address"
    if address in (None, "", "auto") and os.environ.get("RAY_ADDRESS"):
        address, setting = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    return (None if address in (None, "", "local") else address), setting


def _shut_down() -> None:
    """End Ray in this process, and nothing else of it.

    Ray ends the whole process, with exit code 1 and without a word, if one of its references is
    dropped in another thread just then; the thread that logs to MLflow would drop those in cycles
    whenever it collects garbage. They are dropped here, before.
    """
    import ray

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        # Its processes still write into their folder, which is removed next.
        ray.shutdown(wait_for_processes=True)
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _own_handlers(*held_back: signal.Signals) -> Iterator[None]:
    """Keep the program's handlers of signals while Ray starts in a block.

    Ray sets its own for SIGTERM, one of which ends the process with a dump of C++ frames.

    Args:
        held_back: signals that come after the block.
    """
    import ray

    if threading.current_thread() is not threading.main_thread():
        yield  # It has no handlers, and Ray sets none there.
        return
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    late: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    # The mask is this thread's: what another one takes (NumPy has some) is handled here all the
    # same, by Ray's handler if that were set.
    for one in held_back:
        if callable(before[one]):
            signal.signal(one, lambda number, frame: late.append(number))
    set_by_ray = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = set_by_ray
        for one, handler in before.items():
            signal.signal(one, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if late:
            signal.raise_signal(late[0])


def _apart() -> None:
    """In a forked child: one of Ray's has a process group of its own.

    The terminal and `timeout` signal a whole group. Ray's processes end when this one ends them,
    or at its death; if they ended first, some of them would stay for a minute.
    """
    if signal.SIGTERM in signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM}):
        os.setpgid(0, 0)  # It was forked while Ray starts, for only then are signals held back.


os.register_at_fork(after_in_child=_apart)


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


def _start_embedded(folder: Path) -> None:
    import ray

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ[EMBEDDED] = "1"
    with (
        _own_handlers(signal.SIGINT, signal.SIGTERM),
        _import_path(),
        _without_stderr(),
    ):
        ray.init(
            address="local",
            # Decoding and embedding hold a core each at the same time, so one is too few.
            num_cpus=max(2, cores),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=int(min(2 * 2**30, max(2**27, memory // 10))),
            _temp_dir=str(folder),
            # Reachable from this machine only, and a change of network does not break a run.
            _node_ip_address="127.0.0.1",
        )


def _join(address: str, setting: str) -> None:
    import ray

    here = "unset it" if setting == "RAY_ADDRESS" else "leave it out"
    here += " to run on this machine"
    if "://" in address:
        raise UserError(
            f"{setting}: {address!r} is not allowed (host:port of a Ray cluster, or auto); {here}, "
            "or, to run on a cluster from outside it, submit the run itself: "
            "ray job submit --address http://HOST:8265 -- selfshot run EXPERIMENT.yaml",
            setting=setting,
        )
    if address != "auto":
        _check_answers(address, setting, here)
    os.environ.pop(EMBEDDED, None)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), **_workers_environment()}
    try:
        # Not Ctrl-C: a cluster may take its time to answer.
        with _own_handlers(signal.SIGTERM), _without_stderr():
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                # A submitted job brings its own runtime environment, which must not be
                # contradicted.
                runtime_env=None if inside_job else {"env_vars": variables},
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"{setting}: no Ray cluster can be joined at {address!r} ({first}); start one "
            "with `ray start --head`, mend the address, give the cluster's RAY_AUTH_TOKEN if it "
            f"asks for a token, or {here}",
            setting=setting,
        ) from error


def _check_answers(address: str, setting: str, here: str) -> None:
    """Ask the port first: Ray itself retries a dead address for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"{setting}: {address!r} is not allowed (host:port, as 10.0.0.5:6379, or auto); {here}",
            setting=setting,
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{setting}: nothing answers at {address!r} ({error}); start the cluster with "
            f"`ray start --head`, mend the address, or {here}",
            setting=setting,
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
        except Exception:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _temp_dir() -> Iterator[Path]:
    """A folder for the sockets and logs of an embedded Ray, removed after the block.

    It has a short name that nobody can foresee, and only this user enters it. Folders that killed
    processes left are removed first.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    if len(str(base / TEMP_PREFIX)) + 8 > LONGEST_TEMP_DIR:
        base = Path("/tmp")
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=base))
    with _locked(folder):
        for left in folder.parent.glob(f"{TEMP_PREFIX}*"):
            with contextlib.suppress(OSError):
                # An empty one may have an owner that is about to lock it.
                if left.stat().st_uid == os.getuid() and any(left.iterdir()):
                    with _locked(left):
                        shutil.rmtree(left, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system frees for a killed process.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


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
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # They log the traceback of what they raise as well, which is reported in a line: a trial that
    # failed, a pipeline that lost its node.
    for name in ("ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
