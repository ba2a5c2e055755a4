"""Misspelled options, keys and paths. What the command line has of them is refused before torch is imported, which
takes seconds; everything else is found when Hydra composes. Nothing but the standard library is imported here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

N_OF_M = ((1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (1, 2), (1, 8), (2, 16), (4, 16))
"""Options of the group pattern that --help lists, and whose names cannot be file names on Windows."""
MOVED_KEYS = {"schedule.warmup_steps": "train.warmup_steps"}
"""Configuration keys of earlier versions and their names today."""
ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "accumulation_steps": "gradient_accumulation_steps",
    "sparsity": "target_sparsity",
    "target": "target_sparsity",
    "warmup": "warmup_steps",
    "max_length": "max_seq_length",
    "fp16": "precision",
    "bf16": "precision",
}
"""Names that other tools give to keys."""
KEYS = Path(__file__).parents[1] / "config" / "keys.txt"
"""All keys, and after some their values, made by `python -m runner.reference keys`."""
FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info",
)  # fmt: skip
"""Hydra's long flags; an unambiguous beginning of one is enough."""
COMPLETION = ("-sc", "--shell-completion")
"""Hydra's flags by which a shell asks for tab completion."""
_CONF = Path(__file__).parents[2] / "conf"
_OTHER_OPTIONS = re.compile(r"-cd|-cn|-cp|--config-(dir|name|path)|[+]*hydra\.searchpath|[+]*plugins=")
"""Arguments that add options and keys of the user's own."""
_PLAIN = re.compile(r"([a-z_]+(?:\.\w+)*)=([^\s'\"\[\]{}()$\\]*)")
_OPTION = re.compile(r"(?!(null|none|true|false)$)(?=.*[a-z])[\w:.-]+", re.IGNORECASE)
_OWN = {
    "model": "a model of the hub or of a folder is model=hub model.path={0}",
    "dataset": "your own data are dataset=classify (or tag, or span) dataset.path={0}",
}
"""What a path or an id in place of an option is meant to be, by group."""
_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".conll", ".conllu")
_FOLDERS = ("model.path", "model.finetuned", "model.sparse", "distill.teacher")


def mistake(arguments: Sequence[str]) -> str | None:
    """The message for the first misspelled flag, option, key or path of a command line; None if none is seen here."""
    for argument, after in pairwise([*arguments, ""]):
        if argument.startswith("--") and (problem := _no_flag(argument, after)):
            return problem
    for flag, question in pairwise([*arguments, ""]):  # its words are no keys
        if flag in COMPLETION:
            right = re.fullmatch("(install|uninstall|query)=(bash|zsh|fish)", question)
            return None if right else f"{flag} {question}: expected install=SHELL with bash, zsh or fish"
    if has_own_options(arguments):
        return None
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    for argument in arguments:
        plain = _PLAIN.fullmatch(argument)
        if plain is not None and (problem := next(_mistakes(plain[1], plain[2], sweep), None)):
            return problem
    return None


def has_own_options(arguments: Sequence[str]) -> bool:
    """Whether a command line adds a folder with options and keys of the user's own."""
    return any(_OTHER_OPTIONS.match(argument) for argument in arguments)


def _mistakes(key: str, value: str, sweep: bool) -> Iterator[str]:
    if key in groups():
        available = options(key)
        for option in value.split(",") if sweep else [value]:
            size = key == "pattern" and re.fullmatch(r"\d{1,9}[x:]\d{1,9}", option)
            nested = key in _OWN and "/" in option and not (_CONF / key / f"{option}.yaml").is_file()
            name = nested or _OPTION.fullmatch(option)
            if key != "hydra" and name and option not in available and not size:
                yield no_option("", key, option, available)
    else:
        values = known_keys()
        known = list(values)
        parents = {key.rpartition(".")[0] for key in known} | {key.partition(".")[0] for key in known}
        free = key.startswith(("hydra.", "allocation.layers.")) or key in MOVED_KEYS
        right = free or key in known or key in parents or _is_field(key)
        if not right and (meant := nearest(key, [*known, *groups()])):
            first = value.partition(",")[0] if sweep else value
            yield f"{key}={first}: there is no key {key}; did you mean {meant}?"
        for given in value.split(",") if sweep else [value]:
            if values.get(key) and _OPTION.fullmatch(given) and given not in values[key]:
                yield no_value(key, given, values[key])
        if not sweep and value:
            yield from _missing(key, value)


def _no_flag(argument: str, after: str) -> str | None:
    """The message for a flag that Hydra does not have; None if it has it.

    Args:
        after: the next argument, which may be its value.
    """
    flag, equals, value = argument.partition("=")
    if flag == "--" or any(known.startswith(flag) for known in FLAGS):
        return None
    key = nearest(flag.lstrip("-"), [*known_keys(), *groups()])
    if like := get_close_matches(flag, FLAGS, 1, 0.8):
        return f"{flag}: there is no such flag; did you mean {like[0]}?"
    if key is None:
        return f"{flag}: there is no such flag; a run is configured by KEY=VALUE, see --help"
    value = value if equals else after if after and not re.match("-|.*=", after) else "true"
    return f"{flag}: a run is configured by KEY=VALUE without dashes; did you mean {key}={value}?"


