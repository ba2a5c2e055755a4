"""The one error that the engine raises for a request that cannot be met."""


class PruningError(ValueError):
    """A pattern, target, schedule or state that cannot be honoured.

    The message names the value, the place and the remedy.

    Args:
        owner: the object whose arguments the message writes as `name=value`, if it is about arguments.
    """

    def __init__(self, message: str, owner: object = None) -> None:
        super().__init__(message)
        self.owner = owner
