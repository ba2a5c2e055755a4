"""MLflow's sqlite databases: the file behind a URI, the URI of a file, and what is wrong with a file."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PREFIX = re.compile(r"sqlite(?:\+\w+)?:///")
_OPTIONS = re.compile(r"\?\w+=[^?/]*$")  # any other ? is part of a name
_REVISION = re.compile(r'^(down_)?revision = "(\w+)"', re.M)


def file_of(uri: str) -> Path | None:
    """The database file of a URI; None if the store is no sqlite database."""
    prefix = _PREFIX.match(uri)
    return Path(_OPTIONS.sub("", uri[prefix.end() :])).expanduser() if prefix else None


def absolute(uri: str) -> str:
    """The URI as MLflow takes it: of a sqlite database with its absolute path, in which ? and % are quoted if
    SQLAlchemy would read them otherwise."""
    file = file_of(uri)
    if file is None:
        return uri
    options = _OPTIONS.search(uri)
    path = str(file.resolve())
    if "?" in path or "%" in path:
        from sqlalchemy.engine import URL

        # Of "sqlite:///" alone MLflow would also make a folder of the quoted name.
        return URL.create("sqlite+pysqlite", database=path).render_as_string() + (options[0] if options else "")
    return f"sqlite:///{path}{options[0] if options else ''}"


def fault(file: Path) -> str | None:
    """What is wrong with a file that should be a database of this version of MLflow; None if nothing is.

    To be called before MLflow, which would create its tables in any database, and its folder.
    """
    if file.is_dir():
        return f"{file} is a folder, not a database"
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"experiments", "alembic_version"} <= tables:
                return f"{file} is no MLflow database"
            database.execute("SELECT count(*) FROM experiments").fetchone()
            version = (database.execute("SELECT version_num FROM alembic_version").fetchone() or ("none",))[0]
    except sqlite3.Error as error:
        return f"{file} cannot be read as a database: {error}"
    own = schema_version()
    if own is None or version == own:
        return None
    return f"{file} has tables of another version of MLflow ({version}; this one needs {own})"


@cache
def schema_version() -> str | None:
    """The version of the tables that the installed MLflow needs, without its import; None if unknown."""
    found = find_spec("mlflow")
    folder = Path(found.origin).parent if found is not None and found.origin else Path()
    scripts = (folder / "store" / "db_migrations" / "versions").glob("*.py")
    names = [match for file in scripts for match in _REVISION.findall(file.read_text(encoding="utf-8"))]
    newest = {name for down, name in names if not down} - {name for down, name in names if down}
    return newest.pop() if len(newest) == 1 else None
