import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from results import columns
from results.__main__ import main

ROOT = Path(__file__).parents[2]
# The fixture `published` logs labels and scores only.
NOTES = [
    "a: no interval: scores.json is missing or cannot be fetched (bert-mini squad 4x1).",
    "b: no same-budget dense control: pattern=dense, and all else as here (bert-mini squad 4x1).",
]


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


def test_only_a_table_with_maxima_has_notes_on_them(published, capsys):
    published.log(group="other", pattern="2:4", seed=0)
    note = "the maxima are over 1 to 2 seeds"
    assert main(arguments(published)) == 0
    assert note not in capsys.readouterr().out
    for option in ("--wide", "--compare=published", "--format=markdown"):
        assert main(arguments(published, option)) == 0
        assert note in capsys.readouterr().out, option


def test_command_prints_the_table_and_nothing_else(published, tmp_path):
    published.log(seed=2, status="FAILED")
    done = command(tmp_path, "--wide", "--experiment", published.name, MLFLOW_TRACKING_URI=published.uri)
    assert (done.returncode, done.stderr) == (0, "")
    header, _, row, blank, *notes = done.stdout.splitlines()
    assert "Dense F1 (mean/max)" in header
    assert "Relative drop of means" in header
    assert all(
        cell in row for cell in ("0.7993", "0.7662/0.7687", "0.7617/0.7627", "-0.78%", "-0.59%", "2 (0-1)", "a, b")
    )
    assert (blank, notes) == ("", [*NOTES, "1 failed run is not shown."])
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_is_no_error(published, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "results", "--experiment", published.name, "--tracking-uri", published.uri],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
    process.stderr.close()


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
        main(["--format", "word"])
    assert stop.value.code == 2
    assert "latex" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "json", "latex"])
