"""Where examples come from: the hub, or local CSV, JSON, JSON-lines and parquet files."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data import arrow
from runner.data.splits import Part, Splits
from runner.system.errors import UserError
from runner.system.files import checksums, difference, read_json, write_json
from runner.system.hub import explain

if TYPE_CHECKING:
    import datasets

Rows = Iterable[Mapping[str, Any]]

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_TRAIN = "train"
_EVALUATION = (("validation", "valid", "dev"), ("test",))  # names of evaluation splits, those that are preferred first
_HINTS = {
    "scripts are no longer supported": "many have a copy as parquet, with dataset.revision=refs/convert/parquet",
    "Config name is missing": "name it with dataset.name",
    "BuilderConfig": "name another with dataset.name",
}
"""What to do about what the datasets library says of a dataset on the hub."""
_CUT = 60  # characters of a value or a row that a message shows
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
    """Columns of a CSV or TSV file that are text, whatever they look like."""
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
    if local.is_absolute() or source.path.startswith((".", "~")) or local.suffix.lower() in source.suffixes:
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


def ids(part: Part, column: str | None) -> list[str]:
    """The ids of the examples, as text.

    Args:
        column: the data's name of the column `id`; None: they have none, and the numbers of the rows are taken.

    Raises:
        UserError: an example has none.
    """
    if column is None:
        return [str(row) for row in part.rows]
    found = arrow.table(part.examples, "id")["id"].to_pylist()
    without = next((i for i, id in enumerate(found) if id is None or id == ""), None)
    if without is not None:
        raise UserError(f"{part.where(without)}: column {column}: there is no id")
    return [str(id) for id in found]


def check_text(part: Part, column: str, told: str, missing: bool = False) -> None:
    """Refuse a column that holds anything but text.

    Args:
        told: its name in the data, for messages.
        missing: values may be missing.

    Raises:
        UserError: with the rows.
    """
    values = arrow.table(part.examples, column)[column].to_pylist()
    bad = [i for i, value in enumerate(values) if not (isinstance(value, str) or (missing and value is None))]
    if bad:
        raise UserError(
            f"{part.where_all(bad)}: column {told}: {len(bad)} of {len(values)} are no text, such as {values[bad[0]]!r}"
        )


def _hub(source: Source) -> Splits:
    import datasets
    from datasets import config

    path = source.path
    with explain("dataset", "dataset.path", path):
        try:
            loaded = datasets.load_dataset(path, source.name, revision=source.revision)
        except Exception as error:
            hint = next((told for words, told in _HINTS.items() if words in str(error)), None)
            if hint is not None:
                said = " ".join(str(error).split("Example of usage")[0].split())
                raise UserError(f"dataset.path={path}: the dataset cannot be loaded: {said}; {hint}") from error
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
    train = parts.get(source.train_split or _TRAIN)
    if train is None and not names:
        raise UserError(
            f"dataset.path={source.path} has neither a train nor an evaluation split of a usual name; it has "
            f"{', '.join(parts)}: name them in dataset.train_split and dataset.evaluation_splits"
        )
    return train, {name: parts[name] for name in names}


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
        known = read_json(record) or {}
        problem = difference(folder, known)
        if problem is not None:
            raise UserError(
                f"dataset.path={path}: what the datasets library keeps in {folder} is damaged ({problem}); delete this "
                "folder, and it is made again"
            )
        new = [file for file in files if file.parent == folder and file.name not in known]
        if new:
            with suppress(OSError):  # others' folder, and read-only: then they answer for it
                write_json(record, known | checksums(folder, new))


def _local(path: Path, source: Source) -> Splits:
    if path.is_file():
        return _single(path, source)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in source.suffixes)
    if not files:
        raise UserError(f"dataset.path={path}: no {', '.join(source.suffixes)} file in this folder")
    if source.train_split:
        train = [p for p in files if source.train_split.lower() in p.stem.lower()]
        if not train:
            raise UserError(
                f"dataset.path={path}: no file named {source.train_split}*, which dataset.train_split asks for"
            )
    else:
        train = [p for p in files if _has_word(p, _TRAIN)]
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


def _single(path: Path, source: Source) -> Splits:
    """One file: an evaluation split if its name says so, else all there is, to be divided."""
    if path.suffix.lower() not in source.suffixes:
        raise UserError(
            f"dataset.path={path}: this is none of the files that can be read, {', '.join(source.suffixes)}"
        )
    asked = [name for name in source.evaluation_splits if name.lower() in path.stem.lower()]
    if source.evaluation_splits and not asked:
        raise UserError(
            f"dataset.evaluation_splits={source.evaluation_splits}: dataset.path={path} is one file, and its name has "
            "none of these; name a folder with a file for each split"
        )
    part = _files([path], source)
    if asked or (not source.train_split and any(_has_word(path, word) for kinds in _EVALUATION for word in kinds)):
        return Splits(None, {path.stem: part}, str(path))
    return Splits(part, {}, str(path))


def _has_word(path: Path, word: str) -> bool:
    """Whether one of the words in a file's name is this one, or a form of it such as "testa", "trainset" or
    "development": not "latest", nor "device"."""
    form = re.compile(rf"{word}(?:[a-z]|set|data|ing|elopment)?")
    return any(form.fullmatch(part) for part in re.split(r"[\W\d_]+", path.stem.lower()))


def _evaluation_files(path: Path, source: Source, files: list[Path]) -> dict[str, list[Path]]:
    """The files of each evaluation split, by the split's name."""
    found: dict[str, list[Path]] = {name: [] for name in source.evaluation_splits}
    for file in files:
        # The longest name that fits: dev2.csv is of "dev2", not of "dev" too.
        fitting = sorted((name for name in found if name.lower() in file.stem.lower()), key=len, reverse=True)
        if len(fitting) > 1 and len(fitting[0]) == len(fitting[1]):
            raise UserError(
                f"dataset.evaluation_splits={source.evaluation_splits}: {file} fits {fitting[0]} and {fitting[1]}; "
                "give more of the files' names"
            )
        if fitting:
            found[fitting[0]].append(file)
    missing = [name for name, of in found.items() if not of]
    if missing:
        raise UserError(f"dataset.path={path}: no file named {missing[0]}*, which dataset.evaluation_splits asks for")
    if found:
        return found
    for words in _EVALUATION:
        of = [p for p in files if any(_has_word(p, word) for word in words)]
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

    suffix = path.suffix.lower()
    try:
        own = source.own[suffix](path) if suffix in source.own else None
        if own is not None:
            return _records(path, [dict(row) for row in own])
        if suffix == ".parquet":
            # Not Dataset.from_parquet: it reads a copy in datasets' cache, which it does not check.
            return _plain(datasets.Dataset(pyarrow.parquet.read_table(path)))
        if suffix in (".csv", ".tsv"):
            return datasets.Dataset(_delimited(path, source.texts))
        return _records(path, _json(path))
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets raise a dozen kinds
        raise UserError(f"{path} cannot be read as {suffix[1:]}: {error}") from error


