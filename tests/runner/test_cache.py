"""The entries of a cache are listed and removed, but not those that a run is making."""

from pathlib import Path

import pytest
from filelock import FileLock

from runner import cache
from runner.system.errors import UserError
from runner.system.process import exit_status


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


def test_only_the_named_kinds_are_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.main(["clean", "dense", "features", "--cache-dir", str(folder)])
    assert "5 kB freed" in capsys.readouterr().out
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert left == {"teacher/k.safetensors", "other/thing", "dense/abc.lock", "teacher/k.lock"}
    cache.main(["clean", "all", "--cache-dir", str(folder)])
    assert not (folder / "teacher" / "k.safetensors").exists()
    assert (folder / "other" / "thing").exists()  # not ours


def test_an_entry_that_a_run_is_making_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(folder / "dense" / "abc.lock"):
        cache.main(["clean", "all", "--cache-dir", str(folder)])
    out = capsys.readouterr().out
    assert out.count("is being made by a run, and was left") == 2  # the model and the checkpoints next to it
    assert (folder / "dense" / "abc" / "model.safetensors").exists()
    assert (folder / "dense" / "abc.work" / "checkpoint-1" / "x").exists()
    assert not (folder / "teacher" / "k.safetensors").exists()


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        cache.main(["list", "--cache-dir", str(tmp_path / "nowhere")])
    assert exit_status(lambda: cache.main(["list", "--cache-dir", str(tmp_path / "nowhere")])) == 1
    assert "error:" in capsys.readouterr().err


def test_unfinished_files_are_no_entries_and_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = [
        "dense/abc.tmp-71",
        "dense/def.tmp-72",
        "teacher/k.safetensors.tmp-7",
        "scores/s.tmp",
        "scores/s.json.tmp-9",
    ]
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        if name.startswith("dense"):
            (folder / name).mkdir()
            (folder / name / "model.safetensors").write_bytes(b"x" * 4000)
        else:
            (folder / name).write_bytes(b"x" * 1000)
    cache.main(["list", "--cache-dir", str(folder)])
    out = capsys.readouterr().out
    assert "5 kB  2 of fine-tuned dense models" in out
    assert "and 2 half written, 8 kB: `clean` removes what no run is making" in out
    assert "0 of scores" in out
    with FileLock(folder / "dense" / "abc.lock"):
        cache.main(["clean", "--cache-dir", str(folder)])
    out = capsys.readouterr().out
    assert "7 kB freed" in out
    assert "abc.tmp-71 is being made by a run" in out
    assert [(folder / name).exists() for name in left] == [True, False, False, False, False]
    assert (folder / "dense" / "abc" / "model.safetensors").exists()
    cache.main(["clean", "dense", "--cache-dir", str(folder)])
    assert not (folder / left[0]).exists()


def test_odd_entries_are_listed_and_removed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "other"
    (folder / "scores").write_text("a file where a folder belongs")
    (folder / "dense" / "nowhere").symlink_to(folder / "gone")
    (folder / "dense" / "elsewhere").symlink_to(outside)
    (folder / "dense" / "empty").mkdir()
    (folder / "teacher" / "folder.safetensors").mkdir()
    cache.main(["list", "--cache-dir", str(folder)])
    assert "5 of fine-tuned dense models" in capsys.readouterr().out
    cache.main(["clean", "all", "--cache-dir", str(folder)])
    assert [p.name for p in (folder / "dense").iterdir()] == ["abc.lock"]
    assert [p.name for p in (folder / "teacher").iterdir()] == ["k.lock"]
    assert (outside / "thing").exists()


def test_an_unknown_kind_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cache.main(["clean", "densee", "--cache-dir", str(folder)])
    assert "unknown kind 'densee': dense, teacher" in capsys.readouterr().err


def test_nothing_is_removed_before_all_that_is_asked_for_is_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "clean_checkpoints", lambda *_: pytest.fail("checkpoints were removed"))
    outputs = ["--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        cache.main(["clean", "checkpoints", "densee", "--cache-dir", str(folder), *outputs])
    with pytest.raises(UserError, match=r"--cache-dir .*there is no such folder; name the cache_dir of your runs"):
        cache.main(["clean", "checkpoints", "dense", "--cache-dir", str(tmp_path / "gone"), *outputs])
