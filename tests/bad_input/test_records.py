"""What a record says about the code, the circumstances and the certainty of a result."""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from results import columns
from runner.records import runs
from runner.reproduce import parse, prepared
from runner.system import circumstances, files, provenance
from runner.tracking import Tracking
from tests.conftest import FINISHED, cli_in, copy_run

COMMITTED = ("runner/system/provenance.py", "conf/model/tiny.yaml", "docs/guide.md")


def git(folder: Path, *arguments: str) -> str:
    """Git's output, whatever the user's own configuration is."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def place_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some files of the code, from which it seems to run."""
    for name in COMMITTED:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("a: 1\n")
    monkeypatch.setattr(provenance, "_PROJECT", project)
    monkeypatch.setattr(provenance, "_FILE", project / COMMITTED[0])
    return project


def commit(folder: Path) -> str:
    """Commit all files of a folder; the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed copy of the code, from which it seems to run; the repository may hold other projects."""
    folder = place_code(tmp_path / "all of ours" / "prune [distill]", monkeypatch)
    (folder.parent / "notes.txt").write_text("another project\n")
    commit(folder.parent)
    return folder


def is_dirty() -> bool:
    """Whether both records call the commit changed."""
    tag = provenance.provenance()["git.dirty"]
    assert provenance.code().endswith(", with changes") == (tag == "true")
    return tag == "true"


@pytest.mark.parametrize("added", [
    pytest.param("reviews.csv", marks=pytest.mark.bad_input(
        "A14", "a CSV beside the code", before="the commit is recorded as changed", after="the commit is clean")),
    *(pytest.param(name, marks=pytest.mark.bad_input(
        "A14", f"untracked {name}", before="the commit is recorded as changed", after="the commit is clean"))
      for name in ("outputs/run/model.safetensors", "my.yaml", "runner/notes.md", "runner/__pycache__/a.pyc")),
])  # fmt: skip
def test_files_next_to_the_code_change_no_commit(added: str, project: Path) -> None:
    (project / added).parent.mkdir(parents=True, exist_ok=True)
    (project / added).write_text("x\n")
    assert not is_dirty()
    (project.parent / "notes.txt").write_text("changed, but not of this project\n")
    assert not is_dirty()


@pytest.mark.parametrize("change", [
    pytest.param(lambda folder: (folder / "docs/guide.md").write_text("b"), marks=pytest.mark.bad_input(
        "A14", "a tracked file that was changed", before="changed", after="changed")),
    pytest.param(lambda folder: (folder / COMMITTED[1]).unlink(), marks=pytest.mark.bad_input(
        "A14", "a tracked file that was removed", before="changed", after="changed")),
    *(pytest.param(lambda folder, name=name: (folder / name).write_text("x"), marks=pytest.mark.bad_input(
        "A14", f"untracked {name}", before="changed", after="changed: it may change results"))
      for name in ("runner/system/new.py", "conf/model/mine.yaml", "runner/top.py")),
])  # fmt: skip
def test_code_that_changes_results_makes_a_commit_dirty(change: Callable[[Path], object], project: Path) -> None:
    assert not is_dirty()
    change(project)
    assert is_dirty()


@pytest.mark.bad_input("A14", "an untracked module that .gitignore hides", before="clean", after="changed")
def test_ignored_code_makes_a_commit_dirty(project: Path) -> None:
    (project / ".gitignore").write_text("local_*\n")
    commit(project.parent)
    (project / "runner" / "local_patch.py").write_text("x")
    assert is_dirty()


def test_staged_changes_make_a_commit_dirty(project: Path) -> None:
    (project / "runner" / "new.py").write_text("x")
    git(project, "add", "-A")
    assert is_dirty()


