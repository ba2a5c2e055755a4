"""`python -m runner.runs` lists runs by state; `runner.cache clean checkpoints` frees those of finished ones."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock

from runner import cache, runs
from runner.system.errors import UserError
from tests.conftest import FINISHED, Cli, copy_run


@pytest.fixture
def outputs(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run, and copies of it that did not end well; each an hour older than the one before."""
    folder = copy_run(finished_run, tmp_path) / "outputs"
    (finished,) = (log.parent for log in folder.glob("*/run.log"))
    finished.rename(folder / "a")
    for number, name in enumerate(("b", "c", "d"), 1):
        shutil.copytree(folder / "a", folder / name)
        (folder / name / "result.json").unlink()
        written = time.time() - 3600 * number
        os.utime(folder / name / "run.log", (written, written))
    runs.note_failure(folder / "c", UserError("the disk is full"))
    return folder


def test_runs_are_listed_by_their_state(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(outputs / "d" / ".lock"):
        runs.main(["--output-dir", str(outputs), "--json"])
        listed = {Path(entry["folder"]).name: entry for entry in json.loads(capsys.readouterr().out)}
        runs.main(["--output-dir", str(outputs)])
    lines = capsys.readouterr().out.splitlines()
    assert [*listed] == ["d", "c", "b", "a"]  # the oldest first
    states = {name: entry["state"] for name, entry in listed.items()}
    assert states == {"a": "finished", "b": "interrupted", "c": "failed", "d": "running"}
    result = json.loads((outputs / "a" / "result.json").read_text())
    assert (listed["a"]["metric"], listed["a"]["sparse"]) == (result["metric"], result["sparse"][result["metric"]])
    assert listed["b"]["sparse"] is None
    assert listed["c"]["error"] == "the disk is full"
    assert listed["a"]["bytes"] >= sum(file.stat().st_size for file in (outputs / "a").rglob("*") if file.is_file())
    assert lines[0].split() == ["STATE", "SCORE", "AGE", "SIZE", "FOLDER"]
    assert lines[1].startswith("running      -          3 h  ")
    assert lines[3] == "  the disk is full"
    assert f"F1 {result['sparse']['f1']:.4f}" in lines[5]
    assert lines[6].startswith("1 finished, 1 running, 1 interrupted, 1 failed; ")
    runs.main(["--output-dir", str(outputs), "--state", "failed", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_checkpoints_of_finished_runs_alone_are_removed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (outputs / "a" / "checkpoints").is_dir()
    asked = ["clean", "checkpoints", "--output-dir", str(outputs)]
    cache.main([*asked, "--dry-run"])
    shown = capsys.readouterr().out
    assert "to free in" in shown
    assert "checkpoints of 1 finished runs" in shown
    assert (outputs / "a" / "checkpoints").is_dir()
    cache.main(asked)
    assert capsys.readouterr().out == shown.replace("to free", "freed")
    assert not (outputs / "a" / "checkpoints").exists()
    assert all((outputs / name / "checkpoints").is_dir() for name in "bcd")
    assert (outputs / "a" / "model" / "model.safetensors").is_file()
    cache.main(asked)
    assert capsys.readouterr().out.startswith("0 B freed")


def test_a_dry_run_of_the_cache_removes_nothing(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = outputs.parent / "cache"
    before = sorted(folder.rglob("*"))
    cache.main(["clean", "all", "--dry-run", "--cache-dir", str(folder)])
    assert "to free in" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for main, arguments in ((runs.main, []), (cache.main, ["clean", "checkpoints"])):
        with pytest.raises(UserError, match="nowhere: there is no such folder; name the output_dir"):
            main([*arguments, "--output-dir", str(tmp_path / "nowhere")])


def test_a_run_that_fails_says_why_and_its_next_start_forgets_it(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    asked = ("-m", "runner", "model=hub", f"model.path={small_model}", *FINISHED)
    done = cli(*asked, "train.learning_rate=1e30")
    assert done.returncode == 1
    shown = cli("-m", "runner.runs")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[1].startswith("failed ")
    assert "the loss is not finite" in shown.stdout.splitlines()[2]
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    assert "1 finished, 0 running, 0 interrupted, 1 failed" in cli("-m", "runner", "runs").stdout
