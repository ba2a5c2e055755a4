"""The curve of a run whose MLflow store has changed, and stores that cannot be used."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from results import columns, sqlite
from results.__main__ import main as results
from results.runs import ForeignServer, artifact
from runner import tracking
from runner.system.errors import UserError
from runner.tracking import PARENT_VARIABLE, STEPS, Tracking
from runner.tracking.check import refuse_unusable
from runner.tracking.curve import Curve
from runner.tracking.outbox import NAME, Header, Operation, Outbox
from tests.conftest import Refused


def row(number: str, given: str, before: str, after: str) -> pytest.MarkDecorator:
    return pytest.mark.bad_input(number, given, before=before, after=after)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow, to copy: its migrations take seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.connect(Tracking(f"sqlite:///{file}", "other"))
    return file


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", PARENT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


# --- the curve ----------------------------------------------------------------------------------------------


class Runs:
    """A run that is killed and resumed, in stores that are copies of `database`."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.database = folder / "run", database
        self.folder.mkdir()
        self.killed: list[Any] = []

    def store(self, name: str = "a", experiment: str = "e") -> Tracking:
        file = self.folder.parent / f"{name}.db"
        if not file.exists():
            shutil.copy(self.database, file)
        return Tracking(f"sqlite:///{file}", experiment, patience=0)

    def attempt(self, where: Tracking, checkpoint: int, last: int, killed: bool = False) -> str | None:
        """Train from a checkpoint to a step. A killed process leaves its MLflow run RUNNING, its buffer unwritten."""
        tags = {columns.IDENTITY: "x", columns.FOLDER: str(self.folder)}
        context = tracking.start(where, "name", tags, resumes=True)
        tracker = context.__enter__()
        tracker.params({"p": 1})
        logger = tracker.logger("train")
        logger.begin(checkpoint)
        for step in range(checkpoint + 1, last + 1):
            if step == last - 1:
                logger.flush()
            logger.log(step, {"loss": step / 2})
        if killed:
            self.killed.append((context, tracker))
        else:
            context.__exit__(None, None, None)
        return tracker.run_id

    def of(self, name: str = "a") -> dict[str, tuple[str, list[int]]]:
        """Run id -> status and steps, of a store."""
        with closing(sqlite3.connect(self.folder.parent / f"{name}.db")) as store:
            query = "select step from metrics where run_uuid = ? and value = step / 2.0 order by step"
            return {run: (status, [step for (step,) in store.execute(query, (run,))])
                    for run, status in store.execute("select run_uuid, status from runs")}  # fmt: skip

    def tags(self, run: str | None, name: str = "a") -> dict[str, str]:
        with closing(sqlite3.connect(self.folder.parent / f"{name}.db")) as store:
            return dict(store.execute("select key, value from tags where run_uuid = ?", (run,)))


@pytest.fixture
def runs(tmp_path: Path, database: Path) -> Iterator[Runs]:
    made = Runs(tmp_path, database)
    yield made
    for context, tracker in made.killed:  # else Python would end the runs, later
        tracker.end = lambda *_: None
        context.__exit__(None, None, None)


ALL = list(range(1, 31))
LOST = "21 of 30 points of the curve were lost, status FINISHED"


@row("A12", "MLflow's store moved between a kill and the resumption", LOST, "the new store has all points")
def test_the_curve_is_whole_in_a_new_store(runs: Runs) -> None:
    first = runs.attempt(runs.store("a"), 0, 25, killed=True)
    second = runs.attempt(runs.store("b"), 20, 30)
    assert runs.of("b") == {second: ("FINISHED", ALL)}
    assert runs.tags(second, "b")[columns.CONTINUES] == f"{first} in sqlite:///{runs.folder.parent}/a.db"
    assert runs.of("a") == {first: ("RUNNING", list(range(1, 24)))}  # not touched


@row("A12", "tracking.experiment changed between a kill and the resumption", LOST,
     "the new run has all points; the other is closed and names it")  # fmt: skip
