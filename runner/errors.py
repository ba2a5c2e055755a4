"""What went wrong by the user's doing or surroundings, told in one message without a traceback."""

from pathlib import Path


class UserError(Exception):
    """Names the value, the place and the remedy. Raised anywhere, printed at the edge (`runner.__main__`)."""


def disk_error(error: Exception, folder: Path) -> UserError:
    """A failure to write below `folder`, as a message."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"cannot write to {folder}: {reason}; free space or choose another place, then run again")