def read_text(path: Path) -> str:
    """A file in UTF-8, without a byte order mark. Raises UserError, with the line, if it is in another encoding."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: this is no UTF-8 ({error.reason}); save the file in UTF-8") from error


def _delimited(path: Path, texts: Sequence[str]) -> Any:
    """A table with a header line. Text stays as it is: "NA" and "null" are words, "007" is no number."""
    import pyarrow as pa

    raw = read_text(path).encode() + b"\n"  # else pyarrow refuses a header alone; it leaves out empty lines
    if not raw.strip():
        raise UserError(f"{path}: the file is empty: there is no first line with the names of the columns")
    table = _parsed(path, raw, texts)
    lines = sum(1 for line in raw.splitlines() if line.strip()) - 1
    if path.suffix.lower() == ".tsv" and lines > len(table):
        # Many of these files, GLUE's among them, know no quotation: one mark would swallow all lines to the next one.
        raise UserError(
            f"{path}: {lines} lines make {len(table)} rows: a quotation mark that opens a field joins it with the "
            "lines that follow; double the marks within the fields, or write the file as CSV"
        )
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: its first line has the column {', '.join(twice)} twice; give them different names")
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_null)
    others = [field.name for field in table.schema if not any(is_kind(field.type) for is_kind in known)]
    return _parsed(path, raw, [*texts, *others]) if others else table  # dates and times: nobody asked for these


def _parsed(path: Path, raw: bytes, texts: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.csv

    bad: list[Any] = []

    def noted(row: Any) -> str:
        bad.append(row)
        return "skip"

    table = pyarrow.csv.read_csv(
        io.BytesIO(raw),
        # In one block, of which the kinds of the columns are read, and by one thread, else rows have no numbers.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=min(len(raw) + 1, 2**31 - 1)),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
            newlines_in_values=True,
            invalid_row_handler=noted,
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
    )
    if bad:
        more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
        raise UserError(
            f"{path}, row {bad[0].number - 1}: {bad[0].actual_columns} columns, where the first line has "
            f"{bad[0].expected_columns}: {_cut(bad[0].text)!r}{more}; quote what holds a delimiter"
        )
    return table


def _json(path: Path) -> list[dict[str, Any]]:
    """A list of records, or a record on each line. Raises UserError, with the place, for anything else."""
    text = read_text(path)
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


def _records(path: Path, records: list[dict[str, Any]]) -> datasets.Dataset:
    """Records as a table with the columns of all of them; null where a record lacks one. Raises UserError, with row
    and column, for a value of another kind than those before it."""
    import datasets
    import pyarrow as pa

    columns = {
        name: [row.get(name) for row in records] for name in dict.fromkeys(key for row in records for key in row)
    }
    try:
        return datasets.Dataset.from_dict(columns)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for name, values in columns.items():
            at = _of_another_kind(values)
            if at is not None:
                raise UserError(
                    f"{path}, row {at + 1}: column {name}: {_cut(str(values[at]))!r} is of another kind than the rows "
                    "before it: make all of a column text, or all numbers"
                ) from None
        raise


def _of_another_kind(values: list[Any]) -> int | None:
    """The first value that cannot be in one column with those before it."""
    import pyarrow as pa

    def fits(count: int) -> bool:
        try:
            pa.array(values[:count])
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return False
        return True

    if fits(len(values)):
        return None
    low, high = 0, len(values)  # as many fit, as many do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return high - 1


def _plain(examples: datasets.Dataset) -> datasets.Dataset:
    """The same with the kinds of text and numbers that the other formats give, so that files of several formats can be
    one split."""
    features = {name: _plain_kind(feature) for name, feature in examples.features.items()}
    if features == examples.features:
        return examples
    import datasets

    return datasets.Dataset(examples.data.table.cast(datasets.Features(features).arrow_schema))


def _plain_kind(feature: Any) -> Any:
    import datasets

    if isinstance(feature, dict):
        return {name: _plain_kind(each) for name, each in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return datasets.List(_plain_kind(feature.feature))
    if type(feature) is not datasets.Value:
        return feature
    kind = feature.dtype
    if kind == "large_string":
        return datasets.Value("string")
    if re.fullmatch(r"u?int\d+", kind):
        return datasets.Value("int64")
    return datasets.Value("float64") if re.fullmatch(r"float\d+", kind) else feature


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else f"{text[:_CUT]}..."
