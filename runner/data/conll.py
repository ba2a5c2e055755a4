"""Files in columns: CoNLL-2003's, with a word and its tags on each line, and CoNLL-U's, with the word's number first.

An empty line ends a sentence. Comments and lines of -DOCSTART- are not data.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from runner.data.files import read_text
from runner.system.errors import UserError

log = logging.getLogger(__name__)

CONLL_U = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_NUMBER = re.compile(r"\d+")
_NO_WORD = re.compile(r"\d+-\d+|\d+\.\d+")  # of CoNLL-U: a contraction such as "im", or a word that is only understood
_NAMED_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.*)")  # of CoNLL-U Plus
_KEY_AND_VALUE = re.compile(r"#\s*[\w.:-]+\s+=\s")  # as in "# text = ..."

Line = tuple[int, list[str]]
"""Number and fields."""


def read_columns(file: Path, words: str, tags: str | None) -> Iterator[dict[str, list[str]]]:
    """The sentences of a file in columns.

    Args:
        words, tags: names of the resulting columns. In CoNLL-U `tags` is the name of a column, such as upos. None: tags
            are not read, and a line may be a word alone.

    Raises:
        UserError: a line has no tag, or not as many columns as the first; or the file has no such column.
    """
    # Not splitlines, nor any white space: words may hold other line separators and non-breaking blanks.
    lines = [line.strip(" \t\r") for line in read_text(file).split("\n")]
    columns = _columns(lines)
    comments = _Comments(lines, everywhere=columns is not None)
    sentences = [*_sentences(file, lines, comments, fewest=1 if tags is None else 2)]
    word, tag = (0, -1) if columns is None else _places(file, columns, words, tags)
    if columns is None and _counts(sentences):
        raise UserError(
            f"{file}: its first column counts the words of each sentence; remove it, so that the word comes first and "
            "its tag last"
        )
    for sentence in sentences:
        rows = [fields for _, fields in sentence if columns is None or not _NO_WORD.fullmatch(fields[0])]
        if rows:
            read = {words: [fields[word] for fields in rows]}
            yield read if tags is None else read | {tags: [fields[tag] for fields in rows]}


def _fields(line: str) -> list[str]:
    return re.split(r"[ \t\r]+", line) if line else []


def _columns(lines: Sequence[str]) -> list[str] | None:
    """The names of the columns of CoNLL-U, or None for another file."""
    named = next(filter(None, map(_NAMED_COLUMNS.fullmatch, lines)), None)
    if named is not None:
        return _fields(named[1].lower())
    first = next((_fields(line) for line in lines if line and not line.startswith(("#", "-DOCSTART-"))), [""])
    is_numbered = _NUMBER.fullmatch(first[0]) or _NO_WORD.fullmatch(first[0])
    return list(CONLL_U) if is_numbered and len(first) == len(CONLL_U) else None


def _places(file: Path, columns: list[str], words: str, tags: str | None) -> tuple[int, int]:
    """The columns of the word and of the tag; of a tag that is not read, any."""
    if tags is not None and tags.lower() not in columns:
        raise UserError(
            f"dataset.tags={tags}: {file} is CoNLL-U, whose columns are {', '.join(columns)}; name one of them, such "
            "as dataset.tags=upos, with dataset.metric=accuracy where its tags are no entities"
        )
    word = words.lower() if words.lower() in columns else "form"
    if word not in columns:
        raise UserError(f"dataset.tokens={words}: {file} has the columns {', '.join(columns)}; name one of them")
    return columns.index(word), columns.index(tags.lower()) if tags is not None else -1


class _Comments:
    """Distinguishes comments from words that begin with #, such as "#" and "#Rome"."""

    def __init__(self, lines: Sequence[str], everywhere: bool) -> None:
        """
        Args:
            everywhere: each line with # is a comment, as in CoNLL-U, where a line of data begins with a number.
        """
        self.everywhere = everywhere
        data = [line for line in lines if line and not line.startswith(("#", "-DOCSTART-"))]
        self.width = len(_fields(next(iter(data or filter(None, lines)), "")))
        self.tabs = bool(data) and all("\t" in line for line in data)
        self.tags = {"O", "#", *(_fields(line)[-1] for line in data)}

    def has(self, line: str, fields: list[str], begins: bool) -> bool:
        """Whether a line is a comment.

        Args:
            begins: it is the first of a sentence, where alone comments are expected.
        """
        if not line.startswith("#") or not (begins or self.everywhere):
            return False
        if self.everywhere or len(fields) != self.width or (self.tabs and "\t" not in line):
            return True
        no_tag = line.startswith("# ") and fields[-1] not in self.tags
        return no_tag or _KEY_AND_VALUE.match(line) is not None


def _sentences(file: Path, lines: Sequence[str], comments: _Comments, fewest: int) -> Iterator[list[Line]]:
    """The lines of each sentence, all with the same number of columns, at least `fewest`."""
    sentence: list[Line] = []
    skipped: list[int] = []
    for number, line in enumerate([*lines, ""], 1):
        fields = line.split("\t") if comments.everywhere and "\t" in line else _fields(line)
        if comments.has(line, fields, begins=not sentence):
            skipped.append(number)
        elif fields and fields[0] != "-DOCSTART-":
            if len(fields) < fewest:
                raise UserError(f"{file}, line {number}: {line!r} has no tag; a line needs a word and its tags")
            if len(fields) != comments.width:
                raise UserError(
                    f"{file}, line {number}: {line!r} has {len(fields)} columns, and the lines above it "
                    f"{comments.width}"
                )
            sentence.append((number, fields))
        elif sentence:
            yield sentence
            sentence = []
    if skipped:
        first = lines[skipped[0] - 1]
        log.info("%s: %d comment lines are no data, the first is line %d: %s", file, len(skipped), skipped[0], first)


def _counts(sentences: Sequence[Sequence[Line]]) -> bool:
    """True if the first column numbers the words of every sentence, and is no word."""
    firsts = [[fields[0] for _, fields in sentence] for sentence in sentences]
    return any(len(first) > 1 for first in firsts) and all(
        first in ([*map(str, range(start, start + len(first)))] for start in (0, 1)) for first in firsts
    )
