"""No command leaves a credential anywhere or gives one to a stranger's server; no text controls the terminal."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from results import columns
from results.safe_text import credentials_of, printable, visible, without_secrets
from runner import tracking
from runner.config.compose import compose_experiment
from runner.config.restore import classes, restore
from runner.records.folder import RunFolder
from runner.records.runs import find
from runner.reproduce import parse, place_of, prepared
from runner.sweeps.jobs import Outcome, Place
from runner.system.errors import UserError
from runner.system.process import exit_status
from runner.tracking import PARENT_VARIABLE, Tracking
from runner.tracking.outbox import NAME, Header, Operation, Outbox
from runner.upload import main as upload
from tests.conftest import FINISHED, Cli, copy_run
from tests.mlflow_server import Server

SECRET = "s3cr3t-9x7Q"
DEAD = "127.0.0.1:9"


def row(number: str, given: str, before: str, after: str) -> pytest.MarkDecorator:
    return pytest.mark.bad_input(number, given, before=before, after=after)


def way(name: str, environment: dict[str, str], *overrides: str) -> object:
    before, after = "config.yaml, MLflow, the outbox or stderr had it", "nothing recorded or printed has it"
    return pytest.param(environment, overrides, id=name, marks=row("B1", name, before, after))


PLAIN = f"http://{DEAD}"
WAYS = [
    way("a password in MLFLOW_TRACKING_URI", {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@{DEAD}"}),
    way("a token as user name in MLFLOW_TRACKING_URI", {"MLFLOW_TRACKING_URI": f"http://{SECRET}@{DEAD}"}),
    way("?token= in MLFLOW_TRACKING_URI", {"MLFLOW_TRACKING_URI": f"http://{DEAD}/?token={SECRET}"}),
    way("tracking.uri=${oc.env:STORE}", {"STORE": f"http://me:{SECRET}@{DEAD}"}, "tracking.uri=${oc.env:STORE}"),
    way(
        "a part of tracking.uri from ${oc.env:PART}",
        {"PART": SECRET},
        f"tracking.uri='http://me:${{oc.env:PART}}@{DEAD}'",
    ),
    way("a token in HF_ENDPOINT", {"HF_ENDPOINT": f"https://{SECRET}@hub.example", "MLFLOW_TRACKING_URI": PLAIN}),
    way(
        "a text key from ${oc.env:HF_TOKEN}",
        {"HF_TOKEN": SECRET, "MLFLOW_TRACKING_URI": PLAIN},
        "model.revision=${oc.env:HF_TOKEN}",
    ),
    way("MLFLOW_TRACKING_PASSWORD", {"MLFLOW_TRACKING_PASSWORD": SECRET, "MLFLOW_TRACKING_URI": PLAIN}),
]


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", PARENT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


@pytest.mark.usefixtures("no_store")
@pytest.mark.parametrize(("environment", "overrides"), WAYS)
def test_nothing_that_a_run_leaves_has_a_credential(
    environment: dict[str, str], overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A run in a sweep whose server is away: configuration, params, outbox, log, error, traceback and outcome."""
    monkeypatch.setenv(PARENT_VARIABLE, "the parent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    experiment, origin = compose_experiment(["model=tiny", "dataset=demo", "tracking.patience=0", *overrides])
    where = experiment.tracking
    assert where.store.replace("PART", "") == where.store  # it is resolved, and the run connects with it
    assert (SECRET in where.store) == any(
        SECRET in v and DEAD in v for v in environment.values()
    ) or "PART" in environment
    folder = tmp_path / "run"
    folder.mkdir()

    def fails() -> None:
        tags = {columns.IDENTITY: "x", columns.FOLDER: str(folder)}
        with tracking.start(where, f"name {SECRET}" if "HF_TOKEN" in environment else "name", tags) as tracker:
            RunFolder(folder, tracker).save(columns.CONFIG, origin.yaml)
            tracker.params(origin.changed)
            tracker.text("\n".join(origin.overrides), columns.OVERRIDES)
            given = " ".join(environment.values())
            logging.getLogger("of a library").warning("retrying %s", given)
            raise RuntimeError(f"cannot use {given}")

    assert exit_status(lambda: Place(tmp_path, 0).attempt(fails, ["seed=0", *overrides])) == 0  # type: ignore[arg-type]
    assert exit_status(lambda: print(*environment.values())) == 0

    def refused() -> None:
        raise UserError(f"tracking.uri={where.store}: refused; {' '.join(environment.values())}")

    assert exit_status(refused) == 1
    left = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.name for file in left} >= {NAME, columns.CONFIG, "0.json", "0.log"}
    assert [file for file, text in left.items() if SECRET in text] == []
    assert "cannot use" in left[tmp_path / "0.log"]
    shown = capfd.readouterr()
    assert "refused" in shown.err
    assert "retrying" in caplog.text
    assert SECRET not in shown.err + shown.out + caplog.text


