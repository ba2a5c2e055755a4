"""Timetables: at which optimizer steps masks are updated, and how much of its target each group of layers is due."""

from collections.abc import Mapping

from pruning.errors import PruningError
from pruning.groups import Group
from pruning.plan import Plan
from pruning.schedules import Schedule, TrainingLength


class Timetable:
    """The mask updates of a training. Groups of layers may have schedules of their own.

    Args:
        schedule: of the groups that have none.

    Raises:
        PruningError: a schedule does not fit into the training.
    """

    def __init__(self, plan: Plan, schedule: Schedule, length: TrainingLength) -> None:
        self._main, groups = schedule, [group for group in plan.groups if group.pattern.prunes]
        self._schedules = {group.key: group.own_schedule(schedule) for group in groups}
        self._updates = {group.key: _steps(group, self._schedules[group.key], length) for group in groups}
        main = next((group.key for group in groups if not group.schedule), None)
        course = {} if main is None else self._updates[main]
        self.updates = {step: _at(course, step) for step in sorted({s for own in self._updates.values() for s in own})}
        """Optimizer steps taken before an update of any group -> progress of the main schedule, -1 before it begins."""

    def due(self, after: int, step: int) -> dict[str, float]:
        """Group -> progress, of the groups that have updates after the step `after` and not after `step`."""
        found = {key: [s for s in own if after < s <= step] for key, own in self._updates.items()}
        return {key: self._updates[key][max(steps)] for key, steps in found.items() if steps}

    def sparsity(self, group: Group, progress: float) -> float:
        """Sparsity of a group at this progress of its schedule."""
        return self._schedules[group.key].sparsity(progress, group.pattern.target) if progress >= 0 else 0.0

    def sparsity_at(self, group: Group, step: int) -> float:
        """Sparsity of a group after the updates up to a step."""
        return self.sparsity(group, _at(self._updates[group.key], step))

    def planned(self, target: float) -> dict[int, float]:
        """Optimizer steps taken before an update of any group -> sparsity of layers with the main schedule.

        Args:
            target: of these layers.
        """
        return {step: self._main.sparsity(at, target) if at >= 0 else 0.0 for step, at in self.updates.items()}

    def of(self, group: Group) -> dict[int, float]:
        """Optimizer steps taken before an update of a group -> its sparsity."""
        return {step: self.sparsity(group, at) for step, at in self._updates[group.key].items()}


def _at(course: Mapping[int, float], step: int) -> float:
    """The progress after the updates up to a step; -1 before the first."""
    return course[max(made)] if (made := [s for s in course if s <= step]) else -1.0


def _steps(group: Group, schedule: Schedule, length: TrainingLength) -> dict[int, float]:
    try:
        steps = schedule.steps(length)
        _check_steps(schedule, steps, group.pattern.target, length)
    except PruningError as error:
        if not group.schedule:
            raise
        raise PruningError(f"{group.place}: {error}") from error
    return steps


def _check_steps(schedule: Schedule, steps: Mapping[int, float], target: float, length: TrainingLength) -> None:
    """Refuse a schedule that does not take a group to its target within the training. Raises PruningError."""
    kind = type(schedule).__name__
    if not steps or min(steps) < 0 or max(steps) > length.steps:
        given = f"updates from step {min(steps)} to {max(steps)}" if steps else "no update"
        raise PruningError(f"{kind}.steps gives {given}; at least one is needed, from step 0 to {length.steps}")
    reached = schedule.sparsity(steps[max(steps)], target)
    if abs(reached - target) > 1e-6:
        raise PruningError(
            f"{kind} ends at the sparsity {reached:g}, not at the target {target:g}: the last of its steps must have "
            "the progress 1, at which its sparsity is the target"
        )
