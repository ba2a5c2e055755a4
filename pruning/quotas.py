"""Quotas: how many units of a layer there are, how many may be pruned, and what that is worth."""

from dataclasses import dataclass


@dataclass
class Quota:
    """How many units one layer has, and how many of them may be pruned."""

    units: int
    """Units in the layer."""
    zeros: int
    """Weights that a pruned unit sets to zero; or multiply-accumulates that it saves."""
    floor: int = 0
    """The fewest units to prune."""
    cap: int | None = None
    """The most units to prune; None: all."""
    gone: int = 0
    """Units pruned already: their cost is -inf, and they stay pruned."""
    saved: tuple[float, ...] | None = None
    """Milliseconds saved with 0, 1, ... units pruned, where the budget is time: not in proportion to their number."""

    @property
    def most(self) -> int:
        """`cap`, or all units."""
        return self.units if self.cap is None else self.cap

    def saves(self, count: int) -> float:
        """What so many pruned units are worth: weights, multiply-accumulates or milliseconds."""
        return count * self.zeros if self.saved is None else self.saved[count]
