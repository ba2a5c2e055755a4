"""How commands find a finished run, or a saved model."""

import json
import shutil
from pathlib import Path

import pytest

from runner.records import runs
from runner.system.errors import UserError
from runner.tracking import Tracking


def test_a_model_is_found_by_its_folder_its_run_and_the_id_of_its_run(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (file,) = (finished_run / "outputs").glob("*/result.json")
    run, where = file.parent, Tracking(uri=f"sqlite:///{finished_run / 'mlflow.db'}")
    assert runs.find_model(str(run), where) == (run, run / "model")
    assert runs.find_model(str(run / "model"), where) == (run / "model", run / "model")
    monkeypatch.chdir(finished_run)  # to which the folder in the store is relative
    folder, model = runs.find_model(json.loads(file.read_text())["mlflow_run"], where)
    assert (folder.resolve(), model.resolve()) == (run.resolve(), (run / "model").resolve())
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(run / "model", tmp_path / "mine")
    assert runs.find_model("~/mine", where) == (tmp_path / "mine", tmp_path / "mine")


@pytest.mark.parametrize(("given", "words"), [
    ("nowhere", "nowhere: there is no config.json in this folder, nor in its folder model"),
    ("empty", "empty: there is no config.json in this folder, nor in its folder model"),
    ("0" * 32, "there is no such database"),
])  # fmt: skip
def test_a_model_that_is_not_there_is_named(
    given: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=words):
        runs.find_model(given, Tracking())
