"""Where examples come from: the hub, or local CSV, JSON, JSON-lines and parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import seals
from runner.errors import UserError
from runner.hub import explain
from runner.tasks.splits import Part, Splits

if TYPE_CHECKING:
    import datasets

Rows = Iterable[Mapping[str, Any]]

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_TRAIN = "train"
_EVALUATION = (("validation", "valid", "dev"), ("test",))  # names of evaluation splits, those that are preferred first
_CHECKSUMS = "checksums.prune-distill.json"  # in datasets' cache, beside the files it is of


@dataclass
class Source:
    """What to read."""

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
    """Columns of a CSV file that are text, whatever they look like."""
    own: Mapping[str, Callable[[Path], Rows | None]] = field(default_factory=dict)
    """By suffix: reads a file in the task's own format; None if it is not in it."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that can be read."""
        return (*_SUFFIXES, *(suffix for suffix in self.own if suffix not in _SUFFIXES))


def load(source: Source) -> Splits:
    """Read the splits.

    Raises:
        UserError: nothing there, not reachable, or not readable.
    """
    local = Path(source.path).expanduser()
    if local.exists():
        return _local(local, source)
    if local.is_absolute() or source.path.startswith(".") or local.suffix in source.suffixes:
        raise UserError(f"dataset.path={source.path}: there is no such file or folder")
    return _hub(source)


def renamed(part: Part, columns: Mapping[str, str]) -> Part:
    """The columns that a task needs, under its names.

    Args:
        columns: our name -> the data's.

    Raises:
        UserError: a column is missing.
    """
    there = part.examples.column_names
    twice = [ours for ours, theirs in columns.items() if list(columns.values()).count(theirs) > 1]
    if twice:
        told = " and ".join(f"dataset.{ours}={columns[ours]}" for ours in twice)
        raise UserError(f"{told}: the same column twice")
    missing = {ours: theirs for ours, theirs in columns.items() if theirs not in there}
    if missing:
        keys = " ".join(f"dataset.{ours}=COLUMN" for ours in missing)
        raise UserError(
            f"{part.name}: the columns {', '.join(missing.values())} are missing; it has {', '.join(there)}. "
            f"Name the columns with {keys}"
        )
    table = part.examples.select_columns(list(columns.values()))
    # In two steps, for a name may be there already: that of another column.
    for to in ("_{}".format, str):
        table = table.rename_columns(dict(zip(table.column_names, map(to, columns), strict=True)))
    return part.holding(table)


def _hub(source: Source) -> Splits:
    import datasets
    from datasets import config

    path = source.path
    with explain("dataset", "dataset.path", path):
        try:
            loaded = datasets.load_dataset(path, source.name, revision=source.revision)
        except Exception as error:
            if not _may_be_of_the_disk(error):
                raise
            cache = Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")
            raise UserError(
                f"dataset.path={path}: the dataset cannot be loaded: {str(error) or repr(error)}; if what the datasets "
                f"library keeps of it is damaged, delete {cache}, and it is made again"
            ) from error
    _check_cache(path, {Path(file["filename"]) for split in loaded.values() for file in split.cache_files})
    parts = {str(name): Part(examples, [(f"{path}, {name} split", len(examples))]) for name, examples in loaded.items()}
    train, evaluation = _chosen(source, parts)
    described = path + (f", {source.name}" if source.name else "") + (f"@{source.revision}" if source.revision else "")
    return Splits(train, evaluation, described)


def _chosen(source: Source, parts: Mapping[str, Part]) -> tuple[Part | None, dict[str, Part]]:
    """Train and evaluation among all splits of a hub's dataset."""
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
    return parts.get(source.train_split or _TRAIN), {name: parts[name] for name in names}


def _may_be_of_the_disk(error: Exception) -> bool:
    """Whether an error may come from a file that is not what datasets wrote. Those of the hub have classes of their
    own."""
    import pyarrow as pa

    kinds = (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError)
    return isinstance(error, kinds) or type(error) in (OSError, FileNotFoundError, IsADirectoryError, ValueError)