@row("B1", "${oc.env:NAME} in a text, in a number and in a list", "resolved into the record",
     "texts are recorded as given, numbers with their value")  # fmt: skip
@pytest.mark.usefixtures("no_store")
def test_what_comes_from_the_environment_is_recorded_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data/of/me")
    monkeypatch.setenv("RATE", "0.25")
    experiment, origin = compose_experiment(
        ["model=hub", "model.path=${oc.env:WHERE}/bert", "dataset=demo", "train.learning_rate=${oc.env:RATE}",
         "distill.teacher='${oc.decode:${oc.env:WHERE}}'", "model.excluded=['${oc.env:WHERE}',b]"]
    )  # fmt: skip
    recorded = OmegaConf.to_container(OmegaConf.create(origin.yaml))
    assert isinstance(recorded, dict)
    assert recorded["model"]["path"] == origin.changed["model.path"] == "${oc.env:WHERE}/bert"
    assert recorded["model"]["excluded"] == ["${oc.env:WHERE}", "b"]
    assert recorded["distill"]["teacher"] == "${oc.env:WHERE}"
    assert recorded["train"]["learning_rate"] == 0.25
    assert recorded["tracking"]["uri"] is None
    assert experiment.model.path == "/data/of/me/bert"


@pytest.mark.parametrize(
    "uri",
    [f"http://me:{SECRET}@host", f"https://{SECRET}@host", f"postgresql://h/d?password={SECRET}"],
    ids=["password", "token", "query"],  # else pytest has them in its environment
)
@row("B1", "a password, a token or ?password= typed as tracking.uri", "only user:password@ was refused",
     "refused, with where to give it instead")  # fmt: skip
