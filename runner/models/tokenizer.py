"""A checkpoint's tokenizer, and whether two models split texts in the same way: a teacher's hidden states and logits
must stand at the student's tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from runner.system.errors import UserError
from runner.system.fingerprint import hash_json
from runner.system.hub import explain

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from runner.data.task import Dataset
    from runner.models.checkpoint import Checkpoint

SAMPLE = 256
"""Texts that both tokenizers split."""
_SPECIAL = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
_SHOWN = 6  # tokens that a message shows
# Tokenizers that transformers 5 no longer lets say which of two texts a token is from, although their models were
# trained with it (huggingface/transformers#48128).
_WITH_TOKEN_TYPES = (
    *("AlbertTokenizer", "FunnelTokenizer", "HerbertTokenizer", "RemBertTokenizer", "RoFormerTokenizer"),
    *("SplinterTokenizer", "XLNetTokenizer"),
)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's fast tokenizer; a slow one has no offsets of tokens in the text."""
    from transformers import AutoTokenizer

    with explain("model", checkpoint.key, checkpoint.path), _explain_reading(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.path, revision=checkpoint.revision, config=checkpoint.config, trust_remote_code=False
        )
    tokenizer.init_kwargs.pop("auto_map", None)  # else save_pretrained writes where the repository's own code is
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens):
        raise UserError(  # transformers makes one of special tokens alone
            f"{checkpoint.key}={checkpoint.path}: it has no tokenizer, so that every word would be unknown: add the "
            "files that the model was trained with, such as tokenizer.json, vocab.txt or spiece.model"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{checkpoint.key}={checkpoint.path}: it has no fast tokenizer, which answers' offsets need")
    tokenizer.padding_side = "right"  # XLNet's pads before the text, where labels and logits do not expect it
    if type(tokenizer).__name__ in _WITH_TOKEN_TYPES and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        # save_pretrained writes the names from init_kwargs
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    return tokenizer


@contextmanager
def _explain_reading(checkpoint: Checkpoint) -> Iterator[None]:
    """Explain why a tokenizer's files cannot be read. transformers takes a damaged SentencePiece file for one of
    tiktoken, and asks for that package."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # else it logs that it falls back to tiktoken
    try:
        yield
    except Exception as error:
        if isinstance(error, (ImportError, ValueError)) and re.search(
            "sentencepiece|tiktoken", str(error), re.IGNORECASE
        ):
            reason = "is damaged, or is none of SentencePiece's"
            if find_spec("sentencepiece") is None:
                reason = "is a SentencePiece file, which the package sentencepiece reads: pip install sentencepiece"
        elif isinstance(error, OSError):  # a download that failed, or a folder that cannot be read
            raise
        else:
            reason = (
                f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:80]}): a file is damaged, or "
                "a git-LFS pointer or a web page is in its place; download the tokenizer's files again"
            )
        raise UserError(f"{checkpoint.key}={checkpoint.path}: its tokenizer {reason}") from error
    finally:
        logging.set_verbosity(level)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a fast tokenizer's behaviour, without the truncation and padding that its last call set."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    made = {**state, "truncation": None, "padding": None, "inputs": sorted(tokenizer.model_input_names)}
    return hash_json(made)


def with_inputs(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that returns these model inputs."""
    copied = copy(tokenizer)
    copied.model_input_names = list(names)
    return copied


def check_vocabulary(base: Checkpoint, other: Checkpoint) -> None:
    """Refuse a model whose vocabulary is not the base's, before data are read.

    Raises:
        UserError: the vocabularies or special tokens differ.
    """
    ours, theirs = load_tokenizer(base), load_tokenizer(other)
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


def check_texts(base: Checkpoint, other: Checkpoint, task: Dataset, examples: datasets.Dataset) -> None:
    """Refuse a model whose tokenizer splits a sample of the texts, spread over the examples, in another way than the
    base's.

    Raises:
        UserError: names the first text and token that differ, or the examples that do not fit.
    """
    ours, theirs = load_tokenizer(base), load_tokenizer(other)
    names = theirs.model_input_names
    if fingerprint(ours) == fingerprint(with_inputs(theirs, ours.model_input_names)):
        return  # the same for every text
    task.check_lengths(examples, ours)
    sample = examples.select(np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int)))
    batch, indices = sample[:], list(range(len(sample)))
    both = [task.tokenized(batch, indices, with_inputs(of, names), labels=False) for of in (ours, theirs)]
    for row, example in enumerate(both[1]["example"]):
        for name in names:
            mine, its = (columns[name][row] if row < len(columns.get(name, [])) else None for columns in both)
            if mine != its:
                at = _first_difference(mine, its)
                raise UserError(
                    f"{other.key}={other.path}: its tokenizer reads texts in another way than that of {base.path}, "
                    f"such as {_text(sample[example])!r}: from token {at} on {_shown(name, its, at, theirs)}, not "
                    f"{_shown(name, mine, at, ours)}; choose a model with the same tokenizer"
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


def _shown(name: str, values: list[int] | None, start: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if values is None:
        return f"no {name}"
    shown = values[start : start + _SHOWN]
    words = tokenizer.convert_ids_to_tokens(shown) if name == "input_ids" else shown
    return " ".join([name, *map(str, words), *(["..."] if len(values) > start + _SHOWN else [])])
