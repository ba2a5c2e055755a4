"""Whether two models read texts in the same way: a teacher's hidden states and logits stand at the student's tokens."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from runner import models
from runner.data.task import tokenizer_fingerprint
from runner.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import datasets
    from transformers import PreTrainedTokenizerBase

    from runner.data.task import Dataset

SAMPLE = 256
"""Texts that are read by both."""
_SPECIAL = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
_SHOWN = 6  # tokens that a message shows


def with_inputs(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> PreTrainedTokenizerBase:
    """A copy that makes these inputs."""
    made = copy(tokenizer)
    made.model_input_names = list(names)
    return made


def check_vocabulary(base: models.Checkpoint, other: models.Checkpoint) -> None:
    """Refuse a model with another vocabulary than the base's, before data are read."""
    ours, theirs = models.load_tokenizer(base), models.load_tokenizer(other)
    if ours.get_vocab() != theirs.get_vocab():
        raise UserError(
            f"{other.key}={other.path}: its tokenizer is not that of {base.path}, so their tokens cannot be compared; "
            "choose a model with the same vocabulary"
        )
    for name in _SPECIAL:
        tokens = [getattr(tokenizer, name) for tokenizer in (ours, theirs)]
        if tokens[0] != tokens[1]:
            raise UserError(
                f"{other.key}={other.path}: the {name} of its tokenizer is {tokens[1]}, and {tokens[0]} in that of "
                f"{base.path}; choose a model with the same tokenizer"
            )


def check_texts(base: models.Checkpoint, other: models.Checkpoint, task: Dataset, examples: datasets.Dataset) -> None:
    """Refuse a model whose tokenizer makes other tokens of a sample of the texts, spread over the examples, than the
    base's."""
    ours, theirs = models.load_tokenizer(base), models.load_tokenizer(other)
    names = theirs.model_input_names
    if tokenizer_fingerprint(ours) == tokenizer_fingerprint(with_inputs(theirs, ours.model_input_names)):
        return  # they do the same, whatever the text
    sample = examples.select(np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int)))
    batch, indices = sample[:], list(range(len(sample)))
    mine, its = (task.tokenized(batch, indices, with_inputs(of, names), labels=False) for of in (ours, theirs))
    for row, example in enumerate(its["example"]):
        for name in names:
            found = [columns[name][row] if row < len(columns.get(name, [])) else None for columns in (mine, its)]
            if found[0] != found[1]:
                at = _first_difference(*found)
                raise UserError(
                    f"{other.key}={other.path}: its tokenizer reads texts in another way than that of {base.path}, "
                    f"such as {_text(sample[example])!r}: from token {at} on {_told(name, found[1], at, theirs)}, not "
                    f"{_told(name, found[0], at, ours)}; choose a model with the same tokenizer"
                )


def _text(example: dict) -> str:
    """The longest text of an example, cut."""
    longest = max((value for value in example.values() if isinstance(value, str)), key=len, default="")
    if not longest:  # words
        longest = " ".join(max((v for v in example.values() if isinstance(v, list)), key=len, default=[]))
    return longest if len(longest) <= 60 else f"{longest[:60]}..."


def _first_difference(mine: list[int] | None, its: list[int] | None) -> int:
    pairs = zip(mine or [], its or [], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine or []), len(its or [])))


def _told(name: str, values: list[int] | None, start: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if values is None:
        return f"no {name}"
    shown = values[start : start + _SHOWN]
    words = tokenizer.convert_ids_to_tokens(shown) if name == "input_ids" else shown
    return " ".join([name, *map(str, words), *(["..."] if len(values) > start + _SHOWN else [])])
