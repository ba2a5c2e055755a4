"""Tab completion of the command line. It reads the names of files in conf/ and keys.txt, not what composes a run, which
imports torch and takes seconds. Hydra's scripts for bash, zsh and fish ask for it, by `-sc query=SHELL`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from runner.system import spelling
from runner.system.commands import COMMANDS

_BEFORE_OVERRIDES = {"evaluate": 1, "examples": 1, "reproduce": 1, "sensitivity": 0, "tradeoff": 0}
"""Commands that take KEY=VALUE -> how many other arguments come first."""


def reply(arguments: Sequence[str]) -> bool:
    """Print what a shell asks for; False if the arguments are no such question, or one that Hydra has to answer.

    Args:
        arguments: those of a command line without mistakes (`spelling.mistake`).
    """
    if not arguments or arguments[0] not in spelling.COMPLETION:
        return False
    question, _, shell = " ".join(arguments[1:2]).partition("=")
    if question in ("install", "uninstall"):
        import hydra

        hydra.main(config_path=None, version_base="1.3")(lambda _: None)()  # prints its script
        return True
    line = os.environ.get("COMP_LINE", "")
    words = answer(line)
    if words is None:
        return False
    if shell == "bash":  # to bash a word begins behind the last colon
        begin = line.rpartition(" ")[2].rfind(":") + 1
        words = [word[begin:] for word in words]
    print(*words, sep="\n" if shell == "fish" else " ")
    return True


def answer(line: str) -> list[str] | None:
    """What the last word of a command line may become, sorted; None if that depends on options of the user's own, or of
    Hydra's, which only Hydra knows.

    Args:
        line: it begins with the program's name.
    """
    words = line.split()
    word = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
    words = words[1:]
    if spelling.has_own_options([*words, word]) or word.lstrip("+~").startswith("hydra"):
        return None
    if words and words[0] in COMMANDS:
        found = _files(word)
        if len(words) > _BEFORE_OVERRIDES.get(words[0], len(words)):
            found += _candidates(word)
    else:
        found = [*([] if words else ["run", *COMMANDS]), *_candidates(word)]
    return sorted(candidate for candidate in found if candidate.startswith(word))


def _candidates(word: str) -> list[str]:
    """Continuations of a word; some may not begin with it."""
    if word.startswith("-"):
        return [*spelling.FLAGS]
    sign = word[: len(word) - len(word.lstrip("+~"))]
    key, equals, value = word[len(sign) :].partition("=")
    if equals:
        given = value.rpartition(",")[0]  # the values of a sweep that are there already
        start = f"{sign}{key}={given}," if given else f"{sign}{key}="
        return [start + name for name in _values(key, value.rpartition(",")[2])]
    known = [name for name in spelling.known_keys() if "*" not in name]  # criterion.samples
    depth = key.count(".") + 1
    parents = {".".join([*name.split(".")[:depth], ""]) for name in known if name.count(".") >= depth}  # criterion.
    leaves = [name for name in known if name.count(".") < depth and f"{name}." not in parents]
    groups = ["hydra/launcher" if group == "hydra" else group for group in spelling.groups()]
    names = [*parents, *(f"{name}=" for name in [*groups, *leaves])]
    return [sign + name for name in names]


def _values(key: str, value: str) -> list[str]:
    """Options of a group, names that a key takes, or files, for a value that begins like a path."""
    if key in spelling.groups():
        return spelling.options(key)
    return _files(value) if value.startswith((".", "/", "~")) else spelling.known_keys().get(key, [])


def _files(start: str) -> list[str]:
    """Paths in the folder of a path that is typed. Names that a shell would split or expand are left out: bash expands
    the words that it is given, and a folder may be a stranger's."""
    folder, slash, _ = start.rpartition("/")
    try:
        entries = [*os.scandir(os.path.expanduser(folder + slash) or ".")]
        names = [f"{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries]
    except OSError:
        return []
    return [f"{folder}{slash}{name}" for name in names if re.fullmatch(r"[\w.,+@%-]+/?", name)]