def test_the_curve_is_whole_in_another_experiment(runs: Runs) -> None:
    first = runs.attempt(runs.store("a"), 0, 25, killed=True)
    second = runs.attempt(runs.store("a", "other"), 20, 30)
    assert runs.of() == {first: ("KILLED", list(range(1, 24))), second: ("FINISHED", ALL)}
    assert runs.tags(first)[columns.CONTINUED_BY] == second
    assert runs.tags(second)[columns.CONTINUES] == first


@row("A12", "the run was deleted in MLflow between a kill and the resumption", LOST, "the new run has all points")
def test_the_curve_is_whole_after_a_deletion(runs: Runs) -> None:
    where = runs.store()
    first = runs.attempt(where, 0, 25, killed=True)
    assert first is not None
    tracking.connect(where)[0].delete_run(first)
    second = runs.attempt(where, 20, 30)
    assert runs.of()[str(second)] == ("FINISHED", ALL)


@row("A12", "back in the first store after a part in another", LOST, "the first run has all points, each once")
def test_the_curve_is_whole_after_the_way_back(runs: Runs) -> None:
    first = runs.attempt(runs.store("a"), 0, 12, killed=True)
    runs.attempt(runs.store("a", "other"), 10, 22, killed=True)
    third = runs.attempt(runs.store("a"), 20, 30)
    assert third == first
    assert runs.of()[str(first)] == ("FINISHED", ALL)
    assert columns.CONTINUED_BY not in runs.tags(first)


@row("A12", "a kill and the resumption in the same store", "whole", "whole, each point once")
def test_the_curve_has_no_doubles(runs: Runs) -> None:
    first = runs.attempt(runs.store(), 0, 25, killed=True)
    assert runs.attempt(runs.store(), 20, 30) == first
    assert runs.of() == {first: ("FINISHED", ALL)}


@row("A12", "an outbox of a run in a store that has moved", "a traceback", "the new store has all points")
def test_the_curve_is_whole_with_an_outbox_for_another_store(runs: Runs) -> None:
    first = runs.attempt(runs.store("a"), 0, 25, killed=True)
    waiting = Outbox.create(runs.folder / NAME, Header("http://gone", "e", "n", {}, first, 1))
    waiting.add(Operation("metrics", [["train/loss", 12.0, 5, 24]]))
    second = runs.attempt(runs.store("b"), 20, 30)
    assert runs.of("b") == {second: ("FINISHED", ALL)}
    assert not waiting.file.exists()


@row("A12", "a kill in the middle of a line, and a checkpoint before the last points", "-",
     "what is torn or past the checkpoint is removed")  # fmt: skip
def test_the_file_agrees_with_the_checkpoint(tmp_path: Path) -> None:
    curve = Curve(tmp_path)
    curve.log_in("store", "e", "run")
    for step in (1, 2, 3):
        curve.add([["train/loss", 0.5, 7, step], ["train/rate", float("nan"), 7, step]])
    curve.add([["finetune/loss", 1.0, 7, 9]])
    with curve.file.open("a") as torn:
        torn.write('[["train/loss", 0.')
    again = Curve(tmp_path)
    assert again.place == {"store": "store", "experiment": "e", "run": "run"}
    assert [entry[3] for entry in again.resumed("train", 2) if entry[0] == "train/loss"] == [1, 2]
    again.add([["train/loss", 0.25, 8, 3]])
    assert again.rest() == [["finetune/loss", 1.0, 7, 9]]
    last = Curve(tmp_path)
    assert [entry[:2] for entry in last.resumed("train", 3) if entry[3] == 3] == [["train/loss", 0.25]]
    assert last.place == again.place
    assert [file.name for file in tmp_path.iterdir()] == [STEPS]


# --- stores that cannot be used -----------------------------------------------------------------------------

REFUSED = "one sentence, before anything is loaded, in dry run too"


