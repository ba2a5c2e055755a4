"""Errors that the user can fix, shown as one message without a traceback."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix; its message names the value, the place and the remedy."""


def disk_error(error: Exception, folder: Path | str) -> UserError:
    """The UserError for a failure to write below `folder`."""
    return _refused(folder, disk_reason(error) or str(error))


def _refused(where: Path | str, reason: str) -> UserError:
    full = re.search("space|quota|disk is full|too large|written to its end", reason, re.IGNORECASE)
    remedy = "free space or choose another place" if full else "choose a place that this user can write to"
    return UserError(f"cannot write to {where}: {reason}; {remedy}, then run again")


def disk_reason(error: BaseException) -> str | None:
    """The reason of an error that comes from the disk, or None. The Rust and C++ libraries that save tokenizers,
    safetensors and optimizers give it only in the text of their errors."""
    if isinstance(error, (ConnectionError, UserError)):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error)
    words = re.search(r"([^:]*) \(os error \d+\)", str(error))
    if words is not None:
        return words[1].strip()
    return "a file could not be written to its end" if "inline_container.cc" in str(error) else None


def causes_of(error: BaseException | None) -> list[BaseException]:
    """The error and its causes, outermost first. In a debugger OmegaConf makes an error its own cause."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__
    return causes


def database_reason(error: BaseException) -> str | None:
    """The reason of an error that comes from writing to sqlite, or None. MLflow wraps it twice."""
    cause = next((c for c in causes_of(error) if isinstance(c, sqlite3.OperationalError)), None)
    refused = re.search("disk is full|disk I/O error|readonly database|unable to open", str(cause)) if cause else None
    return str(cause) if refused else None


@contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """Turn errors of the disk while writing below a folder into a UserError."""
    try:
        yield
    except Exception as error:
        if disk_reason(error) is None:
            raise
        raise disk_error(error, folder) from error


@contextmanager
def writing_database(uri: str | None) -> Iterator[None]:
    """Turn errors of sqlite while logging to a tracking URI into a UserError."""
    try:
        yield
    except Exception as error:
        reason = database_reason(error)
        if reason is None or isinstance(error, UserError):
            raise
        raise _refused(f"tracking.uri={uri}", reason) from error
