"""What runs keep for each other in `cache_dir`, and how to free it.

python -m runner.cache list [--cache-dir cache]
python -m runner.cache clean dense teacher [--cache-dir cache]      # or: clean all
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from runner.baseline import lock_is_held
from runner.errors import UserError, disk_error

KINDS = {
    "dense": "fine-tuned dense models",
    "teacher": "teachers' logits over training features",
    "features": "tokenised examples",
    "scores": "scores of dense models",
}
"""Folders of `cache_dir` and what they hold."""


@dataclass
class Kept:
    """What is kept of a kind."""

    kind: str
    entries: list[Path] = field(default_factory=list)
    """Files and folders, without locks."""

    @property
    def bytes(self) -> int:
        """What they take on the disk."""
        return sum(file.stat().st_size for entry in self.entries for file in _files(entry))

    @property
    def newest(self) -> float | None:
        """When the newest was written, in seconds since 1970."""
        return max((file.stat().st_mtime for entry in self.entries for file in _files(entry)), default=None)


def _files(entry: Path) -> Iterator[Path]:
    return (file for file in entry.rglob("*") if file.is_file()) if entry.is_dir() else iter([entry])


def kept(cache: Path) -> list[Kept]:
    """What is in a cache, by kind."""
    return [
        Kept(kind, sorted(entry for entry in (cache / kind).glob("*") if entry.suffix != ".lock")) for kind in KINDS
    ]


def clean(cache: Path, kinds: list[str]) -> tuple[int, list[Path]]:
    """Remove all that is kept of these kinds.

    Returns:
        The bytes freed, and what was left because a run is making it at this moment.
    """
    freed, busy = 0, []
    for found in kept(cache):
        for entry in found.entries if found.kind in kinds else ():
            lock = entry.with_name(f"{entry.name.split('.')[0]}.lock")
            if lock.is_file() and lock_is_held(FileLock(lock)):
                busy.append(entry)
                continue
            freed += Kept(found.kind, [entry]).bytes
            try:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except OSError as error:
                raise disk_error(error, entry) from error
    return freed, busy


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def main(arguments: list[str]) -> None:
    """List or clean."""
    parser = argparse.ArgumentParser(prog="python -m runner.cache", description="What runs keep for each other")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what is kept, and how much space it takes")
    cleaning = commands.add_parser("clean", help="remove it; runs that need it make it again")
    cleaning.add_argument(
        "kinds", nargs="+", choices=[*KINDS, "all"], metavar="KIND", help=f"{', '.join(KINDS)} or all"
    )
    for command in (listing, cleaning):
        command.add_argument("--cache-dir", type=Path, default=Path("cache"), help="as cache_dir of the runs: cache")
    options = parser.parse_args(arguments)
    if not options.cache_dir.is_dir():
        raise UserError(f"--cache-dir {options.cache_dir}: there is no such folder; name the cache_dir of your runs")
    if options.command == "clean":
        freed, busy = clean(options.cache_dir, list(KINDS) if "all" in options.kinds else options.kinds)
        print(f"{size(freed)} freed in {options.cache_dir}")
        for entry in busy:
            print(f"{entry} is being made by a run, and was left")
        return
    for found in kept(options.cache_dir):
        written = found.newest
        when = "" if written is None else time.strftime(", the newest of %Y-%m-%d %H:%M", time.localtime(written))
        print(f"{found.kind:<9}{size(found.bytes):>9}  {len(found.entries)} of {KINDS[found.kind]}{when}")


if __name__ == "__main__":
    from runner.edge import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))
