"""What went wrong by the user's doing or surroundings, told in one message without a traceback."""

from pathlib import Path


class UserError(Exception):
    """Names the value, the place and the remedy. Raised anywhere, printed at the edge (`runner.__main__`)."""


def disk_error(error: OSError, folder: Path) -> UserError:
    """An OSError while writing below `folder`, as a message."""
    return UserError(
        f"cannot write to {folder}: {error.strerror or error}; free space or choose another place, then run again"
    )
