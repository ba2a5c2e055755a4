"""Two ranks through the command line, as torchrun starts them: one run, the result of one process, one voice."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from runner.sweeps.callback import Sweep
from runner.system import ranks
from runner.system.errors import UserError
from runner.training import checkpoints
from tests.conftest import ROOT, Cli, save_small_model
from tests.runner.training.test_resume import COMMAND, histories, killed, runs

TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher other than torchrun sets for two ranks, but for RANK."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)


def weights(output: Path) -> dict[str, torch.Tensor]:
    (file,) = output.glob("*/model/model.safetensors")
    return load_file(file)


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_two_ranks_is_one_run_with_the_result_of_one_process(cli: Cli, tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    # Adam divides by the root of the second moment: a small epsilon would blow differences in the last bit up. So would
    # bf16, which a CPU that is faster in it chooses.
    command = (*COMMAND, "model=hub", f"model.path={model}", "train.max_steps=40", "distill.label_weight=0.5",
               "train.adam_epsilon=1e-2", "finetune.adam_epsilon=1e-2", "train.precision=float32",
               "finetune.precision=float32")  # fmt: skip
    together = cli(*TWO_RANKS, *command)
    assert together.returncode == 0, together.stderr
    alone = cli(*command, "output_dir=one", "cache_dir=one-cache", f"tracking.uri=sqlite:///{tmp_path}/one.db")
    assert alone.returncode == 0, alone.stderr
    assert together.stderr.count("fine-tuning the dense model") == 1
    assert together.stdout.count("MLflow run") == 1

    mine, theirs = weights(tmp_path / "outputs"), weights(tmp_path / "one")
    for name, weight in theirs.items():
        assert torch.equal(mine[name] == 0, weight == 0), name  # the same masks
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=1e-5)
    assert runs(tmp_path / "mlflow.db") == ["FINISHED"]
    logged, expected = histories(tmp_path / "mlflow.db"), histories(tmp_path / "one.db")
    assert logged.keys() == expected.keys()
    for name, values in expected.items():
        assert logged[name] == [(step, pytest.approx(value, rel=1e-5)) for step, value in values]  # each step once
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select value from tags where key = 'ranks'").fetchall() == [("2",)]

    results = [json.loads(next(tmp_path.glob(f"{folder}/*/result.json")).read_text()) for folder in ("outputs", "one")]
    assert results[0]["identity"] == results[1]["identity"]
    assert results[0]["sparse"] == pytest.approx(results[1]["sparse"], abs=1e-3)
    costs = [result["cost"] for result in results]
    assert [cost["ranks"] for cost in costs] == [2, 1]
    assert costs[0]["steps"] == costs[1]["steps"] == 40
    assert costs[0]["real_tokens"] == costs[1]["real_tokens"]  # of all ranks
    assert costs[0]["tokens"] <= costs[1]["tokens"]  # a part of a batch is padded to its own longest
    assert costs[0]["peak_memory_bytes"] > 0


@pytest.mark.slow
def test_two_ranks_that_a_signal_stopped_go_on_to_the_same_bits(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = (*TWO_RANKS, *COMMAND, "model=hub", f"model.path={small_model}", f"model.finetuned={small_model}",
               "train.max_steps=120", "train.save_steps=20")  # fmt: skip
    stopped = killed(command, tmp_path, signal.SIGTERM, after=40)
    assert stopped.stdout.count("the same command resumes from there") == 1
    assert "SIGKILL" not in stopped.stdout  # torchrun's last means
    assert runs(tmp_path / "mlflow.db") == ["KILLED"]
    (folder,) = tmp_path.glob("outputs/*/checkpoints")
    last = checkpoints.newest(folder)
    assert last is not None
    dropout = [torch.load(last / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in range(2)]
    assert not torch.equal(*dropout)
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path / "mlflow.db") == ["FINISHED"]
    whole = cli(*command, "output_dir=whole", f"tracking.uri=sqlite:///{tmp_path}/whole.db")
    assert whole.returncode == 0, whole.stderr

    mine, theirs = weights(tmp_path / "outputs"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
    logged, expected = histories(tmp_path / "mlflow.db"), histories(tmp_path / "whole.db")
    assert [step for step, _ in expected["train/loss"]] == [*range(7, 120, 7)]
    assert logged == expected


@pytest.mark.slow
def test_a_signal_to_any_rank_ends_all_after_a_checkpoint(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting(monkeypatch)
    command = [sys.executable, *COMMAND, "model=hub", f"model.path={small_model}", f"model.finetuned={small_model}",
               "train.max_steps=10000", "train.save_steps=5"]  # fmt: skip
    plain = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, env={**plain, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=tmp_path, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/*/checkpoints/checkpoint-*")):
        assert [process.poll() for process in started] == [None, None], [p.communicate()[0] for p in started]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [143, 143], told
    assert "the same command resumes from there" in told[0]
    assert told[1] == ""
    assert runs(tmp_path / "mlflow.db") == ["KILLED"]


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "message"), [
    (["model=nonsense"], "there is no model/nonsense"),  # found when composing
    (["train.per_device_train_batch_size=7"], "per_device_train_batch_size=7 in train or finetune is the total, and "
     "does not divide among 2 ranks"),
], ids=["unknown", "batch"])  # fmt: skip
def test_a_mistake_ends_all_ranks_with_one_message(
    arguments: list[str], message: str, cli: Cli, tmp_path: Path
) -> None:
    done = cli(*TWO_RANKS, "-m", "runner", *arguments, "model.path=nowhere/either", "dataset=demo")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert message in done.stderr
    assert len(re.findall(r"exitcode +: 1 ", done.stderr)) == 2, done.stderr  # torchrun lists both ranks
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_not_run_by_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"a sweep .*hydra\.launcher\.ranks=N"):
        Sweep()._begin(OmegaConf.create())


@pytest.mark.parametrize(("variable", "value", "named"), [
    ("ACCELERATE_USE_FSDP", "true", "FSDP"),
    ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
    ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "ParallelismConfig"),
    ("PJRT_DEVICE", "TPU", "TPUs"),
    ("OMPI_COMM_WORLD_SIZE", "2", "MPI ranks"),
])  # fmt: skip
def test_what_splits_a_model_is_refused(variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.check_launcher()
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"the launcher asks for .*{named}.* does not support"):
        ranks.check_launcher()


@pytest.mark.slow
def test_fsdp_is_refused_at_the_command_line(cli: Cli) -> None:
    done = cli("-m", "runner", "dataset=demo", "model=tiny",
               env={"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"})  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the launcher asks for FSDP, which")


def test_a_launchers_precision_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    ranks.check_launcher()
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert [record.getMessage() for record in caplog.records] == [
        "ACCELERATE_MIXED_PRECISION=bf16 is left out: train.precision decides"
    ]


# --- the ranks' line ----------------------------------------------------------------------------------------


def agree(same: bool, folder: str | None = None) -> int:
    """Called on both ranks; rank 0 alone gets the folder."""
    number = ranks.rank()
    assert (folder is not None) == (number == 0)
    assert ranks.broadcast(lambda: f"of {number}") == "of 0"
    assert ranks.all_max(10 * number) == 10
    assert ranks.all_sum([number + 1, 5]) == [3, 10]
    weight = torch.ones(3, 2)
    ranks.check_same({"equal": weight})
    if not same and number == 1:
        weight[1, 1] = 1 + 2**-23
    ranks.check_same({"equal": torch.zeros(()), "other": weight})
    return number


def fail_on_the_second() -> None:
    if ranks.rank() == 1:
        raise ValueError("of rank 1")


def play(number: int, folder: str) -> None:
    """Both parts, in a process each; what came of them is written down."""
    os.environ["RANK"] = str(number)
    ranks.PATIENCE = 1.0
    told: list[object] = []

    def program() -> int:
        told.append(ranks.on_all_ranks(agree, True, folder=folder))
        with pytest.raises(RuntimeError, match="weights have come to differ: 1 of 2, such as other"):
            ranks.on_all_ranks(agree, False, folder=folder)
        return 3

    try:
        told.append(ranks.lead(program) if number == 0 else ranks.follow())
    except SystemExit as ended:
        told.append(ended.code)
    (Path(folder) / f"{number}.json").write_text(json.dumps(told))


def play_badly(number: int, folder: str) -> None:
    os.environ["RANK"] = str(number)
    ranks.PATIENCE = 0.5

    def program() -> int:
        ranks.on_all_ranks(fail_on_the_second)
        time.sleep(3)
        return 0

    try:
        told = ranks.lead(program) if number == 0 else ranks.follow()
    except ValueError as error:
        told = str(error)
    (Path(folder) / f"{number}.json").write_text(json.dumps(told))


def train_in_a_cycle() -> None:
    """A step as Trainer takes it; the model stays in a cycle of references, as Trainer's does."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    model(torch.ones(2, 3)).sum().backward()
    model.itself = model  # type: ignore[assignment]


