import csv
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from results.__main__ import main

ROOT = Path(__file__).parents[2]


def command(folder, *arguments, **environment):
    """`python -m results` in a process of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, "-m", "results", *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_command_prints_the_table_and_nothing_else(published, tmp_path):
    published.log(seed=2, status="FAILED")
    done = command(tmp_path, "--experiment", published.name, MLFLOW_TRACKING_URI=published.uri)
    assert (done.returncode, done.stderr) == (0, "")
    header, _, row, blank, note = done.stdout.splitlines()
    assert "Dense F1 (mean/max)" in header
    assert "Relative drop of means" in header
    assert all(cell in row for cell in ("0.7993", "0.7662/0.7687", "0.7617/0.7627", "-0.78%", "-0.59%", "0, 1"))
    assert (blank, note) == ("", "1 failed run is not shown.")
    assert list(tmp_path.iterdir()) == []


def test_command_without_a_database(tmp_path):
    done = command(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.splitlines()
    assert str(tmp_path / "mlflow.db") in message
    assert "python -m runner" in message
    assert "--tracking-uri" in message
    assert list(tmp_path.iterdir()) == []


def test_command_and_a_server_that_does_not_answer(tmp_path):
    with socket.socket() as listener:  # bound, not listening: the port is refused, and nobody else takes it
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        done = command(tmp_path, "--tracking-uri", f"http://someone:secret@127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.splitlines()
    assert message.startswith(f"error: cannot read http://***@127.0.0.1:{port}")
    assert "secret" not in message


def test_database_by_a_relative_path(published, monkeypatch, capsys):
    monkeypatch.chdir(Path(published.uri.removeprefix("sqlite:///")).parent)
    assert main(["--tracking-uri", "sqlite:///runs.db", "--experiment", published.name, "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be looked at" * 20])
def test_a_file_that_mlflow_did_not_make_is_left_alone(tmp_path, capsys, content):
    file = tmp_path / "other.db"
    file.write_bytes(content)
    assert main(["--tracking-uri", f"sqlite:///{file}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(file) in captured.err
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_exist_is_not_made(tmp_path, capsys):
    assert main(["--tracking-uri", f"sqlite:///{tmp_path}/none/runs.db?timeout=5"]) == 1
    assert f"{tmp_path}/none/runs.db:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_experiment(experiment, capsys):
    assert main(["--tracking-uri", experiment.uri, "--experiment", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "'nowhere'" in captured.err
    assert experiment.name in captured.err


def test_unknown_store(capsys):
    assert main(["--tracking-uri", "bogus://somewhere"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read bogus://somewhere: ")


def test_unknown_format(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--format", "html"])
    assert stop.value.code == 2
    assert "latex" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "json", "latex"])
def test_footnotes_of_formats_for_programs_go_to_stderr(published, capsys, form):
    published.log(seed=2, status="RUNNING")
    assert main(["--tracking-uri", published.uri, "--experiment", published.name, "--format", form]) == 0
    captured = capsys.readouterr()
    assert captured.err == "1 unfinished run is not shown.\n"
    if form == "csv":
        (row,) = csv.DictReader(io.StringIO(captured.out))
        assert float(row["drop_max"]) == pytest.approx(-0.0060 / 0.7687)
    elif form == "json":
        (row,) = json.loads(captured.out)
        assert row["seeds"] == [0, 1]
        assert len(row["runs"]) == 2
    else:
        assert captured.out.endswith("\\end{tabular}\n")


def test_markdown_ends_in_its_footnotes(published, capsys):
    published.log(seed=0)
    assert main(["--tracking-uri", published.uri, "--experiment", published.name, "--format", "markdown"]) == 0
    *table, blank, note = capsys.readouterr().out.splitlines()
    assert [line[0] for line in table] == ["|"] * 3
    assert (blank, note) == ("", "1 repeat was left out: the newest run counts.")


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json", "latex"])
def test_nothing_to_show(experiment, capsys, form):
    experiment.log(seed=0, status="RUNNING")
    experiment.log(seed=1, verified="false")
    assert main(["--tracking-uri", experiment.uri, "--experiment", experiment.name, "--format", form]) == 0
    captured = capsys.readouterr()
    said = captured.out if form in ("table", "markdown") else captured.err
    assert said.splitlines()[0].startswith("Nothing to show")
    assert said.splitlines()[1:] == ["1 unfinished and 1 unverified runs are not shown."]
    if form == "json":
        assert captured.out == "[]\n"
    if form == "csv":
        assert len(captured.out.splitlines()) == 1  # the header


def test_a_terminal_gets_a_table_of_its_width(published, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["--tracking-uri", published.uri, "--experiment", published.name]) == 0
    output = capsys.readouterr().out
    assert "Dense F1 (mean/max)" not in output
    assert "0.7662/0.7687" in output
    assert max(map(len, output.splitlines())) <= 110
