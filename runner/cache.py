"""The cache that runs share (`cache_dir`): its contents, and how to free its space.

python -m runner.cache list [--cache-dir cache]
python -m runner.cache clean dense teacher [--cache-dir cache]      # or: clean all
python -m runner.cache clean [--cache-dir cache]                    # only unfinished files of killed processes
python -m runner.cache clean checkpoints [--output-dir outputs]     # of finished runs; an interrupted one resumes
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from results.arguments import meant
from runner.runs import CHECKPOINTS, runs_in
from runner.system.commands import command_parser
from runner.system.disk import file_stats, human_bytes, size_of
from runner.system.errors import UserError, disk_error
from runner.system.files import lock_is_held, lock_path, remove
from runner.system.process import command
from runner.system.spelling import did_you_mean
from runner.system.text_tables import aligned

KINDS = {
    "dense": "fine-tuned dense models",
    "teacher": "teachers' logits over training features",
    "features": "tokenised examples",
    "scores": "scores of dense models",
    "latency": "measured times of heads and channels",
}
"""Folders of `cache_dir` and what they hold."""
_UNFINISHED = re.compile(r"\.tmp(-\d+)?$")  # see files.temporary_path


@dataclass
class Entries:
    """The contents of the cache of one kind."""

    kind: str
    entries: list[Path] = field(default_factory=list)
    """Files and folders, without locks."""
    unfinished: list[Path] = field(default_factory=list)
    """Files and folders that a process is writing, or was writing when it was killed."""

    @property
    def bytes(self) -> int:
        """Size of the entries on the disk."""
        return size_of(*self.entries)

    @property
    def newest(self) -> float | None:
        """Time at which the newest entry was written, in seconds since 1970."""
        return max((about.st_mtime for about in file_stats(self.entries)), default=None)


def contents(cache: Path) -> list[Entries]:
    """The entries of a cache, for each kind."""
    kinds = []
    for kind in KINDS:
        of_kind = Entries(kind)
        for path in sorted((cache / kind).glob("*") if (cache / kind).is_dir() else ()):
            if path.suffix != ".lock":
                (of_kind.unfinished if _UNFINISHED.search(path.name) else of_kind.entries).append(path)
        kinds.append(of_kind)
    return kinds


def clean(cache: Path, kinds: Sequence[str] = (), dry_run: bool = False) -> tuple[int, list[Path]]:
    """Remove all entries of these kinds; without kinds, only the unfinished files of killed processes.

    Args:
        dry_run: remove nothing.

    Returns:
        The bytes freed, and the entries that stay because a run is making them.

    Raises:
        UserError: an entry cannot be removed.
    """
    freed, busy = 0, []
    for of_kind in contents(cache):
        entries = of_kind.entries if of_kind.kind in kinds else []
        for entry in [*entries, *(of_kind.unfinished if of_kind.kind in kinds or not kinds else ())]:
            lock = lock_path(entry)
            if lock.is_file() and lock_is_held(FileLock(lock)):
                busy.append(entry)
                continue
            freed += _remove(entry, dry_run)
    return freed, busy


def clean_checkpoints(output_dir: Path, dry_run: bool = False) -> tuple[int, int]:
    """Remove the training checkpoints of finished runs; the others may resume from theirs.

    Returns:
        The bytes freed, and the number of runs that had checkpoints.

    Raises:
        UserError: they cannot be removed.
    """
    finished = [run for run in runs_in(output_dir) if run.state == "finished" and run.checkpoints]
    return sum(_remove(Path(run.folder) / CHECKPOINTS, dry_run) for run in finished), len(finished)


def _remove(entry: Path, dry_run: bool) -> int:
    """Remove an entry; the bytes that it has."""
    freed = size_of(entry)
    try:
        if not dry_run:
            remove(entry)
    except OSError as error:
        raise disk_error(error, entry) from error
    return freed


def main(arguments: list[str]) -> None:
    """List or clean."""
    parser = command_parser("cache", "list", "clean teacher", "clean checkpoints --dry-run")
    listed = "the entries, and how much space they take"
    cleaned = "remove entries; runs that need them make them again"
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help=listed, does=listed)
    cleaning = commands.add_parser("clean", help=cleaned, does=cleaned)
    cleaning.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help=f"{', '.join(KINDS)} or all; none: unfinished files of killed processes; {CHECKPOINTS}: those of finished "
        "runs in the output folder",
    )
    cleaning.add_argument("--dry-run", action="store_true", help="remove nothing, and say how much it would free")
    cleaning.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="output_dir of the runs (outputs)"
    )
    for subparser in (listing, cleaning):
        subparser.add_argument(
            "--cache-dir", type=Path, default=Path("cache"), metavar="DIR", help="cache_dir of the runs (cache)"
        )
    options = parser.parse_args(arguments)
    if options.command == "clean":
        _clean(parser, options)
    else:
        _check_folder("cache", options.cache_dir)
        show(options.cache_dir)


def _check_folder(of: str, folder: Path) -> None:
    if not folder.is_dir():
        end = did_you_mean(folder) or f"; name the {of}_dir of your runs"
        raise UserError(f"--{of}-dir {folder}: there is no such folder{end}")


def _clean(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check all that is asked for, then remove it and print what it freed."""
    known = [*KINDS, "all", CHECKPOINTS]
    if unknown := sorted(set(options.kinds) - set(known)):
        parser.error(f"unknown kind {unknown[0]!r}: {', '.join(KINDS)} or all{meant(unknown[0], known)}")
    kinds = [kind for kind in KINDS if {kind, "all"} & set(options.kinds)]
    checkpoints, verb = CHECKPOINTS in options.kinds, "to free" if options.dry_run else "freed"
    entries = bool(kinds) or not checkpoints  # without a kind: unfinished ones
    for asked, of in ((checkpoints, "output"), (entries, "cache")):
        if asked:
            _check_folder(of, getattr(options, f"{of}_dir"))
    if checkpoints:
        freed, count = clean_checkpoints(options.output_dir, options.dry_run)
        print(f"{human_bytes(freed)} {verb} in {options.output_dir}: checkpoints of {count} finished runs")
    if entries:
        freed, busy = clean(options.cache_dir, kinds, options.dry_run)
        print(f"{human_bytes(freed)} {verb} in {options.cache_dir}")
        for entry in busy:
            print(f"{entry} is being made by a run, and was left")


def show(cache: Path) -> None:
    """Print the entries of a cache, a line for each kind."""
    rows = []
    for of_kind in contents(cache):
        written = of_kind.newest
        when = "" if written is None else time.strftime(", the newest of %Y-%m-%d %H:%M", time.localtime(written))
        entries = f"{len(of_kind.entries)} of {KINDS[of_kind.kind]}{when}"
        rows.append((of_kind.kind, human_bytes(of_kind.bytes), entries))
        if of_kind.unfinished:
            left = f"{len(of_kind.unfinished)} half written, {human_bytes(size_of(*of_kind.unfinished))}"
            rows.append(("", "", f"and {left}: `clean` removes what no run is making"))
    print(*aligned(rows, right={1}), sep="\n")


if __name__ == "__main__":
    command(main)
