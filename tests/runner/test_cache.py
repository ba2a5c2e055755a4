"""What is kept is listed and freed, and never under the hands of a run."""

from pathlib import Path

import pytest
from filelock import FileLock

from runner import cache
from runner.edge import guarded
from runner.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = {"dense/abc/model.safetensors": 5000, "dense/abc/config.json": 10, "dense/abc.work/checkpoint-1/x": 7,
            "teacher/k.safetensors": 2_000_000, "features/span-1.arrow": 300, "other/thing": 9}  # fmt: skip
    for name, count in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * count)
    for lock in ("dense/abc.lock", "teacher/k.lock"):
        (tmp_path / lock).touch()
    return tmp_path


def test_all_kinds_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.main(["list", "--cache-dir", str(folder)])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == set(cache.KINDS)
    assert lines["dense"].startswith("5 kB  2 of fine-tuned dense models, the newest of 20")
    assert lines["teacher"].startswith("2 MB  1 of ")
    assert lines["scores"] == "0 B  0 of scores of dense models"


def test_only_what_is_named_goes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.main(["clean", "dense", "features", "--cache-dir", str(folder)])
    assert "5 kB freed" in capsys.readouterr().out
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert left == {"teacher/k.safetensors", "other/thing", "dense/abc.lock", "teacher/k.lock"}
    cache.main(["clean", "all", "--cache-dir", str(folder)])
    assert not (folder / "teacher" / "k.safetensors").exists()
    assert (folder / "other" / "thing").exists()  # not ours


def test_what_a_run_is_making_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(folder / "dense" / "abc.lock"):
        cache.main(["clean", "all", "--cache-dir", str(folder)])
    out = capsys.readouterr().out
    assert out.count("is being made by a run, and was left") == 2  # the model and the checkpoints beside it
    assert (folder / "dense" / "abc" / "model.safetensors").exists()
    assert (folder / "dense" / "abc.work" / "checkpoint-1" / "x").exists()
    assert not (folder / "teacher" / "k.safetensors").exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        cache.main(["list", "--cache-dir", str(tmp_path / "nowhere")])
    assert guarded(lambda: cache.main(["list", "--cache-dir", str(tmp_path / "nowhere")])) == 1
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (58e6, "58 MB"), (4e9, "4.0 GB")]
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert cache.size(int(count)) == text
