"""What tests share: small random models, a hub on loopback, and the command line in a folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Nothing here may reach a network: what tests download, they serve themselves.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)

Cli = Callable[..., subprocess.CompletedProcess[str]]


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
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


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
def rows(cli: Cli) -> Callable[[], list[dict]]:
    """The results table of `tmp_path`, as JSON."""

    def read() -> list[dict]:
        done = cli("-m", "results", "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def save_small_model(folder: Path, kind: str = "bert", seed: int = 0, **changes: object) -> Path:
    """A random model of this architecture with the demo's vocabulary: 2 layers, H=32."""
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    from runner.pretrain_tiny import build_tokenizer

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


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A folder with a small random BERT with a head for question answering."""
    return save_small_model(tmp_path / "small-model")