def uri(given: str, before: str, *words: str) -> Any:
    return pytest.param(
        given, words, id=given.replace("/", "_"), marks=row("C1", f"tracking.uri={given}", before, REFUSED)
    )


LATE = "an error after data and model were prepared, or a traceback"
URIS = [
    uri("htp://host:5000", LATE, "no store of the kind 'htp'"),
    uri("localhost:5000", LATE, "which kind of store"),
    uri("http://", LATE, "no host"),
    uri("http://host:99999", LATE, "Port out of range"),
    uri("http://ho st", LATE, "no host"),
    uri("sqlite://mlflow.db", LATE, "no database file"),
    uri("sqlite:mlflow.db", LATE, "which kind of store"),
    uri("sqlite:///", LATE, "no database file"),
    uri("mlflow.db", LATE, "plain folders"),
    uri("file:///tmp/mlruns", LATE, "plain folders"),
]


@pytest.mark.parametrize(("given", "words"), URIS)
def test_a_uri_of_no_usable_form(given: str, words: tuple[str, ...], refused: Refused) -> None:
    told = refused(
        "model=tiny", "dataset=demo", f"tracking.uri='{given}'", "dry_run=true" if "h" in words[0] else "seed=1"
    )
    for word in (f"tracking.uri={given}", *words, "sqlite:///mlflow.db"):
        assert word in told


@row("C1", "a tracking server that is dead when a run begins", "refused after a minute, when all was prepared", REFUSED)
@pytest.mark.parametrize("dry", ["dry_run=true", "dry_run=false"])
def test_a_server_that_is_dead_at_the_start(dry: str, refused: Refused) -> None:
    told = refused("model=tiny", "dataset=demo", "tracking.uri=http://127.0.0.1:9", "tracking.patience=0", dry)
    for word in ("tracking.uri=http://127.0.0.1:9", "does not answer", "nothing listens", "start the server"):
        assert word in told
    assert "examples" not in told  # nothing was prepared


def test_a_run_that_was_begun_may_wait_for_its_server() -> None:
    tracking.check(Tracking("http://127.0.0.1:9", patience=0), waits=True)
    with pytest.raises(UserError, match="does not answer"):
        tracking.check(Tracking("http://127.0.0.1:9", patience=0), waits=False)


def damaged(name: str, file: Path, database: Path) -> None:
    """Make a file that is no usable database of MLflow."""
    if name == "text":
        file.write_text("no database at all\n" * 100)
    elif name == "empty":
        file.touch()
    elif name == "truncated":
        file.write_bytes(database.read_bytes()[:20_000])
    elif name == "folder":
        file.mkdir()
    else:
        shutil.copy(database, file)
        with closing(sqlite3.connect(file)) as store, store:
            version = {"newer": "zzz", "older": "451aebb31d03"}.get(name)
            drop, change = "drop table experiments", f"update alembic_version set version_num = '{version}'"
            store.execute(drop if version is None else change)


