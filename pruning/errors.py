"""The one error that the engine raises for a request that cannot be met."""


class PruningError(ValueError):
    """A pattern, target, schedule or state that cannot be honoured; the message names the value and the remedy."""
