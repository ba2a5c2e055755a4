"""Token classification: each word of a sentence has a tag, such as the entity that it belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pruning import IGNORED, Prediction
from runner.data import arrow, classes
from runner.data.files import Reader, read_text
from runner.data.readable import length_range
from runner.data.splits import SPLIT, Part, Splits, main_split
from runner.data.tagging_scores import chunks, counts, scores
from runner.data.task import Dataset, Scores
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

OUTSIDE = "O"
"""The tag of a word outside all entities."""
_OF_ENTITIES = re.compile(r"O|[BIES](-.*)?")
_NO_WORD = -1  # for tokens that are not the first of a word


@dataclass
class Tag(Dataset):
    """Sentences as lists of words, with a tag for each word: IOB1, IOB2, IOE or IOBES for entities, or (with
    `metric=accuracy`) any tags, such as parts of speech.

    Files in CoNLL-2003's columns (`.conll`, `.txt`) can be read, besides the files that all kinds of task read: a word
    and its tags on each line, of which the last is used, and an empty line between sentences.
    """

    tokens: str = "tokens"
    """Column of the words."""
    tags: str = "ner_tags"
    """Column of the tags, by name or by number."""
    id: str | None = None
    """Column of the id. Not given: the number of the row."""
    labels: list[str] = field(default_factory=list)
    """The tags in the model's order. If the data have numbers: the names of the numbers, from 0 (but "3" is the name of
    3). Not given: those of the data, sorted if the data do not give an order."""
    metric: str = "f1"
    """The main metric, which names the columns of the table: f1, precision or recall of the entities, or accuracy of
    the words."""
    max_seq_length: int = 128
    doc_stride: int = 32
    """Tokens that two neighbouring windows of a long sentence share; a word is tagged in the first that holds it."""

    architecture: ClassVar[str] = "AutoModelForTokenClassification"
    pipeline_tag: ClassVar[str] = "token-classification"
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    metrics: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy")
    selecting: ClassVar[tuple[str, ...]] = (*Dataset.selecting, "tokens", "tags", "id")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.doc_stride < self.max_seq_length - 4:
            raise UserError(
                f"dataset.doc_stride={self.doc_stride} does not fit dataset.max_seq_length={self.max_seq_length}: "
                "the stride must be positive and well below it"
            )
        classes.check_names(self.labels)

    # --- reading --------------------------------------------------------------------------------------------

    def readers(self) -> Mapping[str, Reader]:
        return dict.fromkeys((".conll", ".txt"), partial(read_columns, words=self.tokens, tags=self.tags))

    def named(self, splits: Splits) -> Splits:
        splits = splits.mapped(self._named)
        names = classes.names(self.labels, splits.parts, "tags", self.tags)
        if self.metric != "accuracy" and not _of_entities(names):
            other = next(name for name in names if not _of_entities([name]))
            raise UserError(
                f"dataset.metric={self.metric} counts entities, and column {self.tags} of {splits.source} has the tag "
                f"{other}, which is not O, B-TYPE, I-TYPE, E-TYPE or S-TYPE: name the tags in dataset.labels, or set "
                "dataset.metric=accuracy"
            )
        return splits.mapped(lambda part: classes.coded(part, "tags", names, self.tags))

    def _named(self, part: Part) -> Part:
        given = {"tokens": self.tokens, "tags": self.tags} | ({"id": self.id} if self.id else {})
        part = part.renamed(given)
        for ours in ("tokens", "tags"):
            classes.check_kind(part, ours, given[ours], listed=True)
        return part.holding(part.examples.select_columns(["tokens", "tags"]).add_column("id", part.ids(self.id)))  # type: ignore[call-arg]

    def groups(self, examples: datasets.Dataset) -> Sequence[str]:
        return [" ".join(map(str, words)) for words in arrow.lists(arrow.table(examples, "tokens")["tokens"])]

    def checked(self, part: Part) -> Part:
        columns = arrow.table(part.examples, "tokens", "tags")
        rows = zip(arrow.lists(columns["tokens"]), arrow.lists(columns["tags"]), strict=True)
        for i, (words, tags) in enumerate(rows):
            problem = self._problem(words, tags)
            if problem is not None:
                raise UserError(f"{part.where(i)}: {problem}")
        return part

    def _problem(self, words: list[Any], tags: list[int]) -> str | None:
        if not words:
            return f"column {self.tokens}: the sentence has no words"
        if len(words) != len(tags):
            return f"columns {self.tokens} and {self.tags}: {len(words)} words have {len(tags)} tags"
        for word in words:
            if not isinstance(word, str):
                return f"column {self.tokens}: {word!r} is not text"
        return f"column {self.tags}: a word has no tag" if classes.NONE in tags else None

    # --- features, outputs ----------------------------------------------------------------------------------

    def configure(self, config: PretrainedConfig, examples: datasets.Dataset, given: str | None) -> None:
        classes.configure(config, _names(examples), given)

    def tokenising(self) -> list[Any]:
        return [self.max_seq_length, self.doc_stride]

    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        # As one text, because byte-pair tokenizers as they are loaded do not accept lists of words. Character offsets
        # give the word of each token, so words with a blank in them, or without any token, shift nothing.
        texts = [" ".join(words) for words in batch["tokens"]]
        encoded = tokenizer(
            texts,
            truncation=True,
            max_length=self.max_seq_length,
            stride=self.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        columns: dict[str, list] = {name: encoded[name] for name in encoded}
        words = list(_first_tokens(batch["tokens"], rows, offsets))
        if not labels:
            return columns | {"example": [indices[row] for row in rows], "word": words}
        columns["labels"] = [
            [batch["tags"][row][word] if word != _NO_WORD else IGNORED for word in window]
            for row, window in zip(rows, words, strict=True)
        ]
        # The mean loss over no labels is NaN: leave out windows whose words all began in an earlier window.
        labelled = [i for i, window in enumerate(columns["labels"]) if set(window) != {IGNORED}]
        return {name: [values[i] for i in labelled] for name, values in columns.items()}

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        return Prediction((outputs.logits,), None, tokens)

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        return sum(features["length"]) * classes

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        names = _names(examples)
        predicted = self._tagged(examples, features, logits[0])
        gold = [[names[number] for number in tags] for tags in examples["tags"]]
        ids = [str(id) for id in examples["id"]]
        splits = list(examples[SPLIT]) if SPLIT in examples.column_names else [""] * len(ids)
        metrics: dict[str, float] = {}
        reported = self.metrics if _of_entities(names) else ("accuracy",)
        for split in dict.fromkeys(splits):
            suffix = "" if split == splits[0] else f"_{split}"
            values = scores((predicted[i], gold[i]) for i, other in enumerate(splits) if other == split)
            metrics |= {f"{name}{suffix}": values[name] for name in reported}
        first = [i for i, split in enumerate(splits) if split == splits[0]]
        return Scores(
            metrics,
            dict(zip(ids, predicted, strict=True)),
            {ids[i]: float(self._right(predicted[i], gold[i])) for i in first},
            "ratio" if self.metric == "accuracy" else f"entity_{self.metric}",
            {ids[i]: list(self._statistics(predicted[i], gold[i])) for i in first},
        )

    def _right(self, predicted: list[str], gold: list[str]) -> bool:
        """True if a whole sentence is right: all its entities, or with `metric=accuracy` all its words."""
        return predicted == gold if self.metric == "accuracy" else chunks(predicted) == chunks(gold)

    def _statistics(self, predicted: list[str], gold: list[str]) -> tuple[float, ...]:
        if self.metric == "accuracy":
            return float(sum(map(str.__eq__, predicted, gold))), float(len(gold))
        return tuple(map(float, counts(predicted, gold)))

    def _tagged(self, examples: datasets.Dataset, features: datasets.Dataset, logits: np.ndarray) -> list[list[str]]:
        """The tag of each word. A word without any token, such as one of invisible characters, is outside all entities
        (or has the first tag, if there is no such tag)."""
        names = _names(examples)
        default = OUTSIDE if OUTSIDE in names else names[0]
        tagged = [[default] * len(words) for words in examples["tokens"]]
        best = logits.argmax(axis=-1)
        for row, (example, words) in enumerate(zip(features["example"], features["word"], strict=True)):
            for at, word in enumerate(words):
                if word != _NO_WORD:
                    tagged[example][word] = names[best[row, at]]
        return tagged

    # --- for people -----------------------------------------------------------------------------------------

    def rows(self, examples: datasets.Dataset) -> list[dict[str, Any]]:
        names = _names(examples)
        return [{**row, "tags": [names[number] for number in row["tags"]]} for row in examples.to_list()]

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        sentence = " ".join(example["tokens"])
        if not _of_entities(example["tags"]):
            return {"Sentence": sentence, "Tags": " ".join(example["tags"])}
        entities = sorted(chunks(example["tags"]))
        texts = [f"{' '.join(example['tokens'][start:stop])} ({kind})" for start, stop, kind in entities]
        return {"Sentence": sentence, "Entities": ", ".join(texts) or "none"}

    def class_counts(self, examples: datasets.Dataset) -> dict[str, int]:
        """Entities of each type, or words of each tag where the tags are not of entities."""
        names = _names(examples)
        sentences = [[names[tag] for tag in tags] for tags in main_split(examples)["tags"]]
        if not _of_entities(names):
            counts = Counter(tag for tags in sentences for tag in tags)
            return {name: counts[name] for name in names}
        counts = Counter(kind for tags in sentences for _, _, kind in chunks(tags))
        return {kind: counts[kind] for kind in dict.fromkeys(name.partition("-")[2] for name in names if name != "O")}

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        length = {"Length": length_range(len(example["tokens"]), (5, 10, 20, 40))}
        if not _of_entities(example["tags"]):
            return length
        kinds = sorted({kind for _, _, kind in chunks(example["tags"])})
        return {"Entities": "+".join(kinds) or "none"} | length


def _of_entities(tags: Iterable[str]) -> bool:
    """True if these are tags of entities, not of something else such as parts of speech."""
    return all(map(_OF_ENTITIES.fullmatch, tags))


def _names(examples: datasets.Dataset) -> list[str]:
    feature: Any = examples.features["tags"]
    return feature.feature.names


def _first_tokens(
    sentences: Sequence[Sequence[str]], rows: Sequence[int], offsets: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[list[int]]:
    """For each window and token, the word that begins with the token, if no earlier window has it.

    Args:
        sentences: the words, which were joined by a blank.
        rows: the sentence of each window.
        offsets: for each window, the characters of each token; (0, 0) for special tokens.
    """
    seen: set[tuple[int, int]] = set()
    of_character: dict[int, list[int]] = {}
    for row, window in zip(rows, offsets, strict=True):
        if row not in of_character:
            # With a blank after each word, so that indices match the joined text.
            of_character[row] = [word for word, text in enumerate(sentences[row]) for _ in f"{text} "]
        words = []
        for start, stop in window:
            word = of_character[row][stop - 1] if stop > start else _NO_WORD
            if (row, word) in seen:
                word = _NO_WORD
            elif word != _NO_WORD:
                seen.add((row, word))
            words.append(word)
        yield words


def read_columns(file: Path, words: str, tags: str) -> Iterator[dict[str, list[str]]]:
    """The sentences of a file in CoNLL-2003's columns, without lines of -DOCSTART-.

    Args:
        words, tags: names of the resulting columns.

    Raises:
        UserError: a line has no tag, or not as many columns as the first.
    """
    sentence: list[list[str]] = []
    width = None
    # Not splitlines, nor any white space: words may hold other line separators and non-breaking blanks.
    for number, line in enumerate([*read_text(file).split("\n"), ""], 1):
        fields = [field for field in re.split(r"[ \t\r]+", line) if field]
        if fields and fields[0] != "-DOCSTART-":
            if len(fields) < 2:
                raise UserError(f"{file}, line {number}: {line.strip()!r} has no tag; a line needs a word and its tags")
            width = width or len(fields)
            if len(fields) != width:
                raise UserError(
                    f"{file}, line {number}: {line.strip()!r} has {len(fields)} columns, and the lines above it {width}"
                )
            sentence.append(fields)
        elif sentence:
            yield {words: [fields[0] for fields in sentence], tags: [fields[-1] for fields in sentence]}
            sentence = []
