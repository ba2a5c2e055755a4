"""Files are made once by several processes, and written completely or not at all; fingerprints never change."""

import hashlib
import json
import logging
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from runner.system import files
from runner.system.errors import UserError
from runner.system.fingerprint import SHORT, hash_files, hash_json, hash_text


def read(place: Path) -> str | None:
    return place.read_text(encoding="utf-8") if place.is_file() else None


def test_a_value_is_made_once_and_then_read(tmp_path: Path) -> None:
    place, made = tmp_path / "cache" / "key.json", []

    def make(path: Path) -> str:
        made.append(path)
        files.atomic_write(path, "ä")
        return "ä"

    assert [files.make_once(place, read, make) for _ in range(3)] == ["ä"] * 3
    assert made == [place]
    assert sorted(path.name for path in place.parent.iterdir()) == ["key.json", "key.lock"]


def test_nothing_stays_of_a_value_that_cannot_be_made(tmp_path: Path) -> None:
    place = tmp_path / "key.json"
    with pytest.raises(ZeroDivisionError):
        files.make_once(place, read, lambda path: str(1 / 0))
    assert not place.exists()
    assert files.make_once(place, read, lambda path: "made after all") == "made after all"  # the lock is free


def test_another_process_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "key.safetensors"
    caplog.set_level(logging.INFO)
    lock = FileLock(files.lock_path(place))
    values: list[str] = []
    thread = threading.Thread(
        target=lambda: values.append(files.make_once(place, read, lambda path: "made again", "runs the same teacher"))
    )
    with lock:
        assert files.lock_is_held(FileLock(lock.lock_file))
        thread.start()
        while "waiting for another process that runs the same teacher" not in caplog.text:
            thread.join(0.01)
        files.atomic_write(place, "made by the other")
    thread.join()
    assert values == ["made by the other"]
    assert not files.lock_is_held(lock)


def test_a_disk_that_refuses_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        files.make_once(tmp_path / "file" / "key.json", read, str)


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "file"
    for contents, data in (("ä\n", "ä\n".encode()), (b"\0\r\n", b"\0\r\n"), (lambda path: path.touch(), b"")):
        files.atomic_write(place, contents)
        assert place.read_bytes() == data

    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(place, interrupted)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"")]


def test_fingerprints_never_change(tmp_path: Path) -> None:
    assert hash_text("ä") == hashlib.sha256("ä".encode()).hexdigest()
    assert hash_text("", SHORT) == "e3b0c44298fc1c14"
    values = {"b": [1, 0.1, None], "a": "ä"}
    assert hash_json(values, SHORT) == hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
    assert hash_json(values, sort_keys=True) == hash_json(dict(sorted(values.items()))) != hash_json(values)
    assert hash_json([Path("p")], default=str) == hash_json(["p"])
    with pytest.raises(TypeError):
        hash_json([Path("p")])
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    expected = b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in (("a", b"1"), ("b", b"2")))
    digests: dict[Path, bytes] = {}
    assert hash_files([tmp_path / "b", tmp_path / "a", tmp_path / "b"], digests) == hashlib.sha256(expected).hexdigest()
    (tmp_path / "a").write_bytes(b"not read again")
    assert hash_files(digests, digests) == hashlib.sha256(expected).hexdigest()
