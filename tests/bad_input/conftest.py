"""Fixtures of the tests of bad input: a saved model, and a copy of it to damage."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import save_small_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, not to be changed."""
    return save_small_model(tmp_path_factory.mktemp("saved") / "m")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved`."""
    return Path(shutil.copytree(saved, tmp_path / "m"))