FAULTS = {
    "text": ("a database file that is text", "not a database"),
    "empty": ("an empty database file", "no MLflow database"),
    "truncated": ("a truncated database", "cannot be read"),
    "folder": ("a folder in the place of the database", "is a folder"),
    "foreign": ("a database of something else", "no MLflow database"),
    "newer": ("a database of a newer MLflow", "another version of MLflow (zzz"),
    "older": ("a database of an older MLflow", "another version of MLflow (451aebb31d03"),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=row("C1", given, "a traceback, or tables made in it", f"{REFUSED}; it is left as it was"))
    for name, (given, _) in FAULTS.items()
])  # fmt: skip
def test_a_database_that_cannot_be_used(name: str, database: Path, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "given.db"
    damaged(name, file, database)
    before = file.read_bytes() if file.is_file() else None
    told = refused("model=tiny", "dataset=demo", f"tracking.uri=sqlite:///{file}", "dry_run=true")
    for word in (f"tracking.uri=sqlite:///{file}", FAULTS[name][1], "name another file"):
        assert word in told
    assert (file.read_bytes() if file.is_file() else None) == before
    assert results(["--tracking-uri", f"sqlite:///{file}"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.db", "work"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
@row("C1", "a read-only database", LATE, REFUSED)
def test_a_read_only_database(database: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(database, tmp_path))
    file.chmod(0o400)
    with pytest.raises(UserError, match="is read-only"):
        refuse_unusable(Tracking(f"sqlite:///{file}"))


@row("C1", "a file where the folder of the database should be", LATE, REFUSED)
def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"tracking\.uri=.*file is a file, not a folder; name another file"):
        refuse_unusable(Tracking(f"sqlite:///{tmp_path}/file/mlflow.db"))


@pytest.mark.parametrize("name", [
    pytest.param("que?ry", marks=row("C1", "a working folder with ? in its name",
                                     "a stray file beside it, then an error", "logged and read there")),
    pytest.param("per%cent", marks=row("C1", "% in it", "unable to open database file", "logged and read there")),
    pytest.param("a%20b#c's \"ü", marks=row("C1", "%20, #, quotes, a blank and an umlaut in it",
                                            "unable to open database file", "logged and read there")),
])  # fmt: skip
def test_names_of_folders(
    name: str, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / name
    work.mkdir()
    monkeypatch.chdir(work)
    if "?" not in name:  # else it is made there
        shutil.copy(database, "mlflow.db")
    with tracking.start(Tracking(patience=0), "n", {}) as tracker:
        tracker.text("text", "x.txt")
    client, experiment = tracking.connect(Tracking(f"sqlite:///{work}/mlflow.db"))
    (run,) = client.search_runs([experiment])
    assert tracking.is_finished(Tracking(), run.info.run_id)
    assert artifact(client, run.info.run_id, "x.txt") == "text"
    assert results(["--tracking-uri", f"sqlite:///{work}/mlflow.db", "--experiment", "prune-distill"]) == 0
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_options_of_a_sqlite_uri_are_no_part_of_its_name(tmp_path: Path) -> None:
    assert sqlite.file_of("sqlite:///a?b/c.db?timeout=5") == Path("a?b/c.db")
    assert sqlite.file_of("sqlite:////x/y?z.db") == Path("/x/y?z.db")
    assert sqlite.file_of("http://host") is None
    assert sqlite.absolute(f"sqlite:///{tmp_path}/c.db?timeout=5") == f"sqlite:///{tmp_path}/c.db?timeout=5"


@pytest.mark.parametrize("name", [
    pytest.param(501 * "n", marks=row("C1", "tracking.experiment of 501 letters", LATE, REFUSED)),
    pytest.param("a\x00b", marks=row("C1", "tracking.experiment with a control character", LATE, REFUSED)),
    pytest.param("two\nlines", marks=row("C1", "tracking.experiment of two lines", LATE, REFUSED)),
])  # fmt: skip
def test_names_of_experiments(name: str) -> None:
    with pytest.raises(UserError, match=r"(?s)tracking\.experiment=.*at most 500 printable.*choose another"):
        Tracking(experiment=name)
    assert Tracking(experiment="étude 'of' \"n\" % ?").experiment


@row("B3", "a database whose artifacts are at a stranger's server", "the server got the password",
     "refused: it is not asked")  # fmt: skip
def test_a_database_does_not_choose_who_gets_the_password(database: Path, tmp_path: Path) -> None:
    where = Tracking(f"sqlite:///{shutil.copy(database, tmp_path / 'mlflow.db')}", "other", patience=0)
    client, experiment = tracking.connect(where)
    run = client.create_run(experiment).info.run_id
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        store.execute("update experiments set artifact_location = 'http://127.0.0.1:9/x'")
        store.execute("update runs set artifact_uri = 'http://127.0.0.1:9/x'")
    with pytest.raises(ForeignServer, match=r"http://127\.0\.0\.1:9/x.*is not asked"):
        artifact(client, run, "scores.json")
    with pytest.raises(UserError, match="a server that only the file names"):
        tracking.connect(where)