@pytest.mark.bad_input(
    "A14", "a copy installed inside another project's repository",
    before="that project's commit, unless the folder is called site-packages", after="no commit",
)  # fmt: skip
@pytest.mark.parametrize("place", ["venv/lib/python3.12/site-packages", "libraries", "vendor/dist-packages"])
def test_the_commit_of_another_project_is_not_recorded(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text("x")
    commit(tmp_path)
    place_code(tmp_path / place, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert provenance.code() == ""
    assert "mlflow.source.git.commit" not in provenance.provenance()


@pytest.mark.bad_input(
    "A14", "the working folder, or a hook's GIT_DIR, is of another repository", before="the commit of GIT_DIR",
    after="the commit of the code that runs",
)  # fmt: skip
def test_the_commit_is_that_of_the_code(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = git(project, "rev-parse", "HEAD")
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.csv").write_text("x")
    assert commit(other) != expected
    monkeypatch.chdir(other)
    assert provenance.code() == expected
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert provenance.code() == expected
    assert not is_dirty()


def test_no_commit_without_a_repository_or_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.code()
    monkeypatch.setenv("PATH", str(project))
    assert provenance.code() == ""
    monkeypatch.undo()
    place_code(project, monkeypatch)
    shutil.rmtree(project.parent / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent.parent))
    assert provenance.code() == ""
    assert "git.dirty" not in provenance.provenance()


# --- circumstances ------------------------------------------------------------------------------------------

TODAY = {"torch": "2.9", "hardware": "a CPU", "threads": "8"}
YESTERDAY = {**TODAY, "torch": "2.4", "threads": "4"}


@pytest.fixture
def under(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """`under(TODAY)`: this process has these circumstances."""

    def change(values: dict[str, str]) -> None:
        monkeypatch.setattr(circumstances, "circumstances", lambda: values)

    monkeypatch.setattr(provenance, "code", lambda: "abc")
    change(TODAY)
    return change


@pytest.mark.bad_input(
    "A13", "resumed under another torch and with other threads", before="no message, the record names the last",
    after="a warning; record and card name both",
)  # fmt: skip
def test_a_training_under_two_circumstances_names_both(
    under: Callable[[dict[str, str]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    under(YESTERDAY)
    circumstances.begin(tmp_path / "checkpoints", 0)
    assert circumstances.others("the pruning", circumstances.read(tmp_path / "checkpoints")) == []
    under(TODAY)
    assert caplog.text == ""
    circumstances.begin(tmp_path / "checkpoints", 30)
    assert "resuming from step 30 under other circumstances than before: torch 2.9 instead of 2.4, threads 8" in (
        caplog.text
    )
    lines = ["the pruning from step 0 to step 30: torch 2.4 instead of 2.9, threads 4 instead of 8"]
    assert circumstances.others("the pruning", circumstances.read(tmp_path / "checkpoints")) == lines
    circumstances.begin(tmp_path / "checkpoints", 60)  # again under these
    assert caplog.text.count("resuming") == 1
    assert circumstances.others("the pruning", circumstances.read(tmp_path / "checkpoints")) == lines


@pytest.mark.bad_input(
    "A13", "other hardware between two equal nodes", before="no message", after="its steps are named"
)
def test_a_detour_over_other_hardware_is_named(under: Callable[[dict[str, str]], None], tmp_path: Path) -> None:
    for step, hardware in ((0, "a CPU"), (30, "another CPU"), (60, "a CPU")):
        under({**TODAY, "hardware": hardware})
        circumstances.begin(tmp_path, step)
    spans = circumstances.read(tmp_path)
    assert circumstances.others("the pruning", spans) == [
        "the pruning from step 30 to step 60: hardware another CPU instead of a CPU"
    ]


def test_steps_that_are_computed_again_are_forgotten(under: Callable[[dict[str, str]], None], tmp_path: Path) -> None:
    circumstances.begin(tmp_path, 0)
    under(YESTERDAY)
    circumstances.begin(tmp_path, 30)
    under(TODAY)
    circumstances.begin(tmp_path, 20)  # checkpoint 30 was damaged
    assert circumstances.others("the pruning", circumstances.read(tmp_path)) == []
    under(YESTERDAY)
    circumstances.begin(tmp_path, 0)  # anew
    assert circumstances.read(tmp_path)[0]["under"]["threads"] == "4"
    assert len(circumstances.read(tmp_path)) == 1


@pytest.mark.bad_input("A13", "resumed by other code", before="no message", after="both commits are named")
def test_code_counts_within_a_training_only(
    under: Callable[[dict[str, str]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    circumstances.begin(tmp_path, 0)
    monkeypatch.setattr(provenance, "code", lambda: "abd")
    assert circumstances.others("the fine-tuning", circumstances.read(tmp_path)) == []
    circumstances.begin(tmp_path, 30)
    assert circumstances.others("the pruning", circumstances.read(tmp_path)) == [
        "the pruning from step 0 to step 30: code of the runner abc instead of abd"
    ]


def test_circumstances_that_are_not_known_claim_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    circumstances.begin(tmp_path, 30)  # a checkpoint of a version that noted none
    assert circumstances.others("the pruning", circumstances.read(tmp_path)) == []
    assert circumstances.others("the fine-tuning", circumstances.read(tmp_path / "nowhere")) == []
    assert caplog.text == ""


def pretend_other_threads(place: Path) -> None:
    """Rewrite the cache and the checkpoints as a process with seven threads leaves them."""
    for folder in (*place.glob("cache/dense/*/"), *place.glob("outputs/*/checkpoints")):
        (span,) = circumstances.read(folder)
        circumstances.write(folder, [{**span, "under": {**span["under"], "threads": "7"}}])
        if (folder / files.MANIFEST).is_file():
            files.extend(folder, circumstances.FILE, (folder / circumstances.FILE).read_text())
    (file,) = place.glob("cache/teacher/*.safetensors")
    with safe_open(file, framework="pt") as stored:
        about = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    under = {**json.loads(about["under"]), "threads": "7"}
    save_file(tensors, file, {**about, "under": json.dumps(under)})


@pytest.mark.bad_input(
    "A13", "resumed with other threads, after a cache with other threads", before="no message",
    after="log, result.json, MLflow, card and reproduce name the three stages",
)  # fmt: skip
def test_a_run_names_what_had_other_circumstances(finished_run: Path, tmp_path: Path) -> None:
    place = copy_run(finished_run, tmp_path / "place")
    (folder,) = place.glob("outputs/*-s0-*/")
    before = json.loads((folder / "result.json").read_text())
    assert before["made_by"]["others"] == []
    assert "other hardware" not in (folder / "model" / "README.md").read_text()
    (folder / "result.json").unlink()  # so the same command resumes from its last checkpoint
    pretend_other_threads(place)
    done = cli_in(place)("-m", "runner", "model=hub", f"model.path={finished_run / 'small-model'}", *FINISHED)
    assert done.returncode == 0, done.stderr
    lines = [
        "the fine-tuning: threads 7 instead of 1",
        "the teacher's logits: threads 7 instead of 1",
        "the pruning from step 0 to step 20: threads 7 instead of 1",
    ]  # fmt: skip
    after = json.loads((folder / "result.json").read_text())
    assert after["made_by"]["others"] == lines
    assert after["identity"] == before["identity"]
    card = (folder / "model" / "README.md").read_text()
    log = (folder / "run.log").read_text()
    assert "resuming from step 20 under other circumstances than before: threads 1 instead of 7" in log
    for line in lines:
        assert f"made under other circumstances: {line}" in log
        assert line in card
    with sqlite3.connect(place / "mlflow.db") as store:
        tags = store.execute("select value from tags where key = ?", (columns.OTHER_CIRCUMSTANCES,)).fetchall()
    assert tags == [("\n".join(lines),)]
    run = runs.find(str(folder), Tracking())
    circumstances_of = prepared(run, parse([str(folder)]), tmp_path / "again").circumstances
    assert [line for line in circumstances_of if line.startswith("not all of the run")] == [
        f"not all of the run had the circumstances that its record names: {line}" for line in lines
    ]