def test_footnotes_of_formats_for_programs_go_to_stderr(published, capsys, form):
    published.log(seed=2, status="RUNNING")
    assert main(["--tracking-uri", published.uri, "--experiment", published.name, "--format", form]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [*NOTES, "1 unfinished run is not shown."]
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
    *table, blank, first, second, third = capsys.readouterr().out.splitlines()
    assert [line[0] for line in table] == ["|"] * 3
    notes = [*NOTES, "1 repeat was left out: the newest run counts."]
    assert [blank, first, second, third] == ["", *(f"- {note}" for note in notes)]


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json", "latex", "html"])
def test_nothing_to_show(experiment, capsys, form):
    experiment.log(seed=0, status="RUNNING")
    experiment.log(seed=1, verified="false")
    assert main(["--tracking-uri", experiment.uri, "--experiment", experiment.name, "--format", form]) == 0
    captured = capsys.readouterr()
    if form == "html":
        assert "<p>Nothing to show" in captured.out
        assert "<table>" not in captured.out
        return
    said = captured.out if form in ("table", "markdown") else captured.err
    first, second = (line.removeprefix("- ") for line in said.splitlines())
    assert first.startswith("Nothing to show")
    assert second == "1 unfinished and 1 unverified runs are not shown."
    if form == "json":
        assert captured.out == "[]\n"
    if form == "csv":
        assert len(captured.out.splitlines()) == 1  # the header


def test_a_terminal_gets_a_table_of_its_width(published, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["--wide", "--tracking-uri", published.uri, "--experiment", published.name]) == 0
    output = capsys.readouterr().out
    assert "Dense F1 (mean/max)" not in output
    assert "0.7662/0.7687" in output
    assert max(map(len, output.splitlines())) <= 110


def arguments(experiment, *others):
    return ["--tracking-uri", experiment.uri, "--experiment", experiment.name, *others]


def test_intervals_may_be_left_out(published, capsys):
    published.log(group="other", pattern="2:4", scores=([0.5, 0.5], [0.4, 0.4]), seed=3)
    assert main(arguments(published, "--format", "json", "--pattern", "2:4")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["drop_interval"] == pytest.approx([-0.2, -0.2])
    assert "one seed: its intervals are over examples alone" in row["notes"]
    assert main(arguments(published, "--format", "json", "--no-intervals")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["drop_interval"] for row in rows] == [None, None]
    assert not [note for row in rows for note in row["notes"] if "interval" in note]


def test_a_filter_that_matches_nothing_says_what_there_is(published, capsys):
    assert main(arguments(published, "--model", "bert-huge,roberta*")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: no run matches --model bert-huge,roberta*; there are: bert-mini (in sqlite")


def test_a_filter_and_a_store_without_runs(experiment, capsys):
    assert main(arguments(experiment, "--model", "bert-huge")) == 0
    assert capsys.readouterr().out.startswith("Nothing to show")


@pytest.mark.parametrize("text", ["commit", "=x", ""])
def test_a_tag_without_a_value(capsys, text):
    with pytest.raises(SystemExit) as stop:
        main(["--tag", text])
    assert stop.value.code == 2
    assert "is not KEY=VALUE" in capsys.readouterr().err


def test_published_rows_are_set_beside_ours(published, capsys):
    assert main(arguments(published, "--compare", "published", "--dataset", "squad", "--format", "markdown")) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 8
    (ours,) = [line for line in rows if "2 (0-1)" in line]
    assert ours.count("0.7662/0.7687") == ours.count("0.7617/0.7627") == ours.count("-0.78%") == 2
    (large,) = [line for line in rows if line.startswith("| bert-large | squad | 2:4 |")]
    assert "| - | - | - | - | - | - |  | 0.5002 | 0.9123 | 0.9167 | +0.48% |" in large
    assert lines[-1].startswith("- Published by Intel Neural Compressor: question-answering examples.")
    assert "not stated" in lines[-1]


def test_the_default_table_has_the_published_figures_with_the_difference(published, capsys):
    assert main(arguments(published, "--compare", "published", "--dataset", "squad")) == 0
    header, _, *rows = (line for line in capsys.readouterr().out.splitlines() if line.startswith(" "))
    assert len(rows) == 8
    (ours,) = [line for line in rows if "79.9%" in line]
    cells = dict(zip(re.split(r"  +", header.strip()), re.split(r"  +", ours.strip()), strict=True))
    assert cells == {
        **{"Model": "bert-mini", "Dataset": "squad", "Pattern": "4x1", "Zeros": "79.9%", "Dense F1": "0.7662/0.7687"},
        **{"Sparse F1": "0.7617/0.7627", "Drop of means [95%]": "-0.59%", "Drop of maxima": "-0.78%"},
        **{"Published ratio": "0.7993", "Published dense F1 (mean/max)": "0.7662/0.7687"},
        **{"Published sparse F1 (mean/max)": "0.7617/0.7627", "Published relative drop": "-0.78%"},
        **{"Drop less published": "+0.00%", "Seeds": "2", "Notes": "a, b"},
    }


def test_sentences_take_the_place_of_the_table(published, capsys):
    assert main(arguments(published, "--sentences")) == 0
    sentence, blank, *notes = capsys.readouterr().out.splitlines()
    assert sentence == (
        "bert-mini on squad: 4x1 at 80 % costs 0.45 points of F1 against the dense model it started from (two seeds, "
        "no interval)."
    )
    assert (blank, notes) == ("", NOTES)


def test_sentences_without_runs(experiment, capsys):
    assert main(arguments(experiment, "--sentences")) == 0
    assert capsys.readouterr().out.startswith("Nothing to show")


def test_published_rows_alone(published, capsys):
    assert main(arguments(published, "--compare", "published", "--model", "bert-large", "--format", "csv")) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["model"], row["pattern"], row["seeds"], row["sparse_max"]) for row in rows] == [
        ("bert-large", "2:4", "", ""),
        ("bert-large", "4x1", "", ""),
    ]
    assert [row["published_sparse_max"] for row in rows] == ["0.9167", "0.9091"]
    assert [row["published_sparse_mean"] for row in rows] == ["", ""]


def test_html_is_a_page_with_its_notes(published, capsys):
    assert main(arguments(published, "--format", "html")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("<!doctype html>")
    assert captured.out.index("</table>") < captured.out.index(f"<p>{NOTES[0]}</p>")


def test_a_narrow_terminal_gets_blocks(published, monkeypatch, capsys):
    published.log(group="c", control="x", seed=0, scores=([0.5, 0.7], [0.4, 0.6]), metrics={columns.BYTES: 2e6})
    published.log(group="d", control="x", pattern="dense", seed=0, scores=([0.5, 0.7], [0.5, 0.8]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments(published)) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.split("\n\na: ")[0].splitlines())) <= 80
    assert narrow.count("Model") == narrow.count("bert-mini  squad    dense") > 1
    assert "2.0 MB" not in narrow
    assert main(arguments(published, "--wide")) == 0
    assert "2.0 MB" in capsys.readouterr().out


def test_the_picture_is_written_as_its_suffix_says(published, tmp_path, capsys):
    for name, start in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c.pdf", b"%PDF")):
        assert main(["picture", *arguments(published, "--output", str(tmp_path / name))]) == 0
        assert capsys.readouterr().out == f"{tmp_path}/{name}: bert-mini on squad, 1 rows\n"
        assert (tmp_path / name).read_bytes().startswith(start)
    assert main(["picture", *arguments(published, "--output", str(tmp_path / "d.word"))]) == 1
    assert f"error: --output {tmp_path}/d.word: Format 'word' is not supported" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.png", "b.svg", "c.pdf"]


def test_a_picture_has_one_comparison(published, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    published.log(group="b", dataset="mrpc", scores=([0.5, 0.5], [0.4, 0.4]))
    assert main(["picture", *arguments(published)]) == 1
    message = capsys.readouterr().err
    assert message.endswith("there are: bert-mini mrpc f1, bert-mini squad f1\n")
    assert "--dataset" in message
    assert main(["picture", *arguments(published, "--dataset", "mrpc")]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["score-against-sparsity.png"]


def test_there_is_no_picture_of_nothing(experiment, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["picture", *arguments(experiment)]) == 1
    assert "there is nothing to draw" in capsys.readouterr().err
    experiment.log(pattern="dense")
    assert main(["picture", *arguments(experiment)]) == 1
    assert "none with a pruned row" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "{table,report,picture,pictures}" in text
    assert "picture: write the picture of score against sparsity" in text