def _check_cache(path: str, files: set[Path]) -> None:
    """Refuse files of datasets' cache that have changed since they were first read: datasets itself does not look.

    Raises:
        UserError: a file is damaged.
    """
    for folder in {file.parent for file in files}:
        record = folder / _CHECKSUMS
        known = seals.read_json(record) or {}
        problem = seals.difference(folder, known)
        if problem is not None:
            raise UserError(
                f"dataset.path={path}: what the datasets library keeps in {folder} is damaged ({problem}); delete this "
                "folder, and it is made again"
            )
        new = [file for file in files if file.parent == folder and file.name not in known]
        if new:
            with suppress(OSError):  # others' folder, and read-only: then they answer for it
                seals.write_json(record, known | seals.checksums(folder, new))


def _local(path: Path, source: Source) -> Splits:
    if path.is_file():
        # Which split it is, or both with a hold-out, depends on its name.
        words = [word for kinds in _EVALUATION for word in kinds] + source.evaluation_splits
        part = _files([path], source)
        if any(word.lower() in path.stem.lower() for word in words):
            return Splits(None, {path.stem: part}, str(path))
        return Splits(part, {}, str(path))
    files = sorted(p for p in path.iterdir() if p.suffix in source.suffixes)
    if not files:
        raise UserError(f"dataset.path={path}: no {', '.join(source.suffixes)} file in this folder")
    train = [p for p in files if (source.train_split or _TRAIN).lower() in p.stem.lower()]
    others = [p for p in files if p not in train]
    evaluation = _evaluation_files(path, source, others)
    if not train and not evaluation:
        raise UserError(
            f"dataset.path={path}: name the files train*, dev*, validation* or test*, to tell the splits apart (or say "
            "dataset.train_split and dataset.evaluation_splits)"
        )
    return Splits(
        _files(train, source) if train else None,
        {name: _files(of, source) for name, of in evaluation.items()},
        str(path),
    )


def _evaluation_files(path: Path, source: Source, files: list[Path]) -> dict[str, list[Path]]:
    """The files of each evaluation split, by the split's name."""
    found = {name: [p for p in files if name.lower() in p.stem.lower()] for name in source.evaluation_splits}
    missing = [name for name, of in found.items() if not of]
    if missing:
        raise UserError(f"dataset.path={path}: no file named {missing[0]}*, which dataset.evaluation_splits asks for")
    if found:
        return found
    for words in _EVALUATION:
        of = [p for p in files if any(word in p.stem.lower() for word in words)]
        if of:
            return {words[0]: of}
    return {}


def _files(paths: list[Path], source: Source) -> Part:
    import datasets

    read = [_file(path, source) for path in paths]
    try:
        whole = datasets.concatenate_datasets(read)
    except Exception as error:  # datasets and pyarrow raise several kinds
        raise UserError(
            f"{', '.join(map(str, paths))}: their columns differ, so that they are no one split: {error}"
        ) from error
    return Part(whole, [(str(path), len(each)) for path, each in zip(paths, read, strict=True)])


def _file(path: Path, source: Source) -> datasets.Dataset:
    import datasets
    import pyarrow.parquet

    try:
        own = source.own[path.suffix](path) if path.suffix in source.own else None
        if own is not None:
            return datasets.Dataset.from_list([dict(row) for row in own])
        if path.suffix == ".parquet":
            # Not Dataset.from_parquet: it reads a copy in datasets' cache, which it does not check.
            return datasets.Dataset(pyarrow.parquet.read_table(path))
        if path.suffix in (".csv", ".tsv"):
            return datasets.Dataset(_delimited(path, source.texts))
        return datasets.Dataset.from_list(_json(path))
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets raise a dozen kinds
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _delimited(path: Path, texts: Sequence[str]) -> Any:
    """A table with a header line. Text stays as it is: "NA" and "null" are words, "007" is no number."""
    import pyarrow as pa
    import pyarrow.csv

    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
    )


def _json(path: Path) -> list[dict[str, Any]]:
    """A list of records, or a record on each line. Raises UserError, with the place, for anything else."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        found = {f"record {number}": value for number, value in enumerate(json.loads(text), 1)}
    else:
        found = {}
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold other ends of lines
            if line.strip():
                try:
                    found[f"line {number}"] = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path} cannot be read as {path.suffix[1:]}: line {number}: {error}") from error
    bad = next((place for place, value in found.items() if not isinstance(value, dict)), None)
    if bad is not None:
        raise UserError(f'{path}, {bad}: no record, as in {{"column": value, ...}}')
    return list(found.values())
