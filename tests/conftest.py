"""What tests share: small random models, a hub on loopback, and the command line in a folder of its own."""

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests import fork_server
from tests.mlflow_server import Server

ROOT = Path(__file__).parent.parent
NO_DATA = ROOT / "conf"
"""A folder without examples, as shows who reads it; a path that does not exist is refused before all else."""
# Nothing here may reach a network: what tests download, they serve themselves.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]


def few(values: Iterable[Any], every: int = 3) -> list[Any]:
    """Parameters of a long grid that holds one property: all but each `every`th are slow."""
    return [v if i % every == 0 else pytest.param(v, marks=pytest.mark.slow) for i, v in enumerate(values)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Results that do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cli_in(folder: Path) -> Cli:
    """As the fixture `cli`, in another folder."""

    def run(*arguments: str, env: dict[str, str] | None = None, timeout: int = 300) -> subprocess.CompletedProcess[str]:
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **(env or {})}
        return fork_server.run(arguments, folder, {**os.environ, **settings}, timeout)

    return run


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of what all tests of a session share, also those of other pytest-xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    os.environ[fork_server.SHARED] = str(folder)
    yield folder
    fork_server.stop()


@pytest.fixture(scope="session")
def prepared_hub() -> Path:
    """The folder with real data and weights, for tests that need them."""
    hub = os.environ.get("PRUNE_DISTILL_HUB")
    if not hub:
        pytest.skip("PRUNE_DISTILL_HUB is not set: no folder with real data")
    return Path(hub)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("-m", "runner", "model=tiny")` runs Python in `tmp_path` as a user would, offline unless `env` says else."""
    return cli_in(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An MLflow server that runs."""
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def rows(cli: Cli) -> Callable[[], list[dict]]:
    """The results table of `tmp_path`, as JSON."""

    def read() -> list[dict]:
        done = cli("-m", "results", "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """`refused("model=nope")`: the command line in this process, in an empty folder, up to its message."""
    from runner import __main__ as command_line

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["python -m runner", *arguments])
        capfd.readouterr()  # what the test itself has printed
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                status = command_line.main()
            except SystemExit as exit:
                status = exit.code
        assert status == 1
        assert [str(w.message) for w in warned if "Callback" in str(w.message)] == []
        told = capfd.readouterr()
        assert told.out == ""
        check_refusal(told.err)
        assert list(folder.iterdir()) == []
        return told.err

    yield run
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)
    for library in ("huggingface_hub", "datasets"):
        logging.getLogger(library).propagate = True


def check_refusal(stderr: str) -> None:
    """One message and no traceback."""
    assert "Traceback" not in stderr
    assert stderr.count("error: ") == 1
    assert stderr.startswith("error: ")


def save_small_model(folder: Path, kind: str = "bert", seed: int = 0, **changes: object) -> Path:
    """A random model of this architecture with the demo's vocabulary: 2 layers, H=32."""
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    from tests.tools.pretrain_tiny import build_tokenizer

    tokenizer = build_tokenizer()
    sizes: dict[str, int] = {
        "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    }[kind]
    settings = {"max_position_embeddings": 512, **sizes, **changes}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **settings)
    torch.manual_seed(seed)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


FINISHED = (
    "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=60", "recipe=published", "schedule=short",
    "train.max_steps=20", "train.per_device_train_batch_size=8", "train.learning_rate=1e-2", "train.warmup_steps=2",
    "finetune.max_steps=8", "finetune.per_device_train_batch_size=8", "finetune.learning_rate=1e-2",
    "distill.label_weight=1", "train.precision=null", "pattern=4x1",
)  # fmt: skip
"""The settings of `finished_run`."""


@pytest.fixture(scope="session")
def finished_run(shared_folder: Path) -> Path:
    """A folder in which one run of a small model has finished: to read, and to copy with `copy_run` for who writes."""
    place = shared_folder / "finished"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            model = save_small_model(place / "small-model")
            done = cli_in(place)("-m", "runner", "model=hub", f"model.path={model}", *FINISHED)
            assert done.returncode == 0, done.stderr
    return place


def copy_run(finished: Path, place: Path) -> Path:
    """A copy of the folder `finished_run` in `place`, whose MLflow has its artifacts there."""
    shutil.copytree(finished, place, dirs_exist_ok=True)
    with closing(sqlite3.connect(place / "mlflow.db")) as store, store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            store.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(finished), str(place)))
    return place


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A folder with a small random BERT with a head for question answering."""
    return save_small_model(tmp_path / "small-model")
