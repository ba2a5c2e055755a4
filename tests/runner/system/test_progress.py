"""Progress: a line each 10 % where nobody watches, a bar of at most 80 columns on a terminal; results on stdout."""

import re
from pathlib import Path

import pytest

from runner.system import disk, progress
from runner.system.disk import DiskNeed
from runner.system.progress import Progress
from tests.conftest import Cli
from tests.terminal import on_terminal

SMALL = (
    "model=tiny", "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=60", "schedule=short",
    "train.max_steps=20", "train.per_device_train_batch_size=8", "finetune.max_steps=8",
    "finetune.per_device_train_batch_size=8",
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets, and no terminal."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    return now


def lines(caplog: pytest.LogCaptureFixture, clock: list[float], steps: int, seconds: float, done: int = 0) -> list[str]:
    """The lines of a stage whose steps take so many seconds each."""
    caplog.set_level("INFO", "runner.system.progress")
    with Progress("Pruning", steps, done) as stage:
        for step in range(done, steps):
            stage.numbers(loss=4.5678, sparsity=step / steps)
            clock[0] += seconds
            stage.update()
    return caplog.messages


def test_a_line_each_tenth(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    messages = lines(caplog, clock, steps=200, seconds=6)
    assert [line.split(",")[0] for line in messages] == [f"Pruning: {tenth} %" for tenth in range(10, 101, 10)]
    assert messages[0] == "Pruning: 10 %, loss 4.57, sparsity 0.095, 18:00 left"
    assert messages[-1] == "Pruning: 100 %, loss 4.57, sparsity 0.995"


def test_without_the_time_that_is_left(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    caplog.set_level("INFO", "runner.system.progress")
    with Progress("Looking at the runs", 4, remaining=False) as stage:
        for _ in range(4):
            clock[0] += 600
            stage.update()
    assert caplog.messages == [f"Looking at the runs: {tenths} %" for tenths in (20, 50, 70, 100)]


def test_a_stage_of_days_shows_hours(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    assert lines(caplog, clock, steps=100, seconds=3600)[0].endswith(", 90:00:00 left")


def test_a_short_stage_has_few_lines_or_none(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    assert lines(caplog, clock, steps=100, seconds=0.09) == []
    messages = lines(caplog, clock, steps=100, seconds=0.25)  # 10 % take 2.5 s
    assert [line.split(",")[0] for line in messages] == ["Pruning: 60 %"]


def test_what_an_interrupted_process_did_is_counted(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    messages = lines(caplog, clock, steps=100, seconds=6, done=75)
    assert [line.split(",")[0] for line in messages] == ["Pruning: 80 %", "Pruning: 90 %", "Pruning: 100 %"]
    assert messages[0].endswith(", 2:00 left")  # 20 steps of 6 s: the 75 took this process no time


def test_disk_space_is_one_line() -> None:
    needs = [DiskNeed(Path("outputs/a/model"), "the model", 4_000_000),
             DiskNeed(Path("cache/dense/b"), "the dense model", 5_000_000),
             DiskNeed(Path("outputs/a/checkpoints"), "checkpoints", 30_000_000)]  # fmt: skip
    assert re.fullmatch(
        r"at most 34 MB for the run, 5 MB in cache \(\d+.* free\)", disk.in_one_line(needs, Path("cache"))
    )
    assert re.fullmatch(r"at most 4 MB for the run \(\d+.* free\)", disk.in_one_line(needs[:1], Path("cache")))


def test_a_line_that_jobs_share_is_shown_once(cli: Cli) -> None:
    done = cli("-c", "import logging\n"
               "from runner.system.process import ONCE, set_up_process\n"
               "set_up_process()\n"
               "log = logging.getLogger('runner.x')\n"
               "for text in 'aab': log.info('%s shared', text, extra=ONCE)\n"
               "for text in 'cc': log.info(text)")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["a shared", "b shared", "c", "c"]


def test_a_sweep_in_a_file_has_results_on_stdout_and_no_bars(cli: Cli, tmp_path: Path) -> None:
    done = cli("-m", "runner", "-m", *SMALL, "pattern=4x1,2:4")
    assert done.returncode == 0, done.stderr
    assert [re.sub(r"[+-]?\d+\.\d+%?", "#", line) for line in done.stdout.splitlines()] == [
        "tiny on demo, 4x1, seed 0  dense F1 #  sparse #  #",
        "tiny on demo, 2:4, seed 0  dense F1 #  sparse #  #",
    ]
    assert not re.search(r"[█|\r]|it/s|\d %", done.stderr.replace("% of", "").replace("tokens are", ""))
    assert done.stderr.count("64 training and 60 evaluation examples") == 1  # for both
    assert done.stderr.count("\ndisk: at most ") == 2
    assert len(done.stderr) < 2500
    for log in tmp_path.glob("outputs/*/run.log"):
        assert "64 training and 60 evaluation examples" in log.read_text()


STAGE = """
from runner.system.progress import Progress
import sys
with Progress("Pruning", 3) as stage:
    for loss in (4.5, 0.25, 1e-9):
        stage.numbers(loss=loss)
        stage.update()
print("after", file=sys.stderr)
"""


@pytest.mark.parametrize(("columns", "width"), [(0, 79), (60, 59), (80, 79), (300, 79)])
def test_the_width_of_a_bar(tmp_path: Path, columns: int, width: int) -> None:
    status, _, shown = on_terminal(("-c", STAGE), tmp_path, columns)
    assert status == 0
    last, after = shown.split("\r\n")[:2]
    assert after == "after"
    (bar,) = [last.split("\r")[-1]]
    assert len(bar) == width
    assert re.fullmatch(r"Pruning 100 %\|█+\| 3/3, 00:00 left, loss 1e-09", bar)


@pytest.mark.slow
def test_on_a_terminal_bars_fit_80_columns(tmp_path: Path) -> None:
    status, out, shown = on_terminal(("-m", "runner", *SMALL, "pattern=4x1"), tmp_path, 200)
    assert status == 0, shown
    assert out.startswith("tiny on demo, 4x1, seed 0\n  dense F1 ")
    bars = [line for line in re.split(r"[\r\n]+|\x1b\[A", shown) if "|" in line]
    assert {bar.split(" ")[0] for bar in bars} >= {"Tokenising", "Fine-tuning", "Pruning", "Scoring"}
    assert max(map(len, bars)) <= 80
    assert any(re.search(r"Pruning .*100 %\|█+\| 20/20, 00:00 left, loss \d", bar) for bar in bars), bars
    assert "it/s" not in shown
    assert re.search("█\r?\n| left[^|\r\n]*\r?\n", shown)  # what follows a bar begins a line
