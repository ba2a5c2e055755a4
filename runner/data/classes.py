"""Classes of examples or of tokens: their names, from the configuration or the data, and their numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.data import arrow
from runner.data.splits import Part
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

NONE = -1
"""The number of an example without a label."""
_WHOLE = re.compile(r"-?\d+")


def check_names(names: Sequence[str]) -> None:
    """Refuse the same name twice."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"dataset.labels={list(names)}: {', '.join(sorted(twice))} is there twice")


def names(given: Sequence[str], parts: Sequence[Part], column: str, told: str) -> list[str]:
    """The classes in the order of their numbers.

    Args:
        given: as configured; empty: what the data say, or what the first part has, sorted. Numbers: all from the lowest
            to the highest of all parts.
        column: of classes, or of lists of classes.
        told: the column's name in the data, for messages.

    Raises:
        UserError: parts or configuration differ, or there are no classes.
    """
    declared = {tuple(of) for part in parts if (of := arrow.class_names(part.examples, column)) is not None}
    if len(declared) > 1:
        lists = " and ".join(", ".join(of) for of in sorted(declared))
        raise UserError(f"{parts[0].name}: the splits have different classes in column {told}: {lists}")
    if declared:
        (of_data,) = declared
        if given and set(given) != set(of_data):
            raise UserError(
                f"dataset.labels={list(given)}: the data have other classes: {', '.join(of_data)}; name these, in the "
                "order of the model"
            )
        return list(given or of_data)
    found = list(given) or _found(parts, column, told)
    if len(found) == 1:
        raise UserError(
            f"{parts[0].name}: column {told}: all are {found[0]!r} (-1 counts as no label), so that nothing can be "
            "told apart; name all classes in dataset.labels"
        )
    return found


def _found(parts: Sequence[Part], column: str, told: str) -> list[str]:
    values = [{_key(value) for row in _rows(part, column) for value in row} - {None, "", NONE} for part in parts]
    numbers = {value for of in values for value in of if not isinstance(value, str)}
    if numbers and numbers == set().union(*values):
        fraction = next((value for value in numbers if not isinstance(value, int)), None)
        if fraction is not None:
            raise UserError(
                f"{parts[0].name}: column {told}: {fraction} is no class, but a number; correct it, or (in text "
                "classification) predict numbers with dataset.regression=true"
            )
        return [str(number) for number in range(min(numbers), max(numbers) + 1)]
    texts = [str(value) for value in values[0]]
    return sorted(texts, key=int if all(map(_WHOLE.fullmatch, texts)) else None)


def coded(part: Part, column: str, names: Sequence[str], told: str) -> Part:
    """The same with classes as numbers, of which the column's feature tells the names.

    Args:
        told: the column's name in the data, for messages.

    Raises:
        UserError: a value is none of the classes.
    """
    import datasets

    code = _code(names, arrow.class_names(part.examples, column))
    rows = [[_key(value) for value in values] for values in _rows(part, column)]
    bad = [i for i, values in enumerate(rows) if any(value not in code for value in values)]
    if bad:
        value = next(value for value in rows[bad[0]] if value not in code)
        raise UserError(
            f"{part.where_all(bad)}: column {told}: {value!r} is none of the classes {', '.join(names)}; correct it, "
            "or name all classes in dataset.labels"
        )
    numbers = [[code[value] for value in values] for values in rows]
    feature: Any = datasets.ClassLabel(names=list(names))
    listed = is_listed(part, column)
    examples = part.examples.remove_columns(column).add_column(
        column,
        numbers if listed else [each for (each,) in numbers],
        feature=datasets.List(feature) if listed else feature,
    )  # type: ignore[call-arg]
    return part.holding(examples)


def _code(names: Sequence[str], declared: Sequence[str] | None) -> dict[str | int | None, int]:
    """The number of each value that can stand for a class.

    Args:
        declared: the names that the data give to their numbers.
    """
    by_name = {name: number for number, name in enumerate(names)}
    if declared is None and all(_WHOLE.fullmatch(name) for name in names):
        by_number = {int(name): number for name, number in by_name.items()}  # 3 is the class "3", wherever it stands
    else:
        by_number = {number: by_name[name] for number, name in enumerate(declared or names)}
    as_text = {str(number): code for number, code in by_number.items()}  # in a column with other text
    return {None: NONE, "": NONE, NONE: NONE, str(NONE): NONE, **as_text, **by_number, **by_name, **_booleans(by_name)}


