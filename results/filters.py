"""Which runs are shown: by labels, by MLflow tags, by sweep; and what there is, where nothing matches."""

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
    """None: all."""

    model: str | None = None
    """Shell patterns, separated by commas."""
    dataset: str | None = None
    pattern: str | None = None
    tags: list[tuple[str, str]] = field(default_factory=list)
    """MLflow tags with the values that they must have."""
    sweep: str | None = None
    """The id of a parent run."""

    def keeps(self, run: LoggedRun) -> bool:
        """Whether a run may be shown, as far as these filters go."""
        return all(test(run) for _, _, test in self._tests())

    def keeps_labels(self, model: str, dataset: str, pattern: str) -> bool:
        """The same of labels alone."""
        wanted = ((self.model, model), (self.dataset, dataset), (self.pattern, pattern))
        return all(patterns is None or matches(label, patterns) for patterns, label in wanted)

    def nothing(self, logged: Iterable[LoggedRun]) -> str:
        """What to say if these filters keep none of the runs: the first that keeps none by itself, or all of them."""
        logged, tests = list(logged), self._tests()
        for option, read, test in tests:
            if not any(test(run) for run in logged):
                return f"no run matches {option}; there are: {_listed(read(run) for run in logged)}"
        together = " ".join(option for option, _, _ in tests)
        return f"no run matches {together} at once; there are: {_listed(map(_labels, logged))}"

    def _tests(self) -> list[tuple[str, Callable[[LoggedRun], str | None], Callable[[LoggedRun], bool]]]:
        """Option as given, what it looks at, and whether a run passes."""
        tests = []
        for name in columns.LABELS:
            patterns: str | None = getattr(self, name)
            if patterns is not None:
                read = _param(name)
                tests.append((f"--{name} {patterns}", read, _passing(read, patterns)))
        for key, value in self.tags:
            tests.append((f"--tag {key}={value}", _told_tag(key), _having(key, value)))
        if self.sweep is not None:
            tests.append((f"--sweep {self.sweep}", _tag(PARENT), _having(PARENT, self.sweep)))
        return tests


def matches(label: str, patterns: str) -> bool:
    """Whether a label is, or matches, one of the shell patterns separated by commas."""
    return label == patterns or any(
        label == each or fnmatchcase(label, each) for each in map(str.strip, patterns.split(","))
    )


def _param(name: str) -> Callable[[LoggedRun], str | None]:
    return lambda run: run.data.params.get(name)


def _tag(key: str) -> Callable[[LoggedRun], str | None]:
    return lambda run: run.data.tags.get(key)


def _told_tag(key: str) -> Callable[[LoggedRun], str | None]:
    """The value of a tag; where a run lacks the tag, nothing."""
    return lambda run: f"{key}={run.data.tags[key]}" if key in run.data.tags else None


def _passing(read: Callable[[LoggedRun], str | None], patterns: str) -> Callable[[LoggedRun], bool]:
    return lambda run: matches(read(run) or "", patterns)


def _having(key: str, value: str) -> Callable[[LoggedRun], bool]:
    return lambda run: run.data.tags.get(key) == value


def _labels(run: LoggedRun) -> str | None:
    labels = [run.data.params.get(name) for name in columns.LABELS]
    return None if None in labels else " ".join(filter(None, labels))


def _listed(values: Iterable[str | None]) -> str:
    found = sorted({value for value in values if value})
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return ", ".join([*found[:_MOST], *more]) or "none"
