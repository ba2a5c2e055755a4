"""Filters runs by labels, MLflow tags and sweep, and lists what there is where nothing matches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mlflow.entities import Run as LoggedRun

from results import columns

PARENT = "mlflow.parentRunId"
_MOST = 20  # values in a message


@dataclass(frozen=True)
class Filters:
    """Which runs to show. None: all."""

    model: str | None = None
    """Shell patterns, separated by commas."""
    dataset: str | None = None
    pattern: str | None = None
    tags: list[tuple[str, str]] = field(default_factory=list)
    """MLflow tags, with the values that they must have."""
    sweep: str | None = None
    """The id of a parent run."""

    def match(self, run: LoggedRun) -> bool:
        """True for a run that passes all filters."""
        return all(test(run) for _, _, test in self._tests())

    def match_labels(self, model: str, dataset: str, pattern: str) -> bool:
        """True for labels that pass the filters of labels."""
        wanted = ((self.model, model), (self.dataset, dataset), (self.pattern, pattern))
        return all(patterns is None or matches(label, patterns) for patterns, label in wanted)

    def explain_no_match(self, logged: Iterable[LoggedRun]) -> str:
        """The message if no run passes: names the first filter that no run passes by itself, or else all of them."""
        logged, tests = list(logged), self._tests()
        for option, read, test in tests:
            if not any(test(run) for run in logged):
                return f"no run matches {option}; there are: {_listed(read(run) for run in logged)}"
        together = " ".join(option for option, _, _ in tests)
        return f"no run matches {together} at once; there are: {_listed(map(_labels, logged))}"

    def _tests(self) -> list[tuple[str, Callable[[LoggedRun], str | None], Callable[[LoggedRun], bool]]]:
        """For each filter: the option as given, the value that it reads from a run, and the test of a run."""
        tests = []
        for name in columns.LABELS:
            patterns: str | None = getattr(self, name)
            if patterns is not None:
                read = _param(name)
                tests.append((f"--{name} {patterns}", read, _passing(read, patterns)))
        for key, value in self.tags:
            tests.append((f"--tag {key}={value}", _key_and_tag(key), _having(key, value)))
        if self.sweep is not None:
            tests.append((f"--sweep {self.sweep}", _tag(PARENT), _having(PARENT, self.sweep)))
        return tests


def matches(label: str, patterns: str) -> bool:
    """True if a label equals `patterns` or matches one of these shell patterns separated by commas."""
    return label == patterns or any(
        label == each or fnmatchcase(label, each) for each in map(str.strip, patterns.split(","))
    )


def _param(name: str) -> Callable[[LoggedRun], str | None]:
    return lambda run: run.data.params.get(name)


def _tag(key: str) -> Callable[[LoggedRun], str | None]:
    return lambda run: run.data.tags.get(key)


def _key_and_tag(key: str) -> Callable[[LoggedRun], str | None]:
    return lambda run: f"{key}={run.data.tags[key]}" if key in run.data.tags else None


def _passing(read: Callable[[LoggedRun], str | None], patterns: str) -> Callable[[LoggedRun], bool]:
    return lambda run: matches(read(run) or "", patterns)


def _having(key: str, value: str) -> Callable[[LoggedRun], bool]:
    return lambda run: run.data.tags.get(key) == value


def _labels(run: LoggedRun) -> str | None:
    labels = [run.data.params.get(name) for name in columns.LABELS]
    return None if None in labels else " ".join(filter(None, labels))


def _listed(values: Iterable[str | None]) -> str:
    distinct = sorted({value for value in values if value})
    more = [f"and {len(distinct) - _MOST} more"] if len(distinct) > _MOST else []
    return ", ".join([*distinct[:_MOST], *more]) or "none"
