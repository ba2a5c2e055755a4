"""Sweeps: the outcome of each job is reported, lost jobs resume, and all launchers behave the same."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from runner.config.compose import register
from runner.sweeps import callback, jobs, local
from runner.sweeps.jobs import Job, Outcome, Place
from runner.sweeps.launcher import Ended, ProcessLauncher
from runner.sweeps.local import Joblib
from runner.sweeps.ray_cluster import Ray
from runner.sweeps.slurm import SubmititSlurm
from runner.sweeps.worker import Worker
from runner.system import files
from runner.system.errors import UserError
from runner.system.process import SWEEP_FOLDER
from tests.conftest import ROOT, Cli

SMALL = (
    "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=16", "recipe=published",
    "schedule=short", "train.warmup_steps=2",
    "train.per_device_train_batch_size=8", "finetune.max_steps=3", "finetune.per_device_train_batch_size=8",
)  # fmt: skip


def runs(store: Path) -> dict[str, str]:
    """Name -> status of all MLflow runs, the sweep's as "sweep"; fails if two have the same name."""
    with sqlite3.connect(store) as database:
        rows = database.execute("select name, status from runs").fetchall()
    rows = [("sweep" if name.startswith("sweep ") else name, status) for name, status in rows]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def outcomes(folder: Path) -> dict[int, dict]:
    return {int(p.stem): json.loads(p.read_text()) for p in folder.glob("outputs/sweeps/*/*.json")}


# --- the whole path -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_job_fails_alone_and_the_sweep_says_so(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    sweep = ("-m", "runner", "-m", "model=hub", f"model.path={small_model},{tmp_path}/missing", "pattern=4x1", *SMALL,
             "train.max_steps=8")  # fmt: skip
    done = cli(*sweep)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("small-model on demo, 4x1, seed 0  dense F1")
    end = done.stderr
    assert "1 of 2 runs failed:" in end
    assert f"python -m runner model=hub model.path={tmp_path}/missing pattern=4x1" in end
    assert "there is no such folder" in end
    (log,) = tmp_path.glob("outputs/sweeps/*/*.log")
    assert log.name == "1.log"
    assert "Traceback" in log.read_text()
    statuses = runs(tmp_path / "mlflow.db")
    (unprepared,) = statuses.keys() - {"sweep", "small-model-demo-4x1-s0"}  # named by the whole path
    assert statuses == {"sweep": "FAILED", "small-model-demo-4x1-s0": "FINISHED", unprepared: "FAILED"}
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        errors = dict(database.execute("select name, value from runs join tags using (run_uuid) where key = 'error'"))
    assert "there is no such folder" in errors[unprepared]
    (of_sweep,) = (error for name, error in errors.items() if name.startswith("sweep model.path="))
    assert of_sweep == "JobsFailed: 1 of 2 runs failed"
    # Given again, with what was missing put there: only that is done, under the same parent.
    small_model.rename(tmp_path / "missing")
    small_model.symlink_to(tmp_path / "missing")
    done = cli(*sweep)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already finished") == 1
    assert runs(tmp_path / "mlflow.db") == {
        "sweep": "FINISHED", "small-model-demo-4x1-s0": "FINISHED", "missing-demo-4x1-s0": "FINISHED",
        unprepared: "FAILED",
    }  # fmt: skip
    # The sweep's own line has the labels of its runs, and the mean of their scores.
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        tables = "latest_metrics join runs using (run_uuid) where key = 'dense/f1' and status = 'FINISHED'"
        scores = dict(database.execute(f"select name, value from {tables}"))
        labels = dict(
            database.execute("select key, value from params join runs using (run_uuid) where name like 'sweep%'")
        )
    (mean,) = (score for name, score in scores.items() if name.startswith("sweep"))
    assert mean == pytest.approx(sum(score for name, score in scores.items() if not name.startswith("sweep")) / 2)
    assert labels == {"model": f"small-model, {tmp_path}/missing", "dataset": "demo", "pattern": "4x1", "seed": "0"}


@pytest.mark.slow
def test_a_killed_job_goes_on_beside_the_others(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runner", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "model=hub",
               f"model.path={small_model}", "pattern=4x1", "seed=0,1", *SMALL, "train.max_steps=150",
               "train.save_steps=10", "train.logging_steps=10"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/*-s1-*/checkpoints/checkpoint-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pid_of("seed=1"), signal.SIGKILL)
    _, text = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert "seed=1 was lost: signal 9; started again" in text
    assert text.count("ended") == 2
    results = outcomes(tmp_path)
    assert sorted(results) == [0, 1]
    assert all(result["error"] is None for result in results.values())
    assert set(runs(tmp_path / "mlflow.db").values()) == {"FINISHED"}
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        counts = database.execute("select count(*), count(distinct step) from metrics where key = 'train/loss' "
                                  "group by run_uuid").fetchall()  # fmt: skip
        parents = database.execute("select count(*) from tags where key='mlflow.parentRunId'").fetchall()
    assert counts == [(15, 15), (15, 15)]
    assert parents == [(2,)]


