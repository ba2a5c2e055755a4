"""Caveats of the numbers in the table: each becomes a note on the rows that it concerns (the column "Notes")."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePath

from results import columns
from results.controls import Control
from results.rows import Row
from results.runs import natural
from results.speed import conditions

_OF_MAXIMA = re.compile("maxima|maximum")


def add(rows: list[Row]) -> list[Row]:
    """The rows with their caveats as notes, after the notes that they have. Rows without runs of ours get none.

    Caveats of a comparison concern all rows of one model, dataset (or hold-out) and metric among these.
    """
    peers: defaultdict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.runs:
            peers[row.model, row.scored_on, row.metric].append(row)
    shared = {key: [note for caveat in OF_COMPARISONS for note in caveat(group)] for key, group in peers.items()}
    return [_noted(row, shared.get((row.model, row.scored_on, row.metric), [])) if row.runs else row for row in rows]


def _noted(row: Row, shared: list[str]) -> Row:
    own = (note for caveat in OF_ROWS for note in caveat(row))
    return replace(row, notes=list(dict.fromkeys([*row.notes, *own, *shared])))


def without_maxima(rows: list[Row]) -> list[Row]:
    """The rows without their notes on maxima, for a table that shows means alone."""
    return [replace(row, notes=[note for note in row.notes if not _OF_MAXIMA.search(note)]) for row in rows]


# --- one row: each function yields notes --------------------------------------------------------------------------


def signs(row: Row) -> Iterator[str]:
    """The drop of the maxima is a gain and that of the means a loss, or vice versa."""
    if _opposite(row.drop_max, row.drop_mean):
        yield "the drop of the maxima and the drop of the means differ in sign"
    if any(_opposite(control.drop_max, control.drop_mean) for control in _controls(row)):
        yield "against the control, the drop of the maxima and the drop of the means differ in sign"


def drops(row: Row) -> Iterator[str]:
    """A relative drop means little if the metric has no natural zero, and nothing from a score of 0."""
    scores = (
        row.dense_max,
        row.dense_mean,
        *(score for control in _controls(row) for score in (control.max, control.mean)),
    )
    if any(score is not None and score <= columns.ZERO for score in scores):
        yield "no relative drop from a dense score that is not above 0"
    if row.metric in columns.CORRELATIONS:
        yield "its drops are relative to a correlation, which is 0 at chance: not to be compared across metrics"


def few_seeds(row: Row) -> Iterator[str]:
    """The noise is as large as the effect, or only a part of the noise is known."""
    if len(row.seeds) == 1:
        within = "its intervals are over examples alone" if row.drop_interval else "how much seeds differ is not known"
        yield f"one seed: {within}"
    if row.drop_mean and _holds_zero(row.drop_interval):
        yield "the interval of the drop of means includes zero: too few seeds or examples to know its sign"
    if any(control.drop_mean and _holds_zero(control.interval) for control in _controls(row)):
        yield "the interval against the control includes zero: too few seeds or examples to know its sign"


def dense_models(row: Row) -> Iterator[str]:
    """Seeds share a dense model, and the maximum over fewer models is lower."""
    if row.dense_models is not None and row.dense_models < len(row.seeds):
        yield f"the dense maximum is over {_count(row.dense_models, 'model')}, the sparse one over {len(row.seeds)}"


def subsets(row: Row) -> Iterator[str]:
    """The run used fewer examples than the official splits have, or scored others."""
    if parts := parts_used(row, "evaluated", "examples"):
        yield ", ".join(parts)


def parts_used(row: Row, scored: str, noun: str) -> list[str]:
    """What a row used of the data: "trained on 8 of 9 questions", "scored on 2 questions held out of train".

    Args:
        scored: the word for it.
        noun: what the examples are.
    """
    train, evaluation = row.official_train, row.official_evaluation
    parts = [f"trained on {row.train_examples:,} of {train:,} {noun}"] if _fewer(row.train_examples, train) else []
    if row.holdout is not None:
        which = noun if row.evaluation_examples is None else f"{row.evaluation_examples:,} {noun}"
        parts.append(
            f"{scored} on {which} held out of train (dataset.holdout={row.holdout}), not on the evaluation split"
        )
    elif _fewer(row.evaluation_examples, evaluation):
        parts.append(f"{scored} on {row.evaluation_examples:,} of {evaluation:,} {noun}")
    return parts


def _fewer(used: int | None, official: int | None) -> bool:
    return bool(used and official and used < official)


def few_examples(row: Row) -> Iterator[str]:
    """The evaluation set, or a class of it, is too small for a small drop."""
    notes = (columns.few_examples(row.evaluation_examples), row.rare_classes)
    yield from (note for note in notes if note is not None)


def no_width(row: Row) -> Iterator[str]:
    """All resamples are alike, which says nothing about other examples."""
    for interval in (row.drop_interval, *(control.interval for control in _controls(row))):
        if interval is not None and interval[0] == interval[1] != 0:
            yield "an interval has no width: all examples change alike, and others need not"


def student_layers(row: Row) -> Iterator[str]:
    """Layers were left out."""
    if row.student_layers:
        yield f"it has {row.student_layers} of the dense model"


def circumstances(row: Row) -> Iterator[str]:
    """A run was resumed, or its dense model made, elsewhere."""
    if row.other_circumstances:
        yield (
            f"{_count(row.other_circumstances, 'run')} made in part under other versions, on other hardware or with "
            "other threads: see the model card"
        )


def selection(row: Row) -> Iterator[str]:
    """The weights are not the last ones of all steps, as those of other rows are."""
    if row.selection:
        yield f"{row.selection}, by scores on a part of train (dataset.validation)"


def checkpoint(row: Row) -> Iterator[str]:
    """The dense model is not one that the row's recipe made."""
    if row.finetuned:
        given = [PurePath(each).name if PurePath(each).is_absolute() else each for each in row.finetuned.split("|")]
        yield f"the dense model is {' or '.join(given)} (model.finetuned), not fine-tuned by the run"


