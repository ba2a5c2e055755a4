"""Tab completion of the command line. It reads the names of files in conf/ and keys.txt, not what composes a run, which
imports torch and takes seconds. Hydra's scripts for bash, zsh and fish ask for it, by `-sc query=SHELL`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from runner.system import spelling
from runner.system.commands import COMMANDS


def reply(arguments: Sequence[str]) -> bool:
    """Print what a shell asks for; False if the arguments are no such question, or one that Hydra has to answer.

    Args:
        arguments: those of a command line without mistakes (`spelling.mistake`).
    """
    if arguments[0:1] not in (["-sc"], ["--shell-completion"]):
        return False
    question, _, shell = arguments[1].partition("=")
    if question in ("install", "uninstall"):
        import hydra

        hydra.main(config_path=None, version_base="1.3")(lambda _: None)()  # prints its script
        return True
    words = answer(os.environ.get("COMP_LINE", ""))
    if words is not None:
        print(*words, sep="\n" if shell == "fish" else " ")
    return words is not None


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
        return []  # the shell completes names of files
    first = [] if words else ["run", *COMMANDS]
    return sorted(candidate for candidate in [*first, *_candidates(word)] if candidate.startswith(word))


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
    return [sign + name for name in [*parents, *(f"{name}=" for name in [*spelling.groups(), *leaves])]]


def _values(key: str, value: str) -> list[str]:
    """Options of a group, names that a key takes, or files, for a value that begins like a path."""
    if key in spelling.groups():
        return spelling.options(key)
    if not value.startswith((".", "/", "~")):
        return spelling.known_keys().get(key, [])
    folder, slash, _ = value.rpartition("/")
    try:
        entries = [*os.scandir(os.path.expanduser(folder + slash) or ".")]
    except OSError:
        return []
    return [f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries]
