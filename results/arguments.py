"""The command line of a command: help in the words of `prune-distill --help`, and one line for a mistake."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from results.safe_text import printable

WIDTH = 79


class Parser(argparse.ArgumentParser):
    """A parser whose help ends with examples, and whose mistakes are one line, with the word that was probably meant.
    The exit status of a mistake is 2, as argparse has it."""

    def __init__(self, prog: str, does: str, examples: Sequence[str] = (), more: str = "", **options: Any) -> None:
        """
        Args:
            prog: the command as it is typed.
            does: what it does, without a capital at the beginning and a full stop at the end.
            examples: arguments, each of a command that makes sense.
            more: what else the reader should know.
        """
        sentence = textwrap.fill(f"{does[:1].upper()}{does[1:]}.", WIDTH)
        more = "\n".join(textwrap.fill(line, WIDTH) for line in more.strip().splitlines())
        lines = [f"  {prog} {example}".rstrip() for example in examples]
        parts = ["\n".join(["examples:", *lines])] if lines else []
        super().__init__(
            prog, description=sentence, epilog="\n\n".join([*parts, more]).strip() or None,
            formatter_class=argparse.RawDescriptionHelpFormatter, **options,
        )  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, after a look at the options: argparse would first complain of the value that follows."""
        arguments = sys.argv[1:] if args is None else list(args)
        if not any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            names = [*self._option_string_actions]
            for argument in arguments[: arguments.index("--")] if "--" in arguments else arguments:
                option = argument.partition("=")[0]
                if re.match(r"--\w", option) and not any(name.startswith(option) for name in names):
                    self.error(f"{option}: there is no such option{meant(option, names)}")
        return super().parse_known_args(arguments, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            option = action.option_strings[-1] if action.option_strings else ""
            names = [*map(str, action.choices)]
            self.error(f"{option} {value}: choose from {', '.join(names)}{meant(value, names)}".strip())

    def error(self, message: str) -> NoReturn:
        """Print one line, and end with exit status 2."""
        text = re.sub(r"^argument (?:-\w/)?([^:]*): ", r"\1: ", message)
        text = re.sub(r"^the following arguments are required: (.*)", rf"\1: missing; see {self.prog} --help", text)
        text = re.sub(r"^unrecognized arguments: (.*)", rf"\1: not understood; see {self.prog} --help", text)
        text = text.replace("expected one argument", "a value is missing")
        self.exit(2, f"error: {printable(text)}\n")


def meant(word: str, names: Sequence[str]) -> str:
    """The end of a message about a word that is none of the names: the one that was probably meant."""
    like = get_close_matches(word, names, 1)
    return f"; did you mean {like[0]}?" if like else ""