def latency(row: Row) -> Iterator[str]:
    """A time holds for one CPU, setting and precision, and perhaps not for all seeds."""
    if (timed := row.latency) is None:
        return
    kind = "CPU time" if timed.threads == 1 else "time on the clock"
    setting = conditions(timed.batch, timed.length, timed.threads)
    yield f"latency: sparse runtime in {timed.precision}, {setting} ({kind}), on {timed.cpu}"
    if timed.timed_seeds < len(row.seeds):
        elsewhere = f"; {_count(timed.seeds_elsewhere, 'seed')} timed on another CPU" if timed.seeds_elsewhere else ""
        yield f"latency: {timed.timed_seeds} of {_count(len(row.seeds), 'seed')}{elsewhere}"


def controls(row: Row) -> Iterator[str]:
    """A same-budget control is missing, ambiguous, or has other seeds."""
    if not row.is_control and row.control is None:
        layers = " with all layers" if row.student_layers else ""
        yield f"no same-budget dense control: pattern=dense{layers}, and all else as here"
    if any(control.seeds != row.seeds for control in _controls(row)):
        yield "a control has other seeds, which cannot be paired with these"
    if any(control.rivals > 1 for control in _controls(row)):
        yield "several groups of runs could be a control: the one with most seeds is"


# --- all rows of one model, dataset and metric -------------------------------------------------------------


def unequal_seeds(rows: list[Row]) -> Iterator[str]:
    """The maximum over more seeds is higher."""
    counts = [len(row.seeds) for row in rows]
    if min(counts) < max(counts):
        yield f"{_named(rows)}: the maxima are over {min(counts)} to {max(counts)} seeds, and more reach higher"


def settings(rows: list[Row]) -> Iterator[str]:
    """Rows were trained with different dropout or precision, which may depend on the machine."""
    for name, read in SETTINGS.items():
        values = {_normalized(value) for row in rows for value in (read(row) or "").split("|") if value}
        if len(values) > 1:
            yield f"{_named(rows)}: trained with different {name} ({', '.join(sorted(values, key=natural))})"


SETTINGS: dict[str, Callable[[Row], str | None]] = {
    "dropout": lambda row: row.hidden_dropout,
    "dropout of attention weights": lambda row: row.attention_dropout,
    "precision": lambda row: row.precision,
}
OF_ROWS = (
    subsets,
    few_examples,
    no_width,
    student_layers,
    circumstances,
    selection,
    checkpoint,
    latency,
    controls,
    dense_models,
    few_seeds,
    signs,
    drops,
)
OF_COMPARISONS = (unequal_seeds, settings)


def _controls(row: Row) -> list[Control]:
    return [control for control in (row.control, row.plain) if control is not None]


def _opposite(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one * other < 0


def _holds_zero(interval: list[float] | None) -> bool:
    return interval is not None and interval[0] <= 0 <= interval[1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _named(rows: list[Row]) -> str:
    return f"{rows[0].model} {rows[0].scored_on}"


def _normalized(value: str) -> str:
    """0.10 becomes 0.1; what is no number stays."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value