def known_keys() -> dict[str, list[str]]:
    """Every key, with its values if it takes one of a few names, else none."""
    lines = KEYS.read_text(encoding="utf-8").splitlines()
    return {key: values.split() for key, _, values in (line.partition(" ") for line in lines)}


def _is_field(key: str) -> bool:
    """Whether a class of the program has such a field, which may be newer than the list of keys. A key without a dot
    is a field of the experiment itself."""
    group, _, name = key.rpartition(".")
    root = _CONF.parent
    newer = root / "runner" / "config" / "experiment.py"
    files = (file for package in ("pruning", "runner") for file in (root / package).rglob("*.py")) if group else [newer]
    return any(re.search(rf"^    {name}: ", file.read_text(encoding="utf-8"), re.MULTILINE) for file in files)


def _missing(key: str, value: str) -> Iterator[str]:
    """A path like one that exists; others are no mistakes of spelling."""
    missing = _absent(key, value)
    if missing is not None and missing[1]:
        yield "".join(missing)


def missing_place(arguments: Sequence[str]) -> str | None:
    """The message for the first file or folder of a command line that does not exist, as it is found when it is read;
    None if there is none, or if this is a sweep, in which other jobs may run, or a look at the configuration alone."""
    flags = ("-m", "--multirun", "-c", "--cfg", "--info", *COMPLETION)
    if has_own_options(arguments) or any(argument.partition("=")[0] in flags for argument in arguments):
        return None
    plain = filter(None, map(_PLAIN.fullmatch, arguments))
    absent = (_absent(given[1], given[2]) for given in plain if given[2])
    return next(("".join(message) for message in absent if message is not None), None)


def _absent(key: str, value: str) -> tuple[str, str] | None:
    """The message for a path that does not exist and its end, the one that was probably meant; None for any other
    value."""
    path = Path(os.path.expanduser(value))
    local = path.is_absolute() or value.startswith((".", "~"))
    data = key == "dataset.path" and (local or path.name.lower().removesuffix(".gz").endswith(_FILES))
    if not (data or (key in _FOLDERS and local)) or os.path.lexists(path):
        return None
    return f"{key}={value}: there is no such {'file or folder' if data else 'folder'}", did_you_mean(path)


def groups() -> list[str]:
    """The groups of options in conf/, sorted."""
    return sorted(folder.name for folder in _CONF.iterdir() if folder.is_dir() and any(folder.iterdir()))


def options(group: str) -> list[str]:
    """The options of a group in conf/, sorted."""
    names = {file.stem for file in (_CONF / group).glob("*.yaml")}
    return sorted(names | ({f"{n}:{m}" for n, m in N_OF_M} if group == "pattern" else set()))


def no_option(place: str, group: str, option: str, available: Sequence[str]) -> str:
    """The message for an option that a group does not have.

    Args:
        place: the file that names it, as the beginning of the message; "": the command line.
        available: the options that it has.
    """
    start = f"{place}{group}={option}: there is no {group}/{option}"
    if option.isdigit() and group == "pattern":
        return f'{start}; YAML reads 2:4 as a number unless it is quoted: write "2:4"'
    if group == "pattern" and re.fullmatch(r"0+x\d+|\d+x0+", option):
        return f"{start}; a block needs at least one of each; pattern=rows and pattern=columns prune whole ones"
    meant = get_close_matches(option.lower().removesuffix(".yaml"), available, 1)
    if group in _OWN and (
        re.search(r"[/\\]", option) or option.lower().endswith(_FILES) or (not meant and "." in option)
    ):
        return f"{start}; {_OWN[group].format(option)}"
    start += f"; did you mean {group}={meant[0]}?" if meant else "."
    any_size = ", and any NxM and N:M" if group == "pattern" else ""
    return f"{start} Available options: {', '.join(available)}{any_size}" if available else start


def no_value(key: str, value: str, names: Sequence[str]) -> str:
    """The message for a value that is none of the names that a key takes."""
    meant = get_close_matches(value.lower(), names, 1)
    end = f"; did you mean {key}={meant[0]}?" if meant else ""
    return f"{key}={value}: choose from {', '.join(names)}{end}"


def nearest(key: str, candidates: Iterable[str]) -> str | None:
    """The key that was probably meant, by its last part; None if no name is like it."""
    by_name: dict[str, list[str]] = {}
    for candidate in candidates:
        by_name.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    group, _, name = key.lower().replace("-", "_").rpartition(".")
    name = ALIASES.get(name, name)
    like = [name] if name in by_name else get_close_matches(name, by_name, 1, 0.7)
    return get_close_matches(f"{group}.{like[0]}", by_name[like[0]], 1, 0)[0] if like else None


def did_you_mean(path: Path) -> str:
    """The end of a message about a path: the name in its folder that was probably meant, or the run of that name in
    outputs/; empty for a path that exists."""
    if os.path.lexists(path):  # false, not an error, for a name that is too long
        return ""
    folders = [path.parent, *([Path("outputs")] if path == Path(path.name) else [])]
    for folder in folders:
        try:
            names = sorted(entry.name for entry in folder.iterdir())
        except OSError:  # it does not exist either, or cannot be read
            continue
        if meant := get_close_matches(path.name, names, 1):
            return f"; did you mean {folder / meant[0]}?"
    return ""
