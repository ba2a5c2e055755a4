"""Local files as tables: CSV, TSV, JSON, JSON-lines, parquet. Messages name the file and the row."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data.text_files import delimiter_of, place, read_text, suffix_of
from runner.system.errors import UserError
from runner.system.files import check_regular

if TYPE_CHECKING:
    import datasets

Rows = Iterable[Mapping[str, Any]]
Reader = Callable[[Path], Rows | None]
"""Reads a file in a task's own format; None if the file is not in it."""
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_CUT = 60  # characters of a value or a row that a message shows


def read(path: Path, texts: Sequence[str] = (), readers: Mapping[str, Reader] | None = None) -> datasets.Dataset:
    """A file as a table.

    Args:
        texts: columns of a CSV or TSV file that are text, whatever they look like.
        readers: suffix -> reader of a task's own format.

    Raises:
        UserError: the file cannot be read.
    """
    import datasets
    import pyarrow.parquet

    check_regular(path)
    suffix = suffix_of(path)
    try:
        rows = readers[suffix](path) if readers and suffix in readers else None
        if rows is not None:
            return _records(path, [dict(row) for row in rows])
        if suffix == ".parquet":
            # Not Dataset.from_parquet: it reads a copy in datasets' cache without checking it.
            return common_types(datasets.Dataset(pyarrow.parquet.read_table(path)))
        if suffix in (".csv", ".tsv"):
            return datasets.Dataset(_delimited(path, texts))
        return _records(path, _json(path))
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets raise a dozen kinds
        raise UserError(f"{path} cannot be read as {suffix[1:]}: {error}") from error


def _delimited(path: Path, texts: Sequence[str]) -> Any:
    """A table with a header line. In columns of text "NA" and "null" are words, and "007" is not a number."""
    import pyarrow as pa

    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty; its first line must hold the names of the columns")
    delimiter = delimiter_of(path, text)
    table = _parsed(path, text, delimiter, texts)
    if suffix_of(path) == ".tsv":
        _check_quotation(path, text, len(table))
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_null)
    others = [field.name for field in table.schema if not any(is_kind(field.type) for is_kind in known)]
    if others:  # no task reads dates or times
        table = _parsed(path, text, delimiter, [*texts, *others])
    return table.rename_columns(_distinct(table.column_names))


def _check_quotation(path: Path, text: str, rows: int) -> None:
    """Refuse lines that a quotation mark joins: many TSV files, GLUE's among them, do not quote, so that one mark would
    swallow all lines to the next one."""
    lines = sum(1 for line in re.split("\r\n|\r|\n", text) if line.strip()) - 1
    if lines > rows:
        raise UserError(
            f"{path}: {lines} lines make {rows} rows: a quotation mark that opens a field joins it with the lines that "
            "follow; double the marks within the fields, or write the file as CSV"
        )


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of columns; those without a name, or with one that occurs twice, get their number."""
    return [
        name if name and names.count(name) == 1 else f"{name} (column {number})".strip()
        for number, name in enumerate(names, 1)
    ]


def _parsed(path: Path, text: str, delimiter: str, texts: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.csv

    raw = text.encode() + b"\n"  # pyarrow refuses a header without an end of line, and skips empty lines
    bad: list[Any] = []

    def skip(row: Any) -> str:
        bad.append(row)
        return "skip"

    table = pyarrow.csv.read_csv(
        io.BytesIO(raw),
        # One block, because types are inferred from the first; one thread, because otherwise rows have no numbers.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=min(len(raw) + 1, 2**31 - 1)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
    )
    if bad:
        more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
        raise UserError(
            f"{place(str(path), bad[0].number - 2)}: {bad[0].actual_columns} columns, where the first line has "
            f"{bad[0].expected_columns}: {_cut(bad[0].text)!r}{more}; quote fields that hold a delimiter"
        )
    return table


def _json(path: Path) -> list[dict[str, Any]]:
    """Records from a JSON list, from `{"data": [...]}`, or from one record on each line. Raises UserError, with the
    place, otherwise."""
    text = read_text(path)
    whole = _whole(text)
    listed = whole.get("data") if isinstance(whole, dict) else whole
    if isinstance(listed, list):
        records = {f"record {number}": value for number, value in enumerate(listed, 1)}
    elif whole is not None:
        records = {"record 1": whole}
    else:
        records = {}
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold other line separators
            if line.strip():
                try:
                    records[f"line {number}"] = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path} cannot be read as {suffix_of(path)[1:]}: line {number}: {error}"
                    ) from error
    bad = next((at for at, value in records.items() if not isinstance(value, dict)), None)
    if bad is not None:
        raise UserError(f'{path}, {bad}: not a record such as {{"column": value, ...}}')
    return list(records.values())


def _whole(text: str) -> Any:
    """The value of a text that is one list or one record; None if each line is a record of its own."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    with suppress(json.JSONDecodeError):
        return json.loads(text) if text.lstrip().startswith("{") else None
    return None


def _records(path: Path, records: list[dict[str, Any]]) -> datasets.Dataset:
    """A table with the columns of all records; null where a record lacks one. Raises UserError, with row and column,
    for a value of another type than those above it."""
    import datasets
    import pyarrow as pa

    columns = {
        name: [row.get(name) for row in records] for name in dict.fromkeys(key for row in records for key in row)
    }
    try:
        return datasets.Dataset.from_dict(columns)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for name, values in columns.items():
            at = _first_misfit(values)
            if at is not None:
                raise UserError(
                    f"{place(str(path), at)}: column {name}: {_cut(str(values[at]))!r} is of another type than the "
                    "rows above it: make the whole column text, or numbers"
                ) from None
        raise


def _first_misfit(values: list[Any]) -> int | None:
    """Index of the first value that cannot be in one column with those above it."""
    import pyarrow as pa

    def fits(count: int) -> bool:
        try:
            pa.array(values[:count])
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return False
        return True

    if fits(len(values)):
        return None
    low, high = 0, len(values)  # `low` values fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return high - 1


def common_types(examples: datasets.Dataset) -> datasets.Dataset:
    """The table with the types of text and numbers that the other formats give, so that files of several formats can be
    one split."""
    features = {name: _common_type(feature) for name, feature in examples.features.items()}
    if features == examples.features:
        return examples
    import datasets

    return datasets.Dataset(examples.data.table.cast(datasets.Features(features).arrow_schema))


def _common_type(feature: Any) -> Any:
    import datasets

    if isinstance(feature, dict):
        return {name: _common_type(each) for name, each in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return datasets.List(_common_type(feature.feature))
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