def play_a_training(number: int, folder: str) -> None:
    """Write down the threads of gloo that are left: they may abort the process at its exit."""
    os.environ["RANK"] = str(number)

    def program() -> int:
        ranks.on_all_ranks(train_in_a_cycle)
        return 0

    ranks.lead(program) if number == 0 else ranks.follow()
    tasks = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    (Path(folder) / f"{number}.json").write_text(json.dumps([name for name in tasks if "gloo" in name]))


@pytest.mark.slow
@pytest.mark.parametrize(("played", "expected"), [
    pytest.param(play_a_training, [[], []], marks=pytest.mark.skipif(sys.platform != "linux", reason="no /proc")),
    (play, [[0, 3], [3]]),  # with rank 0's status, whatever failed on both
    (play_badly, [0, "of rank 1"]),
])  # fmt: skip
def test_the_others_follow_rank_0(played, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting(monkeypatch)
    torch.multiprocessing.spawn(played, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    assert [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)] == expected


def test_without_a_launcher_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *a, **k: pytest.fail("a process group"))
    assert ranks.lead(lambda: ranks.on_all_ranks(int, "7")) == 7
    assert ranks.broadcast(lambda: 3) == 3
    assert ranks.all_max(4) == 4
    assert ranks.all_sum([1, 2]) == [1, 2]
    ranks.barrier()
