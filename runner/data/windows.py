"""Windows of a paragraph: a question with as much of its paragraph as fits, and the tokens of the answer in each."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.data import arrow
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from transformers import PreTrainedTokenizerBase

_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")  # Unicode's categories of blanks, control and format characters
_MARKS = ("Mn", "Mc", "Me")  # of combining marks
_SHOWN = 5  # ids that a message names
Offsets = Sequence[tuple[int, int]]
"""The characters of each token of a window, from and to."""


@dataclass
class Windows:
    """The windows of some questions."""

    inputs: dict[str, list]
    """The model's inputs."""
    rows: list[int]
    """For each window the number of its question."""
    offsets: list[Offsets]
    context: list[list[bool]]
    """For each window, true for tokens of the paragraph."""


def windows(
    questions: Sequence[str], paragraphs: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int
) -> Windows:
    """Tokenise questions with their paragraphs.

    Args:
        length: most tokens in a window.
        stride: tokens that two neighbouring windows share.
    """
    encoded = tokenizer(
        list(map(str.lstrip, questions)),  # leading blanks would take tokens from the paragraph
        list(paragraphs),
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    context = [[part == 1 for part in encoded.sequence_ids(i)] for i in range(len(rows))]
    return Windows({name: encoded[name] for name in encoded}, rows, offsets, context)


def check_room(examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int) -> None:
    """Refuse questions that leave windows no room for new tokens of the paragraph, where it takes several."""
    import numpy as np

    columns = arrow.table(examples, "id", "question", "context")
    questions = _lengths(tokenizer, list(map(str.lstrip, columns["question"].to_pylist())))
    special = tokenizer.num_special_tokens_to_add(pair=True)
    crowded = np.flatnonzero(length - special - questions <= stride)
    paragraphs = _lengths(tokenizer, columns["context"].take(crowded).to_pylist())
    crowded = crowded[questions[crowded] + paragraphs + special > length]
    if not len(crowded):
        return
    longest = int(questions[crowded].max())
    ids = ", ".join(map(str, columns["id"].take(crowded[:_SHOWN]).to_pylist()))
    more = ", ..." if len(crowded) > _SHOWN else ""
    raise UserError(
        f"{len(crowded)} of {len(examples)} questions are so long (ids {ids}{more}; the longest has {longest} tokens) "
        f"that dataset.max_seq_length={length} leaves their paragraph at most dataset.doc_stride={stride} tokens: "
        "shorten them, lower dataset.doc_stride, or raise dataset.max_seq_length to "
        f"{special + longest + stride + 1} or more"
    )


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """The number of tokens of each text, without special ones."""
    import numpy as np

    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return np.array(list(map(len, encoded)), dtype=int)


def check_max_length(length: int, special: int, needed: int) -> None:
    """Refuse a `max_seq_length` that leaves no more than `needed` tokens of text.

    Args:
        special: number of special tokens in a feature.
    """
    if length - special <= needed:
        raise UserError(
            f"dataset.max_seq_length={length} is too short: the tokenizer adds {special} special tokens to a text, and "
            f"more than {needed} must be left for it; raise it to {special + needed + 1} or more"
        )


def check_stride(stride: int, length: int, room: int) -> None:
    """Refuse a `doc_stride` that is not below what `max_seq_length` leaves of a text.

    Args:
        room: number of tokens in a feature that are none of the text.
    """
    if 0 < stride < length - room:
        return
    fitting = min(length // 4, length - room - 1)
    such = f", such as dataset.doc_stride={fitting}" if fitting > 0 else ""
    raise UserError(
        f"dataset.doc_stride={stride} does not fit dataset.max_seq_length={length}: the stride must be positive and "
        f"well below it{such}"
    )


# --- labels -------------------------------------------------------------------------------------------------


def null_token(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Index of the token that stands for no answer: [CLS], wherever a model has it, else the token that begins a text,
    else the first one."""
    for special in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if special in tokens:
            return tokens.index(special)
    return 0


def answer_tokens(
    answers: Mapping[str, list], offsets: Sequence[Offsets], context: Sequence[Sequence[bool]]
) -> list[tuple[int, int] | None]:
    """First and last token of the first answer in each window of its paragraph: those that cover any of its visible
    characters. None if there is no answer, no token covers it, or the window does not hold all of it.

    Args:
        answers: lists `text` and `answer_start`.
        offsets, context: of each window, as in `Windows`.
    """
    begin, stop = _visible(answers)
    covering = [
        [i for i, (first, end) in enumerate(window) if inside[i] and max(first, begin) < min(end, stop)]
        for window, inside in zip(offsets, context, strict=True)
    ]
    spans = [
        (max(begin, window[of[0]][0]), min(stop, window[of[-1]][1])) if of else None
        for window, of in zip(offsets, covering, strict=True)
    ]
    # Its first or last character may have no token, so the tokens of all windows say where it begins and ends.
    held = [span for span in spans if span is not None]
    whole = (min(first for first, _ in held), max(end for _, end in held)) if held else None
    return [(of[0], of[-1]) if of and span == whole else None for span, of in zip(spans, covering, strict=True)]


def _visible(answers: Mapping[str, list]) -> tuple[int, int]:
    """The characters of the first answer, from and to, without those at its ends that no token may cover, or the token
    of another word: blanks, line ends, invisible ones, and in front combining marks of the character before."""
    if not answers["answer_start"]:
        return 0, 0
    begin, kinds = answers["answer_start"][0], list(map(unicodedata.category, answers["text"][0]))
    shown = [i for i, kind in enumerate(kinds) if kind not in _INVISIBLE]
    if not shown:
        return begin, begin
    first = next((i for i in shown if kinds[i] not in _MARKS), shown[0])
    return begin + first, begin + shown[-1] + 1
