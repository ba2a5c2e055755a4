"""Sources of examples: the hub, or local files, whose names say which split they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runner.data import files
from runner.data.splits import Part, Splits
from runner.system.errors import UserError
from runner.system.files import checksums, difference, read_json, write_json
from runner.system.hub import explain

_TRAIN = "train"
_EVALUATION = (("validation", "valid", "dev"), ("test",))  # names of evaluation splits, the preferred ones first
_HINTS = {
    "scripts are no longer supported": "many have a copy as parquet, with dataset.revision=refs/convert/parquet",
    "Config name is missing": "name it with dataset.name",
    "BuilderConfig": "name another with dataset.name",
}
"""Part of an error message of the datasets library -> the remedy."""
_CHECKSUMS = "checksums.prune-distill.json"  # in datasets' cache, next to the files


@dataclass
class Source:
    """A dataset to read: which splits of which files or hub dataset."""

    path: str
    """An existing file or folder, else a hub id."""
    name: str | None = None
    """The hub dataset's configuration."""
    revision: str | None = None
    train_split: str | None = None
    """None: train."""
    evaluation_splits: list[str] = field(default_factory=list)
    """Not given: the first of validation, dev and test that there is."""
    texts: Sequence[str] = ()
    """Columns of a CSV or TSV file that are text, whatever they look like."""
    readers: Mapping[str, files.Reader] = field(default_factory=dict)
    """Suffix -> reader of the task's own format."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the files that can be read."""
        return tuple(dict.fromkeys((*files.SUFFIXES, *self.readers)))


def load(source: Source) -> Splits:
    """Read the splits.

    Raises:
        UserError: there is no such dataset, or it cannot be reached or read.
    """
    local = Path(source.path).expanduser()
    if local.exists():
        return _local(local, source)
    if local.is_absolute() or source.path.startswith((".", "~")) or local.suffix.lower() in source.suffixes:
        raise UserError(f"dataset.path={source.path}: there is no such file or folder")
    return _hub(source)


def _hub(source: Source) -> Splits:
    import datasets
    from datasets import config

    path = source.path
    with explain("dataset", "dataset.path", path):
        try:
            loaded = datasets.load_dataset(path, source.name, revision=source.revision)
        except Exception as error:
            hint = next((remedy for words, remedy in _HINTS.items() if words in str(error)), None)
            if hint is not None:
                reason = " ".join(str(error).split("Example of usage")[0].split())
                raise UserError(f"dataset.path={path}: the dataset cannot be loaded: {reason}; {hint}") from error
            if not _may_be_damage(error):
                raise
            cache = Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")
            raise UserError(
                f"dataset.path={path}: the dataset cannot be loaded: {str(error) or repr(error)}; if its cached "
                f"copy is damaged, delete {cache}: it is created again"
            ) from error
    _check_cache(path, {Path(file["filename"]) for split in loaded.values() for file in split.cache_files})
    parts = {str(name): Part(examples, [(f"{path}, {name} split", len(examples))]) for name, examples in loaded.items()}
    train, evaluation = _choose(source, parts)
    described = path + (f", {source.name}" if source.name else "") + (f"@{source.revision}" if source.revision else "")
    return Splits(train, evaluation, described)


def _choose(source: Source, parts: Mapping[str, Part]) -> tuple[Part | None, dict[str, Part]]:
    """Train and evaluation splits among all splits of a hub dataset."""
    asked = [*([source.train_split] if source.train_split else []), *source.evaluation_splits]
    missing = [name for name in asked if name not in parts]
    if missing:
        raise UserError(
            f"dataset.path={source.path} has no split {', '.join(missing)}; it has {', '.join(parts)}: name them in "
            "dataset.train_split and dataset.evaluation_splits"
        )
    names = source.evaluation_splits
    if not names:
        preferred = [name for kinds in _EVALUATION for name in kinds if name in parts]
        names = preferred[:1]
    train = parts.get(source.train_split or _TRAIN)
    if train is None and not names:
        raise UserError(
            f"dataset.path={source.path} has neither a train nor an evaluation split with a usual name; it has "
            f"{', '.join(parts)}: name them in dataset.train_split and dataset.evaluation_splits"
        )
    return train, {name: parts[name] for name in names}


def _may_be_damage(error: Exception) -> bool:
    """True if an error may come from a damaged file in the cache. Errors of the hub have classes of their own."""
    import pyarrow as pa

    kinds = (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError)
    return isinstance(error, kinds) or type(error) in (OSError, FileNotFoundError, IsADirectoryError, ValueError)