def _booleans(by_name: Mapping[str, int]) -> dict[str, int]:
    """The classes true and false, however they are written."""
    return {name.lower(): number for name, number in by_name.items() if name.lower() in ("true", "false")}


def _key(value: Any) -> Any:
    """As it is looked up: 1.0 is 1, NaN is no label, true is "true", anything else is text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return value if value is None or isinstance(value, (int, str)) else str(value)


def check_kind(part: Part, column: str, told: str, listed: bool) -> None:
    """Refuse a column of lists where single values are needed, and the other way round.

    Raises:
        UserError: it is of the other kind, or of records.
    """
    import pyarrow as pa

    kind = _type(part, column)
    if listed != is_listed(part, column):
        raise UserError(
            f"{part.name}: column {told} holds no lists, with one entry for each word"
            if listed
            else f"{part.name}: column {told} holds lists, and one value is needed for each example"
        )
    entry = kind.value_type if listed else kind
    if pa.types.is_nested(entry):
        raise UserError(f"{part.name}: column {told} holds {entry}, where text or numbers are needed")


def is_listed(part: Part, column: str) -> bool:
    """Whether a column holds lists."""
    import pyarrow as pa

    kind = _type(part, column)
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _type(part: Part, column: str) -> Any:
    return arrow.table(part.examples.select(range(0)), column).schema.field(column).type


def _rows(part: Part, column: str) -> Iterator[list[Any]]:
    """The values of each example."""
    values = arrow.table(part.examples, column)[column]
    if is_listed(part, column):
        yield from arrow.lists(values)
    else:
        yield from ([value] for value in values.to_pylist())


def configure(config: PretrainedConfig, names: Sequence[str], given: str | None) -> None:
    """Write the classes into a model's configuration.

    Args:
        given: the key and value that named a model with a trained head; None: the head is new.

    Raises:
        UserError: the trained head tells other classes apart, or has them in another order.
    """
    if given is not None:
        _check(config, names, given)
        if _counted(names) and not _unnamed(config):
            return  # the data have no names: it keeps its own
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _check(config: PretrainedConfig, names: Sequence[str], given: str) -> None:
    theirs = names_of(config)
    told = f"{given}: its head tells apart {', '.join(theirs)}, the data {', '.join(names)}"
    if len(theirs) != len(names):
        raise UserError(f"{told}; choose a model that was fine-tuned on these classes")
    if _unnamed(config):
        log.info("%s: its classes have no names, and are taken in the order %s", given, ", ".join(names))
        return
    ours = [name.casefold() for name in names]
    if [name.casefold() for name in theirs] == ours or _counted(names):
        return
    if sorted(name.casefold() for name in theirs) == sorted(ours):
        order = ",".join(names[ours.index(name.casefold())] for name in theirs)
        raise UserError(
            f"{told}: the same in another order. If the data hold names, set dataset.labels='[{order}]'; if they hold "
            "numbers, write names in their place, or number the classes as the model does"
        )
    raise UserError(f"{told}; choose a model that was fine-tuned on these classes, or name them in dataset.labels")


def names_of(config: PretrainedConfig) -> list[str]:
    """The classes of a model, in their order."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def _unnamed(config: PretrainedConfig) -> bool:
    """Whether a model's classes have only the names that transformers gives to those without."""
    return all(re.fullmatch(r"LABEL_\d+|\d+", name) for name in names_of(config))


def _counted(names: Sequence[str]) -> bool:
    """Whether the names of the data are nothing but numbers in their order."""
    return all(map(_WHOLE.fullmatch, names)) and [int(n) - int(names[0]) for n in names] == list(range(len(names)))


def check_same(configs: Mapping[str, PretrainedConfig]) -> None:
    """Refuse trained models that have the same classes in different orders, where the data have no names to compare.

    Args:
        configs: by the key and value that named each.
    """
    known: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for given, config in configs.items():
        theirs = [name.casefold() for name in names_of(config)]
        before, order = known.setdefault(tuple(sorted(theirs)), (given, theirs))
        if order != theirs:
            raise UserError(
                f"{given}: its classes are {', '.join(theirs)}, those of {before} {', '.join(order)}: the same in "
                "another order; choose models with the same one"
            )