def pid_of(words: str) -> int:
    """The process of a job."""
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if words in arguments and "-m" in arguments:
            return int(entry.name)
    raise AssertionError("no such process")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_other_launchers_do_the_same(launcher: str, cli: Cli, small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip({"submitit_local": "submitit", "ray": "ray"}[launcher])
    address = ["hydra.launcher.ray.init.address=local", "+hydra.launcher.ray.init.num_cpus=1"]
    done = cli(
        "-m", "runner", "-m", f"hydra/launcher={launcher}", *(address if launcher == "ray" else []), "model=hub",
        f"model.path={small_model},./nowhere", "prune=false", *SMALL,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # there is no such folder, which the job finds
    results = outcomes(tmp_path)
    assert results[0]["error"] is None
    assert results[0]["score"] > 0
    assert results[1]["error"]
    assert "1 of 2 runs failed" in done.stderr
    assert runs(tmp_path / "mlflow.db")["small-model-demo-dense-s0"] == "FINISHED"
    assert json.loads((Path(results[0]["folder"]) / "result.json").read_text())["seed"] == 0


# --- launchers ----------------------------------------------------------------------------------------------


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OmegaConf]:
    """A sweep's configuration, with its environment."""
    monkeypatch.setenv(SWEEP_FOLDER, str(tmp_path))
    monkeypatch.setenv("PRUNE_DISTILL_PARENT_RUN", "the parent")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    register()
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", ["hydra.searchpath=[pkg://more]"], return_hydra_config=True)
        HydraConfig.instance().set_config(composed)
        yield composed  # type: ignore[misc]


class Scripted(ProcessLauncher):
    """Ends jobs as a script says: for each attempt, how each job that is started ends; None: well."""

    def __init__(self, script: list[list[Ended | None]], retries: int) -> None:
        super().__init__(retries, ranks=1)
        self.script, self.started = script, []

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        self.started.append([job.name for job in jobs])
        for job, ending in zip(jobs, self.script.pop(0), strict=True):
            if ending is None:
                job.place.write(Outcome(list(job.overrides), folder="somewhere", score=0.5))
            yield job, 0 if ending is None else ending


def test_what_was_lost_is_started_again_and_only_that(composed, caplog: pytest.LogCaptureFixture) -> None:
    launcher = Scripted([[None, -9, "node gone"], [None, 1], [-9]], retries=2)
    launcher.setup(hydra_context=None, task_function=None, config=composed)  # type: ignore[arg-type]
    caplog.set_level("INFO", "runner")
    returned = launcher.launch([["pattern=4x1", f"seed={i}"] for i in range(3)], initial_job_idx=5)
    assert launcher.started == [["seed=0", "seed=1", "seed=2"], ["seed=1", "seed=2"], ["seed=2"]]
    assert [r.return_value for r in returned[:2]] == [0.5, 0.5]
    assert returned[2].return_value != returned[2].return_value  # no number, and raises nothing
    assert "6: seed=1 was lost: signal 9; started again" in caplog.text
    assert "7: seed=2 was lost: node gone; started again" in caplog.text
    last = Place(Path(os.environ[SWEEP_FOLDER]), 7).read()
    assert last is not None
    assert "its process was lost: signal 9" in str(last.error)


def test_a_job_is_the_command_that_a_person_would_type(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Joblib(n_jobs=2, threads=6, retries=0, ranks=3)
    launcher.setup(hydra_context=None, task_function=None, config=composed)  # type: ignore[arg-type]
    job = launcher._job(4, ["pattern=2:4", "seed=1"], "seed=1")
    assert job.command == (
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "runner",
        "hydra.searchpath=[pkg://more]", "pattern=2:4", "seed=1",
    )  # fmt: skip
    assert job.environment["OMP_NUM_THREADS"] == "2"  # 6 threads for 3 ranks
    assert job.environment[jobs.NUMBER_VARIABLE] == "4"
    assert job.environment["PRUNE_DISTILL_PARENT_RUN"] == "the parent"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launcher._job(4, [], "").environment["OMP_NUM_THREADS"] == "7"  # the user's word comes first


def test_each_job_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    gpus = local.visible_gpus()
    assert gpus == ["4", "5", "7"]
    assert [local.gpus_of(slot, 1, gpus)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["4", "5", "7", "4"]
    assert local.gpus_of(1, 2, ["0", "1", "2", "3"]) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert local.gpus_of(0, 3, ["0"]) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert local.gpus_of(0, 1, []) == {}
    assert Joblib(None, None, 1, 1).n_jobs == 3
    assert Joblib(None, None, 1, 2).n_jobs == 1
    monkeypatch.setattr(local, "visible_gpus", list)
    assert Joblib(None, None, 1, 1).n_jobs == 2
    monkeypatch.setattr(local, "_cores", lambda: 7)
    assert [Joblib(n, None, 1, 1).threads() for n in (1, 2, 3, 9)] == [7, 3, 2, 1]


@pytest.mark.parametrize("wrong", [
    {"n_jobs": -1}, {"threads": 0}, {"retries": -1}, {"ranks": 0},
], ids=str)  # fmt: skip
def test_wrong_settings_of_a_launcher_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"hydra\.launcher"):
        Joblib(**{"n_jobs": None, "threads": None, "retries": 1, "ranks": 1} | wrong)


def test_a_launcher_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hydra/launcher=submitit_slurm needs the package submitit"):
        SubmititSlurm(1, 1)
    with pytest.raises(UserError, match=r"hydra/launcher=ray needs the package ray"):
        Ray(OmegaConf.create({"init": {}, "remote": {}}), 1, 1)


# --- a job's process ----------------------------------------------------------------------------------------


def worker(tmp_path: Path, script: str) -> Worker:
    environment = {"A": "the job's"}
    job = Job("", ("x=1",), (sys.executable, "-c", script), environment, str(tmp_path), Place(tmp_path / "sweep", 3))
    return Worker(job)


def test_a_workers_process_has_its_log_environment_and_status(tmp_path: Path) -> None:
    script = "import os, sys; print(os.environ['A'], os.environ['B'], os.getcwd()); sys.exit(5)"
    mine = worker(tmp_path, script)
    assert mine({"B": "the machine's"}) == 5
    assert mine.job.place.log.read_text().split() == ["the", "job's", "the", "machine's", str(tmp_path)]
    assert mine.job.place.read() is None
    assert worker(tmp_path, "import os; os.kill(os.getpid(), 9)")() == -9


def test_a_job_that_was_asked_to_end_says_so(tmp_path: Path) -> None:
    mine = worker(tmp_path, "raise SystemExit(143)")
    assert mine() == 143
    outcome = mine.job.place.read()
    assert outcome == Outcome(["x=1"], "it was asked to end, and saved first")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals children at their parent's end")
def test_a_job_ends_with_its_worker(tmp_path: Path) -> None:
    """However that ended; and it ignores the signal with which Slurm warns its worker."""
    ready = tmp_path / "ready"
    inner = f"""
import os, pathlib, signal, time
def end(*_):
    pathlib.Path({str(tmp_path / "ended")!r}).touch()
    raise SystemExit
signal.signal(signal.SIGTERM, end)
os.kill(os.getpid(), signal.SIGUSR2)
pathlib.Path({str(ready)!r}).write_text(str(os.getpid()))
time.sleep(100)
"""
    outer = f"""
from pathlib import Path
from runner.sweeps.jobs import Job, Place
from runner.sweeps.worker import Worker
import sys
Worker(Job("", (), (sys.executable, "-c", {inner!r}), {{}}, {str(tmp_path)!r}, Place(Path({str(tmp_path)!r}), 0)))()
"""
    process = subprocess.Popen([sys.executable, "-c", outer], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (ready.exists() and ready.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.wait()


def test_a_worker_is_stopped_from_a_signals_handler(tmp_path: Path) -> None:
    """As submitit does: the handler runs above the frame that waits for the process."""
    ready = tmp_path / "ready"
    mine = worker(tmp_path, f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(100)")

    class Left(Exception):
        pass

    def handler(*_: object) -> None:
        if not ready.exists():
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return
        mine.stop()
        raise Left

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Left):
            mine()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert mine.process is not None
    assert mine.process.wait() == -signal.SIGTERM


def test_only_interrupts_leave_a_job(tmp_path: Path) -> None:
    place = Place(tmp_path / "sweep", 0)

    def failing() -> None:
        raise ZeroDivisionError("a defect")

    assert place.attempt(failing, ["a=1"]).error == "ZeroDivisionError: a defect"  # type: ignore[arg-type]
    assert place.read() == Outcome(["a=1"], "ZeroDivisionError: a defect")
    assert "Traceback" in place.log.read_text()

    def interrupted() -> None:
        raise KeyboardInterrupt

    place.clear()
    with pytest.raises(KeyboardInterrupt):
        place.attempt(interrupted, [])  # type: ignore[arg-type]
    assert place.read() is None


# --- around the sweep ---------------------------------------------------------------------------------------


def test_the_overview_names_what_differs(tmp_path: Path) -> None:
    succeeded = []
    for i, rate in enumerate(("1e-5", "1e-4")):
        (tmp_path / rate).mkdir()
        values = {"model": "tiny", "dataset": "demo", "pattern": "4x1", "seed": 3, "metric": "f1",
                  "dense": {"f1": 0.5}, "sparse": {"f1": 0.25 + i / 4} if i else None,
                  "relative_drop": 0.0 if i else None}  # fmt: skip
        files.write_json(tmp_path / rate / "result.json", values)
        overrides = ["pattern=4x1", f"train.learning_rate={rate}", "seed=3"]
        succeeded.append(Outcome(overrides, folder=str(tmp_path / rate), score=0.5))
    assert callback.overview(succeeded) == [
        "tiny on demo, 4x1, seed 3, train.learning_rate=1e-5  dense F1 0.5000",
        "tiny on demo, 4x1, seed 3, train.learning_rate=1e-4  dense F1 0.5000  sparse 0.5000  +0.00%",
    ]
    assert callback.overview([]) == []
