"""The command `prune-distill`, also `python -m runner`: a run, a sweep, or one of the other commands.

prune-distill [run] model=bert-large pattern=4x1     as python -m runner model=bert-large pattern=4x1
prune-distill results --model bert-large             as python -m results --model bert-large
"""

from __future__ import annotations

import os
import sys

from results.safe_text import printable, readers_may_leave
from runner.config import help
from runner.system import completion, spelling
from runner.system.commands import COMMANDS

_LAUNCHED = {"RANK", "PRUNE_DISTILL_JOB"}
"""Variables of a process whose first errors another one reports: a rank, and a job of a sweep."""


def main() -> int:
    """Run the command line; the exit status is the process's."""
    status = 0
    try:
        with readers_may_leave():
            status = _dispatch()
    except KeyboardInterrupt:  # while libraries are imported: later, `exit_status` handles it
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _dispatch() -> int:
    if sys.argv[1:2] == ["run"]:
        del sys.argv[1]
    typed = os.environ.get("COMP_LINE", "").split(" ")  # what Hydra's tab completion completes
    if typed[1:2] == ["run"]:
        os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])
    if any("plugins=" in argument for argument in sys.argv[1:]) and not sys.flags.safe_path:
        here = os.getcwd()  # on the path of `python -m runner`, not on that of the console command
        sys.path += [here] if here not in sys.path else []
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in COMMANDS:
        return _other(first)
    if "--version" in sys.argv[1:]:
        print("prune-distill", _version())
        return 0
    if {"--help", "-h"} & {*sys.argv[1:]} and not spelling.has_own_options(sys.argv[1:]):
        print(help.text(spelling.options))
        return 0
    if first.isalpha() and (error := _misspelled(first)):
        return _refuse(error)
    if not _LAUNCHED & os.environ.keys():
        error = spelling.mistake(sys.argv[1:]) or spelling.missing_place(sys.argv[1:])
        if error:
            return _refuse(error)
    if completion.reply(sys.argv[1:]):
        return 0
    if sys.stderr.isatty() and not any(argument.startswith("-") and argument != "-m" for argument in sys.argv[1:]):
        print("prune-distill", _version(), file=sys.stderr)  # at once: the libraries take seconds to import
    from runner import command_line

    return command_line.main()


def _refuse(error: str) -> int:
    print(f"error: {printable(error)}", file=sys.stderr)
    return 1


def _other(name: str) -> int:
    """Do what `python -m MODULE` does."""
    import runpy

    module, _ = COMMANDS[name]
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("prune-distill")
    except PackageNotFoundError:
        return "(not installed)"


def _misspelled(word: str) -> str | None:
    """The error of a word that looks like a command; None if it does not."""
    from difflib import get_close_matches

    meant = get_close_matches(word.lower(), [*COMMANDS, "run"], 1, 0.7)
    return f"{word}: there is no such command; did you mean {meant[0]}?" if meant else None


if __name__ == "__main__":
    sys.exit(main())
