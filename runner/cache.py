"""What runs keep for each other in `cache_dir`, and how to free it.

python -m runner.cache list [--cache-dir cache]
python -m runner.cache clean dense teacher [--cache-dir cache]      # or: clean all
python -m runner.cache clean [--cache-dir cache]                    # only what killed processes left half written
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from runner.system.disk import file_stats, human_bytes, size_of
from runner.system.errors import UserError, disk_error
from runner.system.files import lock_is_held, lock_path, remove

KINDS = {
    "dense": "fine-tuned dense models",
    "teacher": "teachers' logits over training features",
    "features": "tokenised examples",
    "scores": "scores of dense models",
}
"""Folders of `cache_dir` and what they hold."""
_UNFINISHED = re.compile(r"\.tmp(-\d+)?$")  # see files.unfinished


@dataclass
class Kept:
    """What is kept of a kind."""

    kind: str
    entries: list[Path] = field(default_factory=list)
    """Files and folders, without locks."""
    unfinished: list[Path] = field(default_factory=list)
    """What a process is writing at this moment, or was when it was killed."""

    @property
    def bytes(self) -> int:
        """What the entries take on the disk."""
        return size_of(*self.entries)

    @property
    def newest(self) -> float | None:
        """When the newest was written, in seconds since 1970."""
        return max((about.st_mtime for about in file_stats(self.entries)), default=None)


def kept(cache: Path) -> list[Kept]:
    """What is in a cache, by kind."""
    out = []
    for kind in KINDS:
        found = Kept(kind)
        for path in sorted((cache / kind).glob("*") if (cache / kind).is_dir() else ()):
            if path.suffix != ".lock":
                (found.unfinished if _UNFINISHED.search(path.name) else found.entries).append(path)
        out.append(found)
    return out


def clean(cache: Path, kinds: Sequence[str] = ()) -> tuple[int, list[Path]]:
    """Remove all that is kept of these kinds; of none, only what killed processes left half written of any.

    Returns:
        The bytes freed, and what was left because a run is making it at this moment.
    """
    freed, busy = 0, []
    for found in kept(cache):
        entries = found.entries if found.kind in kinds else []
        for entry in [*entries, *(found.unfinished if found.kind in kinds or not kinds else ())]:
            lock = lock_path(entry)
            if lock.is_file() and lock_is_held(FileLock(lock)):
                busy.append(entry)
                continue
            freed += size_of(entry)
            try:
                remove(entry)
            except OSError as error:
                raise disk_error(error, entry) from error
    return freed, busy


def main(arguments: list[str]) -> None:
    """List or clean."""
    parser = argparse.ArgumentParser(prog="python -m runner.cache", description="What runs keep for each other")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what is kept, and how much space it takes")
    cleaning = commands.add_parser("clean", help="remove it; runs that need it make it again")
    cleaning.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} or all; none: what killed processes left"
    )
    for command in (listing, cleaning):
        command.add_argument("--cache-dir", type=Path, default=Path("cache"), help="as cache_dir of the runs: cache")
    options = parser.parse_args(arguments)
    if not options.cache_dir.is_dir():
        raise UserError(f"--cache-dir {options.cache_dir}: there is no such folder; name the cache_dir of your runs")
    if options.command == "clean":
        unknown = sorted(set(options.kinds) - {*KINDS, "all"})
        if unknown:
            parser.error(f"unknown kind {unknown[0]!r}: {', '.join(KINDS)} or all")
        freed, busy = clean(options.cache_dir, list(KINDS) if "all" in options.kinds else options.kinds)
        print(f"{human_bytes(freed)} freed in {options.cache_dir}")
        for entry in busy:
            print(f"{entry} is being made by a run, and was left")
        return
    for found in kept(options.cache_dir):
        written = found.newest
        when = "" if written is None else time.strftime(", the newest of %Y-%m-%d %H:%M", time.localtime(written))
        print(f"{found.kind:<9}{human_bytes(found.bytes):>9}  {len(found.entries)} of {KINDS[found.kind]}{when}")
        if found.unfinished:
            left = f"{len(found.unfinished)} half written, {human_bytes(size_of(*found.unfinished))}"
            print(f"{'':<20}and {left}: `clean` removes what no run is making")


if __name__ == "__main__":
    from runner.system.process import exit_status

    sys.exit(exit_status(lambda: main(sys.argv[1:])))
