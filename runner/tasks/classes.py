"""Classes of examples or of tokens: their names, from the configuration or the data, and their numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner.errors import UserError
from runner.tasks import arrow
from runner.tasks.splits import Part

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

NONE = -1
"""The number of an example without a label."""
_SHOWN = 3  # places or values that a message names


def check_names(names: Sequence[str]) -> None:
    """Refuse the same name twice."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"dataset.labels={list(names)}: {', '.join(sorted(twice))} is there twice")


def names(given: Sequence[str], parts: Sequence[Part], column: str) -> list[str]:
    """The classes in the order of their numbers.

    Args:
        given: as configured; empty: what the data say, or what the first part has, sorted.
        column: of classes, or of lists of classes.

    Raises:
        UserError: parts or configuration differ.
    """
    declared = {tuple(of) for part in parts if (of := _declared(part, column)) is not None}
    if len(declared) > 1:
        raise UserError(f"{parts[0].name}: the splits have different classes in column {column}: {declared}")
    if declared:
        (of_data,) = declared
        if given and set(given) != set(of_data):
            raise UserError(
                f"dataset.labels={list(given)}: the data have other classes: {', '.join(of_data)}; name these, in the "
                "order of the model"
            )
        return list(given or of_data)
    return list(given) or _found(parts[0], column)


def _declared(part: Part, column: str) -> list[str] | None:
    """The names that the data's own format gives to the classes."""
    feature: Any = part.examples.features[column]
    return getattr(getattr(feature, "feature", feature), "names", None)


def _found(part: Part, column: str) -> list[str]:
    values = {value for values in _rows(part, column) for value in values if value not in (None, "", NONE)}
    numbers = {value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)}
    if numbers == values and all(value == int(value) for value in numbers if value == value):
        return [str(number) for number in range(int(max((v for v in numbers if v == v), default=-1)) + 1)]
    return sorted(_text(value) for value in values)


def coded(part: Part, column: str, names: Sequence[str], told: str) -> Part:
    """The same with classes as numbers, of which the column's feature tells the names.

    Args:
        told: the column's name in the data, for messages.

    Raises:
        UserError: a value is none of the classes.
    """
    import datasets

    declared = _declared(part, column)
    by_name = {name: number for number, name in enumerate(names)}
    code = {None: NONE, NONE: NONE, "": NONE, **by_name}
    # Numbers stand for the names that the data give them, else for ours.
    code |= {number: by_name[name] for number, name in enumerate(declared or names)}
    rows = list(_rows(part, column))
    bad = [i for i, values in enumerate(rows) if any(_key(value) not in code for value in values)]
    if bad:
        value = next(value for value in rows[bad[0]] if _key(value) not in code)
        raise UserError(
            f"{places(part, bad)}: column {told}: {value!r} is none of the classes {', '.join(names)}; correct it, "
            "or name all classes in dataset.labels"
        )
    numbers = [[code[_key(value)] for value in values] for values in rows]
    feature: Any = datasets.ClassLabel(names=list(names))
    listed = is_listed(part, column)
    examples = part.examples.remove_columns(column).add_column(
        column,
        numbers if listed else [each for (each,) in numbers],
        feature=datasets.List(feature) if listed else feature,
    )  # type: ignore[call-arg]
    return part.holding(examples)


def _key(value: Any) -> Any:
    """As it is looked up: 1.0 is 1, NaN is no label, true is "true"."""
    if isinstance(value, bool):
        return _text(value)
    if isinstance(value, float):
        return None if value != value else int(value) if value == int(value) else value
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_listed(part: Part, column: str) -> bool:
    import pyarrow as pa

    kind = arrow.table(part.examples.select(range(0)), column).schema.field(column).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _rows(part: Part, column: str) -> Iterator[list[Any]]:
    """The values of each example."""
    values = arrow.table(part.examples, column)[column]
    if is_listed(part, column):
        yield from arrow.lists(values)
    else:
        yield from ([value] for value in values.to_pylist())


def places(part: Part, rows: Sequence[int]) -> str:
    """Where examples came from, the first few of them."""
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return "; ".join(part.where(row) for row in rows[:_SHOWN]) + more


def configure(config: PretrainedConfig, names: Sequence[str], given: str | None) -> None:
    """Write the classes into a model's configuration.

    Args:
        given: the key and value that named a model with a trained head; None: the head is new.

    Raises:
        UserError: the trained head tells other classes apart, or has them in another order.
    """
    if given is not None:
        _check(config, names, given)
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _check(config: PretrainedConfig, names: Sequence[str], given: str) -> None:
    theirs = [str(name) for _, name in sorted((config.id2label or {}).items())]
    told = f"{given}: its head tells apart {', '.join(theirs)}, the data {', '.join(names)}"
    if len(theirs) != len(names):
        raise UserError(f"{told}; choose a model that was fine-tuned on these classes")
    if all(re.fullmatch(r"LABEL_\d+|\d+", name) for name in theirs):
        log.info("%s: its classes have no names, and are taken in the order %s", given, ", ".join(names))
        return
    ours = [name.casefold() for name in names]
    if [name.casefold() for name in theirs] == ours or all(name.isdecimal() for name in names):
        return
    if sorted(name.casefold() for name in theirs) == sorted(ours):
        order = ",".join(names[ours.index(name.casefold())] for name in theirs)
        raise UserError(f"{told}: the same in another order; set dataset.labels='[{order}]'")
    raise UserError(f"{told}; choose a model that was fine-tuned on these classes, or name them in dataset.labels")
