"""An MLflow database for each module of tests, with an experiment for each test."""

from pathlib import Path

import pytest

from runner.tracking import Tracking


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def where(database: str, tmp_path: Path) -> Tracking:
    return Tracking(uri=database, experiment=tmp_path.name)
