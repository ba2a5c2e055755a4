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
    import datasets
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

NONE = -1
"""The number of an example without a label."""
_WHOLE = re.compile(r"-?\d+")
_MANY = 1000  # classes, numbered with gaps
_SHOWN = 20  # classes, in a message
_WORDS = 3  # at most, in the name of a class


def check_names(names: Sequence[str]) -> None:
    """Refuse names that occur twice."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"dataset.labels={list(names)}: {', '.join(sorted(twice))} occurs twice")


def names(given: Sequence[str], parts: Sequence[Part], column: str, data_column: str) -> list[str]:
    """The classes in the order of their numbers.

    Args:
        given: as configured; empty: those that the data declare, else those that occur: of names those of the first
            part, sorted, of numbers all from the lowest to the highest of all parts.
        column: holds classes, or lists of classes.
        data_column: the column's name in the data, for messages.

    Raises:
        UserError: the parts or the configuration have different classes, or there is only one.
    """
    all_names = [arrow.class_names(part.examples, column) for part in parts]
    declared = {tuple(names) for names in all_names if names is not None}
    if len(declared) > 1:
        lists = " and ".join(", ".join(names) for names in sorted(declared))
        raise UserError(f"{parts[0].name}: the splits have different classes in column {data_column}: {lists}")
    if declared:
        (data_names,) = declared
        if given and set(given) != set(data_names):
            raise UserError(
                f"dataset.labels={list(given)}: the data have other classes: {', '.join(data_names)}; name these, in "
                "the model's order"
            )
        return list(given or data_names)
    classes = list(given) or _occurring(parts, column, data_column)
    if len(classes) == 1:
        raise UserError(
            f"{parts[0].name}: column {data_column}: the only class is {classes[0]!r} (-1 counts as no label), and at "
            "least two are needed; name all classes in dataset.labels"
        )
    return classes


def _occurring(parts: Sequence[Part], column: str, data_column: str) -> list[str]:
    values = [{_key(value) for row in _rows(part, column) for value in row} - {None, "", NONE} for part in parts]
    numbers = {value for each in values for value in each if not isinstance(value, str)}
    if numbers and numbers == set().union(*values):
        fraction = next((value for value in numbers if not isinstance(value, int)), None)
        if fraction is not None:
            raise UserError(
                f"{parts[0].name}: column {data_column}: {fraction} is a fraction, not a class; correct it, or (in "
                "text classification) predict numbers with dataset.regression=true"
            )
        rows = sum(len(part.examples) for part in parts)
        if max(numbers) - min(numbers) >= max(_MANY, rows):
            raise UserError(
                f"{parts[0].name}: column {data_column}: the numbers from {min(numbers)} to {max(numbers)} make more "
                f"classes than there are examples ({rows}): number the classes from 0, or name another column"
            )
        return [str(number) for number in range(min(numbers), max(numbers) + 1)]
    texts = [str(value) for value in values[0]]
    return sorted(texts, key=int if all(map(_WHOLE.fullmatch, texts)) else None)


def coded(part: Part, column: str, names: Sequence[str], data_column: str) -> Part:
    """Replace classes by their numbers; the column's feature holds the names.

    Args:
        data_column: the column's name in the data, for messages.

    Raises:
        UserError: a value is not one of the classes.
    """
    import datasets

    code = _code(names, arrow.class_names(part.examples, column))
    rows = [[_key(value) for value in values] for values in _rows(part, column)]
    bad = [i for i, values in enumerate(rows) if any(value not in code for value in values)]
    if bad:
        value = next(value for value in rows[bad[0]] if value not in code)
        raise UserError(
            f"{part.where_all(bad)}: column {data_column}: {value!r} is not one of the classes {_some(names)}; correct "
            f"it, or name all classes in dataset.labels{_doubt(names)}"
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


def _doubt(names: Sequence[str]) -> str:
    """The end of a message about many classes whose names are sentences: as a rule, another column is meant."""
    sentences = sum(len(name.split()) > _WORDS for name in names)
    if len(names) <= _SHOWN or 2 * sentences <= len(names):
        return ""
    return f" ({len(names)} classes look like texts: is another column meant?)"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_SHOWN])} and {more} more"


def _code(names: Sequence[str], declared: Sequence[str] | None) -> dict[str | int | None, int]:
    """The number of each value that can stand for a class.

    Args:
        declared: the names of the numbers in the data, if they have any.
    """
    by_name = {name: number for number, name in enumerate(names)}
    if declared is None and all(_WHOLE.fullmatch(name) for name in names):
        by_number = {int(name): number for name, number in by_name.items()}  # 3 is the class "3", whatever its place
    else:
        by_number = {number: by_name[name] for number, name in enumerate(declared or names)}
    as_text = {str(number): code for number, code in by_number.items()}  # in a column with other text
    return {None: NONE, "": NONE, NONE: NONE, str(NONE): NONE, **as_text, **by_number, **by_name, **_booleans(by_name)}


def _booleans(by_name: Mapping[str, int]) -> dict[str, int]:
    """The classes true and false, in lower case."""
    return {name.lower(): number for name, number in by_name.items() if name.lower() in ("true", "false")}


def _key(value: Any) -> Any:
    """A value as it is looked up: 1.0 is 1, NaN is None, true is "true"; anything but numbers is text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return value if value is None or isinstance(value, (int, str)) else str(value)


