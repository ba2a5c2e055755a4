"""The command lines of the commands: one line for a mistake, with what was meant, and help in one voice."""

import re
from importlib import import_module

import pytest

from results.arguments import Parser
from runner.system.commands import COMMANDS, command_parser


def parser() -> Parser:
    made = command_parser("runs", "", "--state finished", more="Further words.")
    made.add_argument("what", nargs="?", choices=["table", "report"], default="table")
    made.add_argument("--state", choices=["finished", "failed"])
    made.add_argument("--lost", type=int, metavar="N")
    made.add_argument("--output-dir")
    return made


@pytest.mark.parametrize(("arguments", "message"), [
    (["--staet", "failed"], "--staet: there is no such option; did you mean --state?"),
    (["--zzz"], "--zzz: there is no such option"),
    (["--state", "finishd"], "--state finishd: choose from finished, failed; did you mean finished?"),
    (["tabel"], "tabel: choose from table, report; did you mean table?"),
    (["--lost", "x"], "--lost: invalid int value: 'x'"),
    (["--lost"], "--lost: a value is missing"),
    (["table", "more"], "more: not understood; see python -m runner.runs --help"),
    (["--state=\x1b[2J"], r"--state \x1b[2J: choose from finished, failed"),
])  # fmt: skip
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (parser().parse_args, parser().parse_intermixed_args):
        with pytest.raises(SystemExit) as exit:
            parse(arguments)
        assert exit.value.code == 2
        assert capsys.readouterr() == ("", f"error: {message}\n")


def test_what_is_right_is_read() -> None:
    given = parser().parse_args(["report", "--stat", "failed", "--output-dir=--x", "--lost", "-1"])
    assert (given.what, given.state, given.output_dir, given.lost) == ("report", "failed", "--x", -1)
    assert parser().parse_args(["--", "table"]).what == "table"


def test_commands_below_a_command_have_options_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    made = command_parser("cache")
    made.add_subparsers(dest="command", required=True).add_parser("clean", does="x").add_argument("--force")
    assert made.parse_args(["clean", "--force", "y"]).force == "y"
    for arguments, message in [
        (["claen"], "claen: choose from clean; did you mean clean?"),
        (["clean", "--froce"], "--froce: there is no such option; did you mean --force?"),
        ([], "command: missing; see python -m runner.cache --help"),
    ]:
        with pytest.raises(SystemExit):
            made.parse_args(arguments)
        assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usage, a sentence, the options, examples that are commands; none wider than a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    module, does = COMMANDS[name]
    main = import_module(f"{module}.__main__" if name == "results" else module).main
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert text.startswith(f"usage: python -m {module} ")
    assert name == "results" or f"\n\n{does[0].upper()}{does[1:]}.\n\n" in text
    examples = re.search(r"^examples:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert examples is not None
    assert all(line.startswith(f"  python -m {module}") for line in examples[1].splitlines())
    assert max(map(len, text.splitlines())) <= 80
