"""Text of local files, compressed or not, and the line of a row as an editor numbers it."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from runner.system.errors import UserError
from runner.system.files import check_regular

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMPRESSED = ".gz"
_FIELD_LIMIT = 2**31 - 1  # characters; csv's own is 131,072


def suffix_of(path: Path) -> str:
    """The type of a file by its name, in lower case: ".csv" for reviews.csv and reviews.csv.gz."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix == _COMPRESSED else suffix


def stem_of(path: Path) -> str:
    """The name of a file without its type."""
    return Path(path.stem).stem if path.suffix.lower() == _COMPRESSED else path.stem


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, which is left out.

    Raises:
        UserError: another encoding, with the line; or it cannot be decompressed, or is no regular file.
    """
    check_regular(path)
    raw = path.read_bytes()
    if path.suffix.lower() == _COMPRESSED:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} cannot be decompressed: {error}; copy it again") from error
    encoding = "utf-16" if raw.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        shown = "UTF-16, as its first bytes say" if encoding == "utf-16" else "UTF-8"
        raise UserError(f"{path}, line {line}: this is not {shown} ({error.reason}); save the file in UTF-8") from error
    if "\0" in text.partition("\n")[0]:
        raise UserError(f"{path}, line 1: this is not text in UTF-8 (it has a NUL character); save the file in UTF-8")
    return text


def read_lines(path: Path, column: str) -> list[dict[str, str]]:
    """The lines of a text, without blank ones, each as a row of one column."""
    # Not splitlines: texts may hold other line separators.
    return [{column: line.rstrip("\r")} for line in read_text(path).split("\n") if line.strip()]


def delimiter_of(path: Path, text: str) -> str:
    """The delimiter of a CSV or TSV file: its type's own, unless that leaves the header one column and another one
    divides it."""
    own = "\t" if suffix_of(path) == ".tsv" else ","
    others = [each for each in (",", ";", "\t") if each != own and _columns(text, each) > 1]
    return others[0] if len(others) == 1 and _columns(text, own) == 1 else own


def _columns(text: str, delimiter: str) -> int:
    return len(next(_records(text, delimiter), (0, []))[1])


def place(name: str, row: int) -> str:
    """The place of a row for messages: "reviews.csv, line 13", or "reviews.parquet, row 12" where rows have no lines.

    Args:
        name: the file, or what the rows came from instead.
        row: counted from 0, without the header.
    """
    path = Path(name)
    line = _line(path, row) if path.is_file() else None
    return f"{name}, row {row + 1}" if line is None else f"{name}, line {line}"


def _line(path: Path, row: int) -> int | None:
    suffix = suffix_of(path)
    if suffix not in (".csv", ".tsv", ".jsonl"):
        return None
    text = read_text(path)
    if suffix == ".jsonl":
        numbers = (number for number, line in enumerate(text.split("\n"), 1) if line.strip())
        return next(islice(numbers, row, None), None)
    return line_of_record(text, delimiter_of(path, text), row + 1)


def line_of_record(text: str, delimiter: str, record: int) -> int | None:
    """The first line of a record of a delimited text, whose header is record 0."""
    return next((line for line, _ in islice(_records(text, delimiter), record, None)), None)


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a delimited text, without empty lines, each with its first line."""
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    line = 1
    for fields in reader:
        if fields:
            yield line, fields
        line = reader.line_num + 1