def counts(examples: datasets.Dataset, column: str) -> dict[str, int]:
    """How often each class occurs in a coded column, or in its lists; also those that do not occur.

    Examples without a label are not counted.
    """
    import numpy as np

    names = arrow.class_names(examples, column)
    assert names is not None
    values = arrow.table(examples, column)[column]
    listed = not hasattr(examples.features[column], "names")
    numbers = arrow.ragged(values)[0] if listed else values.to_numpy()
    occurring = np.bincount(numbers[numbers != NONE], minlength=len(names))
    return dict(zip(names, occurring.tolist(), strict=True))


def check_kind(part: Part, column: str, data_column: str, listed: bool) -> None:
    """Refuse a column of lists where single values are needed, and the other way round.

    Raises:
        UserError: the column holds the other kind, or records.
    """
    import pyarrow as pa

    kind = _type(part, column)
    if listed != is_listed(part, column):
        raise UserError(
            f"{part.name}: column {data_column} needs lists with one entry for each word"
            if listed
            else f"{part.name}: column {data_column} holds lists, where one value for each example is needed"
        )
    entry = kind.value_type if listed else kind
    if pa.types.is_nested(entry):
        raise UserError(f"{part.name}: column {data_column} holds {entry}, where text or numbers are needed")


def is_listed(part: Part, column: str) -> bool:
    """True if a column holds lists."""
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
        given: the key and value that name a model with a trained head; None: the head is new.

    Raises:
        UserError: the trained head has other classes, or has them in another order.
    """
    if given is not None:
        _check(config, names, given)
        if _counted(names) and not _unnamed(config):
            return  # the data have no names: the model's own stay
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _check(config: PretrainedConfig, names: Sequence[str], given: str) -> None:
    theirs = names_of(config)
    problem = f"{given}: its head has the classes {', '.join(theirs)}, the data {', '.join(names)}"
    if len(theirs) != len(names):
        raise UserError(f"{problem}; choose a model that was fine-tuned on these classes")
    if _unnamed(config):
        log.info("%s: its classes have no names; they are assumed to be in the order %s", given, ", ".join(names))
        return
    ours = [name.casefold() for name in names]
    if [name.casefold() for name in theirs] == ours or _counted(names):
        return
    if sorted(name.casefold() for name in theirs) == sorted(ours):
        order = ",".join(names[ours.index(name.casefold())] for name in theirs)
        raise UserError(
            f"{problem}: the same in another order. If the data hold names, set dataset.labels='[{order}]'; if they "
            "hold numbers, replace them by names, or number the classes as the model does"
        )
    raise UserError(f"{problem}; choose a model that was fine-tuned on these classes, or name them in dataset.labels")


def names_of(config: PretrainedConfig) -> list[str]:
    """The classes of a model, in their order."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def _unnamed(config: PretrainedConfig) -> bool:
    """True if a model's classes have only the names that transformers makes up, such as LABEL_0."""
    return all(re.fullmatch(r"LABEL_\d+|\d+", name) for name in names_of(config))


def _counted(names: Sequence[str]) -> bool:
    """True if the names of the data are consecutive numbers."""
    return all(map(_WHOLE.fullmatch, names)) and [int(n) - int(names[0]) for n in names] == list(range(len(names)))


def check_same(configs: Mapping[str, PretrainedConfig]) -> None:
    """Refuse trained models with the same classes in different orders; the data may have no names to compare with.

    Args:
        configs: by the key and value that name each model.
    """
    known: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for given, config in configs.items():
        theirs = [name.casefold() for name in names_of(config)]
        before, order = known.setdefault(tuple(sorted(theirs)), (given, theirs))
        if order != theirs:
            raise UserError(
                f"{given}: its classes are {', '.join(theirs)}, those of {before} {', '.join(order)}: the same in "
                "another order; choose models with the same order"
            )