@pytest.mark.usefixtures("no_store")
def test_a_credential_on_the_command_line_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI in the environment") as caught:
        Tracking(uri)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("text", "clean"), [
    ("http://me:pa@ss@host:1/x", "http://***@host:1/x"),
    ("http://me:pa/ss@host:1/x", "http://***@host:1/x"),
    ("see postgresql+psycopg2://u:p@h/d, then", "see postgresql+psycopg2://***@h/d, then"),
    ("sqlite:////a@b:c/mlflow.db", "sqlite:////a@b:c/mlflow.db"),
    ("https://hub:8080/org/model@main", "https://hub:8080/org/model@main"),
    ("AWS_SECRET_ACCESS_KEY=ab/c and password=x", "AWS_SECRET_ACCESS_KEY=*** and password=***"),
    ("Authorization: Bearer abc.d", "Authorization: Bearer ***"),
    ("hf_" + 34 * "a", "***"),
    ("train.batch_tokens=4096 pad_token=[PAD]", "train.batch_tokens=4096 pad_token=[PAD]"),
])  # fmt: skip
def test_credentials_are_removed_and_nothing_else(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
    assert without_secrets(clean) == clean


def test_forms_of_a_variable_are_removed_and_places_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", 'p@"ss/word')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "bert")
    for form in ('p@"ss/word', "p%40%22ss%2Fword", 'p@\\"ss/word'):
        assert without_secrets(f"({form})") == "(***)"
    assert without_secrets(f"{tmp_path} 1 albert") == f"{tmp_path} 1 albert"
    assert credentials_of("http://me:one@h?sig=two") == ["one", "two"]


# --- a stranger's folder ------------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[int]]]:
    """The address of a server that should never be asked, and a function that counts who asked."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        asked: list[int] = []
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        with pytest.raises(BlockingIOError):
            listener.accept()


OURS = ("model=tiny", "dataset=demo")
NOT_FOLLOWED = "the user's secret was read into the reproduction"


@pytest.mark.parametrize(("key", "value", "remedy"), [
    pytest.param("dataset.path", "${oc.env:HF_TOKEN}", r"add dataset\.path=PLACE",
                 marks=row("B3", "dataset.path: ${oc.env:HF_TOKEN} in a config.yaml", NOT_FOLLOWED, "refused by name")),
    pytest.param("model.revision", "${oc.env:HF_TOKEN}", "write there the value",
                 marks=row("B3", "model.revision: ${oc.env:...}", NOT_FOLLOWED, "refused by name")),
    pytest.param("model.excluded", ["a", "${oc.decode:'1'}"], "write there the value",
                 marks=row("B3", "an interpolation in a list", "computed", "refused by name")),
    pytest.param("train.learning_rate", "${seed}", "write there the value",
                 marks=row("B3", "an interpolation of another key", "computed", "refused by name")),
])  # fmt: skip
def test_interpolations_of_a_record_are_refused(
    key: str, value: object, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    experiment, origin = compose_experiment(("model=tiny", "dataset=sst2"))
    config = OmegaConf.create(origin.yaml)
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(UserError, match=rf"config\.yaml: {key}=.*is an interpolation.*{remedy}") as caught:
        restore(OmegaConf.to_yaml(config), classes(experiment), {})
    assert SECRET not in str(caught.value)
    if isinstance(value, str):
        assert restore(OmegaConf.to_yaml(config), classes(experiment), {key: "0.5"}).experiment


@row("B3", "tracking.uri, output_dir and cache_dir of a record", "the stranger's store and folders were used",
     "today's are")  # fmt: skip
@pytest.mark.usefixtures("no_store")
def test_store_and_folders_of_a_record_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, origin = compose_experiment(OURS)
    config = OmegaConf.create(origin.yaml)
    theirs = {"tracking.uri": "http://evil/${oc.env:HF_TOKEN}", "output_dir": "/theirs", "cache_dir": "/theirs"}
    for key, value in {**theirs, "force": True, "dry_run": True}.items():
        OmegaConf.update(config, key, value)
    back = restore(OmegaConf.to_yaml(config), classes(experiment), {})
    assert back.experiment == experiment
    assert "theirs" not in back.yaml
    assert "evil" not in back.yaml
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours")
    assert back.experiment.tracking.store == "http://ours"


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "!!python/object:os.system x"])
@row("B3", "a config.yaml that is torn, a list, or has a tag of Python", "a traceback", "refused as damaged")
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        restore(text, {}, {})


@row("B3", "runner.reproduce and runner.examples on a stranger's folder", "they connected to its tracking.uri",
     "only today's own store is asked")  # fmt: skip
@pytest.mark.usefixtures("no_store", "one_thread")
def test_a_strangers_server_is_not_asked(
    finished_run: Path, stranger: tuple[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.examples import main as examples

    monkeypatch.chdir(copy_run(finished_run, tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    (folder,) = Path("outputs").glob("*-s0-*/")
    config = OmegaConf.load(folder / columns.CONFIG)
    OmegaConf.update(config, "tracking.uri", stranger[0])
    OmegaConf.save(config, folder / columns.CONFIG)
    examples([str(folder)])
    assert list(Path("mlartifacts").rglob(columns.EXAMPLES_JSON))  # added to the run in today's store
    options = parse([str(folder)])
    again = prepared(find(str(folder), Tracking()), options, place_of(find(str(folder), Tracking()), Path("r"), False))
    assert again.experiment.tracking.store == "sqlite:///mlflow.db"
    assert again.circumstances == []


@pytest.mark.parametrize(("uri", "secret", "message"), [
    pytest.param("", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_PASSWORD is not sent to it", marks=row(
        "B3", "an outbox that names a stranger's server", "runner.upload sent the password there",
        "refused: name the store by --tracking-uri")),
    pytest.param("", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_TOKEN is not sent to it", marks=row(
        "B3", "the same with a token", "runner.upload sent it there", "refused: name the store by --tracking-uri")),
    pytest.param("databricks://x", "", "named by the outbox alone", marks=row(
        "B3", "an outbox that names databricks://", "the profile of ~/.databrickscfg was used", "refused")),
    pytest.param("sqlite:///new/own.db", "", "there is no such database", marks=row(
        "B3", "an outbox that names a file", "the file was made", "refused")),
])  # fmt: skip
@pytest.mark.usefixtures("no_store")
def test_an_outbox_does_not_choose_who_gets_credentials(
    uri: str,
    secret: str,
    message: str,
    stranger: tuple[str, list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if secret:
        monkeypatch.setenv(secret, SECRET)
    Outbox.create(tmp_path / "run" / NAME, Header(uri or stranger[0], "e", "n", {}, None, 1)).add(
        Operation("end", ["FINISHED", 2])
    )
    with pytest.raises(UserError, match=message):
        upload(["run"])
    assert not Path("new").exists()


# --- control characters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "shown"), [
    pytest.param("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", marks=row(
        "B4", "an ANSI sequence in a label", "it coloured the terminal", r"shown as \x1b[31m")),
    pytest.param("\x1b]0;title\x07", r"\x1b]0;title\x07", marks=row(
        "B4", "an OSC sequence", "it set the window's title", "shown")),
    pytest.param("a\rb\x9b2J", r"a\x0db\x9b2J", marks=row(
        "B4", "a carriage return, a C1 control", "they overwrote and cleared lines", "shown")),
    pytest.param("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066", marks=row(
        "B4", "bidi overrides", "they reordered the line", r"shown as \u202e")),
    pytest.param("\ud800", r"\ud800", marks=row("B4", "half a surrogate pair", "a traceback", "shown")),
    pytest.param("two\nlines\tétoile 数 שלום", "two\nlines\tétoile 数 שלום", marks=row(
        "B4", "line ends, tabs and other scripts", "as they are", "as they are")),
])  # fmt: skip
def test_control_characters_are_shown(
    text: str, shown: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert visible(text) == shown
    assert printable(shown) == shown

    def program() -> None:
        print(text)
        logging.getLogger("runner.anything").warning("label %s", text)
        raise UserError(f"label={text}: wrong; right it")

    assert exit_status(program) == 1
    told = capfd.readouterr()
    assert told.out == f"{shown}\n"
    assert f"error: label={shown}: wrong" in told.err
    assert f"label {shown}" in caplog.text


def test_outcomes_are_written_without_credentials(tmp_path: Path) -> None:
    place = Place(tmp_path, 3)
    place.write(Outcome([f"x=http://me:{SECRET}@h"], f"failed at https://{SECRET}@h"))
    assert json.loads(place.file.read_text())["error"] == "failed at https://***@h"
    assert SECRET not in place.file.read_text()
    assert os.listdir(tmp_path) == ["3.json"]


@pytest.mark.slow
@row("B1", "a run, a failed job of a sweep, a report and a reproduction, on a server with a password", "the folders, "
     "MLflow and stderr had it", "no byte of them has it, and all of them reach the server")  # fmt: skip
def test_no_byte_that_commands_leave_has_a_credential(
    server: Server, small_model: Path, tmp_path: Path, cli: Cli
) -> None:
    uri = server.uri.replace("//", f"//me:{SECRET}@")
    token = "aToken-of-the-hub-1"

    def command(*arguments: str) -> str:
        done = cli("-m", *arguments, env={"MLFLOW_TRACKING_URI": uri, "HF_TOKEN": token})
        return done.stdout + done.stderr

    run = ("runner", "model=hub", f"model.path={small_model}", *FINISHED)
    texts = [
        command(*run),
        command("runner", "-m", *run[1:], "model.path=/nowhere", "seed=1"),
        command("results", "report"),
    ]
    (folder,) = tmp_path.glob("outputs/*-s0-*/")
    texts.append(command("runner.reproduce", str(folder)))
    assert "MLflow run" in texts[0]
    assert "1 of 1 runs failed" in texts[1]
    assert "report.html" in texts[2]
    assert "Reproduced bit for bit" in texts[3]
    assert sorted(server.runs()) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    left = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    left |= {f"output {at}": text.encode() for at, text in enumerate(texts)}
    for secret in (SECRET, token):
        assert [name for name, content in left.items() if secret.encode() in content] == []
