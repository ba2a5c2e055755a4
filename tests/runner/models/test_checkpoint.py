"""A checkpoint's fingerprints are hashes of its files, which are read once."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runner import models
from runner.models import Checkpoint, Model


def combined(folder: Path, names: list[str]) -> str:
    """The published formula: names and digests of the files in the order of their paths."""
    return hashlib.sha256(
        b"".join(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest() for name in sorted(names))
    ).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    embedded = models.find("embedded:tiny", "model.path", Model("embedded:tiny"))
    return Path(shutil.copytree(embedded.path, tmp_path / "model"))


def checkpoint_in(folder: Path) -> Checkpoint:
    return models.find(str(folder), "model.path", Model(str(folder)))


def test_fingerprints_are_those_of_the_files(folder: Path) -> None:
    (folder / "README.md").write_text("no part of the model")
    names = [file.name for file in folder.iterdir() if file.name != "README.md"]
    weights = [name for name in names if name.endswith(".safetensors")]
    checkpoint = checkpoint_in(folder)
    assert checkpoint.weights == combined(folder, weights)
    assert checkpoint.fingerprint == combined(folder, names) != checkpoint.weights


def test_files_are_read_once_by_a_checkpoint_and_again_by_a_new_one(folder: Path) -> None:
    checkpoint = checkpoint_in(folder)
    fingerprint, weights = checkpoint.fingerprint, checkpoint.weights
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"rewritten")
    assert (checkpoint.fingerprint, checkpoint.weights) == (fingerprint, weights)
    for new in (checkpoint_in(folder), replace(checkpoint)):
        assert new.fingerprint != fingerprint
        assert new.weights != weights
    assert replace(checkpoint) == checkpoint  # what was read is no part of it
