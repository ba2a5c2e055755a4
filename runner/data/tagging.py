"""Token classification: each word of a sentence has a tag, such as the entity that it belongs to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pruning import IGNORED, Prediction
from runner.data import arrow, classes
from runner.data.conll import read_columns
from runner.data.files import Reader
from runner.data.readable import length_range
from runner.data.scores import Scores
from runner.data.splits import SPLIT, Part, Splits, main_split
from runner.data.tagging_scores import begin_inside, chunks, counts, in_iobes, scheme, scores
from runner.data.task import Dataset
from runner.data.windows import check_max_length, check_stride
from runner.data.words import NO_WORD, first_tokens, without_tokens
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

OUTSIDE = "O"
"""The tag of a word outside all entities."""


@dataclass
class Tag(Dataset):
    """Sentences as lists of words, with a tag for each word: IOB1, IOB2, IOE, IOBES, BILOU or BMES for entities, as
    B-PER, B_PER or PER-B, or (with `metric=accuracy`) any tags, such as parts of speech.

    Files in CoNLL-2003's columns (`.conll`, `.txt`) can be read, besides the files that all kinds of task read: a word
    and its tags on each line, of which the last is used, and an empty line between sentences; and CoNLL-U (`.conllu`),
    of which `tags` names the column, such as `tags=upos`. Comment lines are not read.
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
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    answer: ClassVar[str] = "tags"
    metrics: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy")
    selecting: ClassVar[tuple[str, ...]] = (*Dataset.selecting, "tokens", "tags", "id")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stride(self.doc_stride, self.max_seq_length, 4)
        classes.check_names(self.labels)

    # --- reading --------------------------------------------------------------------------------------------

    def readers(self, labels: bool = True) -> Mapping[str, Reader]:
        read = partial(read_columns, words=self.tokens, tags=self.tags if labels else None)
        return dict.fromkeys((".conll", ".conllu", ".txt"), read)

    def named(self, splits: Splits) -> Splits:
        splits = splits.mapped(self._named)
        names = classes.names(self.labels, splits.parts, "tags", self.tags)
        iobes = in_iobes(names)
        if self.metric != "accuracy" and iobes is None:
            other = next(name for name in names if in_iobes([name]) is None)
            remedy = "name the tags in dataset.labels" if other.isdecimal() else "rewrite it, such as B-PER"
            raise UserError(
                f"dataset.metric={self.metric} counts entities, and column {self.tags} of {splits.source} has the tag "
                f"{other}, which is not O, nor a type with a letter of IOB, IOBES, BILOU or BMES, such as B-PER, U-PER "
                f"or PER-B: {remedy}, or, if the tags are no entities, set dataset.metric=accuracy"
            )
        splits = splits.mapped(lambda part: classes.coded(part, "tags", names, self.tags))
        if iobes is not None:
            self._announce(splits, names, iobes)
        return splits

    def _announce(self, splits: Splits, names: list[str], iobes: Mapping[str, str]) -> None:
        """Log a scheme of tags that is not IOB2."""
        numbered = [iobes[name] for name in names]
        rows = (row for part in splits.parts for row in arrow.lists(arrow.table(part.examples, "tags")["tags"]))
        inside = sum(begin_inside([numbered[number] for number in row if number != classes.NONE]) for row in rows)
        unusual = scheme(names, inside)
        if unusual is not None:
            log.info("column %s of %s: the scheme of the tags is %s", self.tags, splits.source, unusual)

    def _named(self, part: Part) -> Part:
        given = {"tokens": self.tokens, "tags": self.tags} | ({"id": self.id} if self.id else {})
        part = part.renamed(given)
        for ours in ("tokens", "tags"):
            classes.check_kind(part, ours, given[ours], listed=True)
        return part.holding(part.examples.select_columns(["tokens", "tags"]).add_column("id", part.ids(self.id)))  # type: ignore[call-arg]

    def groups(self, examples: datasets.Dataset) -> Sequence[str]:
        return [" ".join(map(str, words)) for words in arrow.lists(arrow.table(examples, "tokens")["tokens"])]

    def strata(self, examples: datasets.Dataset) -> Sequence[Any]:
        """The rarest tag of each sentence."""
        numbers = [set(tags) for tags in arrow.lists(arrow.table(examples, "tags")["tags"])]
        sentences = Counter(number for each in numbers for number in each)
        return [min(each, key=lambda number: (sentences[number], number), default=classes.NONE) for each in numbers]

    def class_counts(self, examples: datasets.Dataset) -> dict[str, int]:
        return classes.counts(examples, "tags")

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

    def check_lengths(self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        check_max_length(self.max_seq_length, tokenizer.num_special_tokens_to_add(), self.doc_stride)

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
        columns["example"] = [indices[row] for row in rows]
        words = list(first_tokens(batch["tokens"], rows, offsets))
        if not labels:
            return columns | {"word": words}
        columns["labels"] = [
            [batch["tags"][row][word] if word != NO_WORD else IGNORED for word in window]
            for row, window in zip(rows, words, strict=True)
        ]
        # The mean loss over no labels is NaN: leave out windows whose words all began in an earlier window.
        labelled = [i for i, window in enumerate(columns["labels"]) if set(window) != {IGNORED}]
        return {name: [values[i] for i in labelled] for name, values in columns.items()}

    def report(
        self, examples: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        name, none = ("labels", IGNORED) if "labels" in features.column_names else ("word", NO_WORD)
        lacking = without_tokens(examples, features, name, none)
        if lacking.any():
            log.warning(
                "%d words of the %s sentences have no token, such as invisible ones (the first is in the "
                "sentence with id %s): they teach nothing, and %s is taken for their tag",
                lacking.sum(), "training" if name == "labels" else "evaluation", examples[int(lacking.argmax())]["id"],
                _default(_names(examples)),
            )  # fmt: skip

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        return Prediction((outputs.logits,), None, tokens)

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        return sum(features["length"]) * classes

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        names = _names(examples)
        iobes = in_iobes(names) or dict(zip(names, names, strict=True))
        tagged = self.answered(examples, features, logits)
        predicted = [[iobes[tag] for tag in tags] for tags in tagged]
        gold = [[iobes[names[number]] for number in tags] for tags in examples["tags"]]
        ids = [str(id) for id in examples["id"]]
        splits = list(examples[SPLIT]) if SPLIT in examples.column_names else [""] * len(ids)
        metrics: dict[str, float] = {}
        reported = self.metrics if in_iobes(names) is not None else ("accuracy",)
        for split in dict.fromkeys(splits):
            suffix = "" if split == splits[0] else f"_{split}"
            values = scores((predicted[i], gold[i]) for i, other in enumerate(splits) if other == split)
            metrics |= {f"{name}{suffix}": values[name] for name in reported}
        first = [i for i, split in enumerate(splits) if split == splits[0]]
        return Scores(
            metrics,
            dict(zip(ids, tagged, strict=True)),
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

    def answer_type(self) -> str:
        return "classes"

    def answered(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> list[Any]:
        """The tag of each word. A word without any token, such as one of invisible characters, is outside all entities
        (or has the first tag, if there is no such tag)."""
        names, best = _names(examples), logits[0].argmax(axis=-1)
        tagged = [[_default(names)] * len(words) for words in examples["tokens"]]
        for row, (example, words) in enumerate(zip(features["example"], features["word"], strict=True)):
            for at, word in enumerate(words):
                if word != NO_WORD:
                    tagged[example][word] = names[best[row, at]]
        return tagged

    # --- for people -----------------------------------------------------------------------------------------

    def texts(self, examples: datasets.Dataset) -> list[str]:
        return list(map(" ".join, examples["tokens"]))

    def rows(self, examples: datasets.Dataset) -> list[dict[str, Any]]:
        names = _names(examples)
        return [{**row, "tags": [names[number] for number in row["tags"]]} for row in examples.to_list()]

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        sentence = " ".join(example["tokens"])
        iobes = in_iobes(example["tags"])
        if iobes is None:
            return {"Sentence": sentence, "Tags": " ".join(example["tags"])}
        entities = sorted(chunks([iobes[tag] for tag in example["tags"]]))
        texts = [f"{' '.join(example['tokens'][start:stop])} ({kind})" for start, stop, kind in entities]
        return {"Sentence": sentence, "Entities": ", ".join(texts) or "none"}

    def scored_counts(self, examples: datasets.Dataset) -> dict[str, int]:
        """Entities of each type, or words of each tag where the tags are not of entities."""
        names = _names(examples)
        iobes = in_iobes(names)
        if iobes is None:
            return super().scored_counts(examples)
        kinds = dict.fromkeys(iobes[name].partition("-")[2] for name in names if name != OUTSIDE)
        entities = Counter(
            kind for tags in main_split(examples)["tags"] for _, _, kind in chunks([iobes[names[tag]] for tag in tags])
        )
        return {kind: entities[kind] for kind in kinds}

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        length = {"Length": length_range(len(example["tokens"]), (5, 10, 20, 40))}
        iobes = in_iobes(example["tags"])
        if iobes is None:
            return length
        kinds = sorted({kind for _, _, kind in chunks([iobes[tag] for tag in example["tags"]])})
        return {"Entities": "+".join(kinds) or "none"} | length


def _names(examples: datasets.Dataset) -> list[str]:
    feature: Any = examples.features["tags"]
    return feature.feature.names


def _default(names: Sequence[str]) -> str:
    """The tag of words that have no token."""
    return OUTSIDE if OUTSIDE in names else names[0]