def _check_cache(path: str, cached: set[Path]) -> None:
    """Refuse files in the cache that have changed since they were first read: the datasets library does not check.

    Raises:
        UserError: a file is damaged.
    """
    for folder in {file.parent for file in cached}:
        record = folder / _CHECKSUMS
        known = read_json(record) or {}
        problem = difference(folder, known)
        if problem is not None:
            raise UserError(
                f"dataset.path={path}: the datasets library's cache in {folder} is damaged ({problem}); delete this "
                "folder: it is created again"
            )
        new = [file for file in cached if file.parent == folder and file.name not in known]
        if new:
            with suppress(OSError):  # a read-only folder of someone else, who answers for it
                write_json(record, known | checksums(folder, new))


def _local(path: Path, source: Source) -> Splits:
    if path.is_file():
        return _single(path, source)
    readable = sorted(p for p in path.iterdir() if p.suffix.lower() in source.suffixes)
    if not readable:
        raise UserError(f"dataset.path={path}: this folder has no {', '.join(source.suffixes)} file")
    if source.train_split:
        train = [p for p in readable if source.train_split.lower() in p.stem.lower()]
        if not train:
            raise UserError(
                f"dataset.path={path}: no file named {source.train_split}*, which dataset.train_split asks for"
            )
    else:
        train = [p for p in readable if _has_word(p, _TRAIN)]
    others = [p for p in readable if p not in train]
    evaluation = _evaluation_files(path, source, others)
    if not train and not evaluation:
        raise UserError(
            f"dataset.path={path}: no file name says which split it is: name the files train*, dev*, validation* or "
            "test*, or set dataset.train_split and dataset.evaluation_splits"
        )
    return Splits(
        _part(train, source) if train else None,
        {name: _part(paths, source) for name, paths in evaluation.items()},
        str(path),
    )


def _single(path: Path, source: Source) -> Splits:
    """A single file: an evaluation split if its name says so, else all examples, to be divided."""
    if path.suffix.lower() not in source.suffixes:
        raise UserError(
            f"dataset.path={path}: this type of file cannot be read; those that can are {', '.join(source.suffixes)}"
        )
    asked = [name for name in source.evaluation_splits if name.lower() in path.stem.lower()]
    if source.evaluation_splits and not asked:
        raise UserError(
            f"dataset.evaluation_splits={source.evaluation_splits}: dataset.path={path} is one file, and its name has "
            "none of these; give a folder with a file for each split"
        )
    part = _part([path], source)
    if asked or (not source.train_split and any(_has_word(path, word) for kinds in _EVALUATION for word in kinds)):
        return Splits(None, {path.stem: part}, str(path))
    return Splits(part, {}, str(path))


def _has_word(path: Path, word: str) -> bool:
    """True if a file's name has this word, or a form of it such as "testa", "trainset" or "development"; "latest" and
    "device" do not count."""
    form = re.compile(rf"{word}(?:[a-z]|set|data|ing|elopment)?")
    return any(form.fullmatch(part) for part in re.split(r"[\W\d_]+", path.stem.lower()))


def _evaluation_files(path: Path, source: Source, candidates: list[Path]) -> dict[str, list[Path]]:
    """The files of each evaluation split, by the split's name."""
    splits: dict[str, list[Path]] = {name: [] for name in source.evaluation_splits}
    for file in candidates:
        # The longest name that fits: dev2.csv is in the split "dev2", not also in "dev".
        fitting = sorted((name for name in splits if name.lower() in file.stem.lower()), key=len, reverse=True)
        if len(fitting) > 1 and len(fitting[0]) == len(fitting[1]):
            raise UserError(
                f"dataset.evaluation_splits={source.evaluation_splits}: {file} fits {fitting[0]} and {fitting[1]}; "
                "give longer parts of the files' names"
            )
        if fitting:
            splits[fitting[0]].append(file)
    missing = [name for name, paths in splits.items() if not paths]
    if missing:
        raise UserError(f"dataset.path={path}: no file named {missing[0]}*, which dataset.evaluation_splits asks for")
    if splits:
        return splits
    for words in _EVALUATION:
        usual = [p for p in candidates if any(_has_word(p, word) for word in words)]
        if usual:
            return {words[0]: usual}
    return {}


def _part(paths: list[Path], source: Source) -> Part:
    import datasets

    tables = [files.read(path, source.texts, source.readers) for path in paths]
    try:
        whole = datasets.concatenate_datasets(tables)
    except Exception as error:  # datasets and pyarrow raise several kinds
        raise UserError(
            f"{', '.join(map(str, paths))}: their columns differ, so they cannot be one split: {error}"
        ) from error
    return Part(whole, [(str(path), len(table)) for path, table in zip(paths, tables, strict=True)])
