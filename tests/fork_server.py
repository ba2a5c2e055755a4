"""A fork server: Python with the heavy libraries imported, which forks a process for each command line of the tests.

`run(["-m", "runner", "model=tiny"], folder, environment, timeout)` does what `subprocess.run` does with
`python -m runner model=tiny`, without the 5 to 7 CPU seconds of imports. The process is real: it has a working folder,
an environment, exit status, output and exit handlers of its own, and imports the modules of this project afresh.

Libraries read variables when they are imported, so a server serves the environment that it was started with: its
commands differ in the variables of `READ_LATE` alone. They share the seed of `hash(str)`, and a fresh MLflow database
is a copy of the first that was made (in the folder `SHARED`), since its migrations take as long as a small run.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any

import filelock

READ_LATE = (
    "PYTHONPATH", "PYTEST_CURRENT_TEST", "NO_COLOR", "COLUMNS", "HF_TOKEN", "MLFLOW_TRACKING_URI",
    # Set in the process of pytest by what the tests import; the server has its own.
    "HYDRA_FULL_ERROR", "TOKENIZERS_PARALLELISM", "DISABLE_SAFETENSORS_CONVERSION", "MLFLOW_LOGGING_LEVEL",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
)  # fmt: skip
"""Variables that commands of one server may differ in; those of this project (PRUNE_DISTILL_*) are others."""
SHARED = "PRUNE_DISTILL_TEST_FOLDER"
"""The variable with the folder of what all tests of a session share."""
SERVER_ONLY = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a process with threads must not fork
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # as runner/tracking.py sets it before it imports MLflow
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # CUDA that is initialised does not survive a fork
}
LIBRARIES = (
    "torch", "torch.utils.flop_counter", "transformers.trainer", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert", "transformers.models.distilbert.modeling_distilbert",
    "accelerate", "datasets", "evaluate", "safetensors.torch", "hydra.main", "hydra._internal.hydra",
    "hydra.experimental.callback", "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.tracking.client", "alembic.command",
    "sqlalchemy.dialects.sqlite", "matplotlib.backends.backend_agg", "pandas", "pyarrow.parquet", "rich.table",
    "scipy.stats", "sklearn.metrics",
)  # fmt: skip


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment in which all commands of a server agree."""
    return {k: v for k, v in environment.items() if k not in READ_LATE and not k.startswith("PRUNE_DISTILL_")}


class ForkServer:
    """The client's end, in the process of pytest. One command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it; the first command waits for the imports.

        Args:
            environment: what `read_at_import` gives.
        """
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())], env={**environment, **SERVER_ONLY}, cwd="/",
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                start_new_session=True,
            )  # fmt: skip

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` (`-m MODULE ...` or `-c CODE ...`) in this folder and environment.

        Raises:
            subprocess.TimeoutExpired: the process and its children were killed after `timeout` seconds.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            request = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
            self._socket.settimeout(None)
            with contextlib.suppress(ConnectionError):  # its log says why it ended
                socket.send_fds(self._socket, [request], [out.fileno(), err.fileno()])
            process = self._reply()
            try:
                self._socket.settimeout(timeout)
                status = self._reply()
            except TimeoutError:
                self._socket.settimeout(None)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                self._reply()
                raise subprocess.TimeoutExpired(list(arguments), timeout, _text(out), _text(err)) from None
            return subprocess.CompletedProcess([sys.executable, *arguments], status, _text(out), _text(err))

    def stop(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()
        self._log.close()

    def _reply(self) -> int:
        reply = b""
        with contextlib.suppress(ConnectionError):
            reply = self._socket.recv(64)
        if not reply:
            raise RuntimeError(f"the fork server ended: {_text(self._log)}")
        return int(reply)


_servers: dict[str, ForkServer] = {}
"""At most two, by what `read_at_import` gives; the last used is last."""


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` with this environment: forked from a server for it, or a new process for other options."""
    if arguments[0] not in ("-m", "-c"):
        return subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    shared = read_at_import(environment)
    key = json.dumps(shared, sort_keys=True)
    server = _servers.pop(key, None) or ForkServer(shared)
    _servers[key] = server
    while len(_servers) > 2:
        _servers.pop(next(iter(_servers))).stop()
    return server.run(arguments, folder, environment, timeout)


def stop() -> None:
    """End all servers."""
    while _servers:
        _servers.popitem()[1].stop()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n").replace("\r", "\n")  # as subprocess does with text=True


def serve(descriptor: int) -> tuple[list[str], list[int]]:
    """Answer commands until the client is gone. Returns in each forked process: its arguments, its output's files."""
    for name in LIBRARIES:
        importlib.import_module(name)
    _copy_databases()
    gc.collect()
    gc.freeze()  # the pages of what is imported stay shared
    with socket.socket(fileno=descriptor) as client:
        client.set_inheritable(False)
        while True:
            request, files, _, _ = socket.recv_fds(client, 1 << 20, 2)
            if not request:
                sys.exit()
            arguments, folder, environment = json.loads(request)
            threads = os.listdir("/proc/self/task")
            if len(threads) != 1:
                sys.exit(f"{len(threads)} threads: importing a library started one")
            process = os.fork()
            if not process:
                os.setpgid(0, 0)
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(environment)
                return arguments, files
            for file in files:
                os.close(file)
            client.send(str(process).encode())
            client.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())


def _copy_databases() -> None:
    """Let MLflow fill a fresh SQLite database from the first that it has migrated."""
    utils: Any = sys.modules["mlflow.store.db.utils"]
    migrate = utils._initialize_tables

    def initialise(engine: Any) -> None:
        first = Path(os.environ.get(SHARED, "/nowhere"), "mlflow.db")
        if not first.parent.exists() or engine.dialect.name != "sqlite":
            return migrate(engine)
        with filelock.FileLock(f"{first}.lock"), contextlib.closing(engine.raw_connection()) as connection:
            database = connection.driver_connection
            if first.exists():
                with contextlib.closing(sqlite3.connect(first)) as source:
                    source.backup(database)
            else:
                migrate(engine)
                with contextlib.closing(sqlite3.connect(f"{first}.new")) as target:
                    database.backup(target)
                os.rename(f"{first}.new", first)

    utils._initialize_tables = initialise


def become(arguments: list[str], files: list[int]) -> None:
    """Do in this process what `python ARGUMENTS` does. The interpreter takes the exit status and the exit handlers."""
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file, number)
        os.close(file)
    for library in ("numpy.random", "torch"):  # fork copies the state of generators
        sys.modules[library].seed()
    sys.excepthook = _without_server
    sys.orig_argv = [sys.executable, *arguments]
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:1] = [os.getcwd() if arguments[0] == "-m" else "", *paths]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if arguments[0] == "-m":
        sys.argv = ["-m", *arguments[2:]]
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
    else:
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)


def _without_server(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    server = sys.modules["__main__"]  # its functions run while another module takes its name
    become(*serve(int(sys.argv[1])))
