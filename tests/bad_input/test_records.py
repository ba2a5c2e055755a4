"""What a record says about the code, the circumstances and the certainty of a result."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.system import provenance

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
