"""Where examples come from: the hub, or local JSON, JSON-lines and parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import seals
from runner.errors import UserError
from runner.hub import explain

if TYPE_CHECKING:
    import datasets

ReadJson = Callable[[Any, str], Iterator[dict[str, Any]]]
Splits = tuple["datasets.Dataset | None", "datasets.Dataset | None", str]

_SUFFIXES = (".json", ".jsonl", ".parquet")
_EVALUATION = ("dev", "valid", "test")
_CHECKSUMS = "checksums.prune-distill.json"  # in datasets' cache, beside the files it is of


def load(path: str, name: str | None, revision: str | None, squad_json: ReadJson) -> Splits:
    """Train and evaluation split (None where there is none) and a description of the source.

    Args:
        path: an existing file or folder, else a hub id.
        squad_json: turns a parsed .json file, if it is one object, into examples.

    Raises:
        UserError: nothing there, not reachable, or not readable.
    """
    local = Path(path).expanduser()
    if local.exists():
        return _local(local, squad_json)
    if local.is_absolute() or path.startswith(".") or local.suffix in _SUFFIXES:
        raise UserError(f"dataset.path={path}: there is no such file or folder")
    return _hub(path, name, revision)


def _hub(path: str, name: str | None, revision: str | None) -> Splits:
    import datasets
    from datasets import config

    with explain("dataset", "dataset.path", path):
        try:
            loaded = datasets.load_dataset(path, name, revision=revision)
        except Exception as error:
            if not _may_be_of_the_disk(error):
                raise
            cache = Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")
            raise UserError(
                f"dataset.path={path}: the dataset cannot be loaded: {str(error) or repr(error)}; if what the datasets "
                f"library keeps of it is damaged, delete {cache}, and it is made again"
            ) from error
    _check_cache(path, {Path(file["filename"]) for split in loaded.values() for file in split.cache_files})
    evaluation = next((loaded[key] for key in ("validation", "test") if key in loaded), None)
    return loaded.get("train"), evaluation, f"{path}" + (f"@{revision}" if revision else "")


def _may_be_of_the_disk(error: Exception) -> bool:
    """Whether an error may come from a file that is not what datasets wrote. Those of the hub have classes of their
    own."""
    import pyarrow as pa

    kinds = (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError)
    return isinstance(error, kinds) or type(error) in (OSError, FileNotFoundError, IsADirectoryError, ValueError)


def _check_cache(path: str, files: set[Path]) -> None:
    """Refuse files of datasets' cache that have changed since they were first read: datasets itself does not look.

    Raises:
        UserError: a file is damaged.
    """
    for folder in {file.parent for file in files}:
        record = folder / _CHECKSUMS
        known = seals.read_json(record) or {}
        problem = seals.difference(folder, known)
        if problem is not None:
            raise UserError(
                f"dataset.path={path}: what the datasets library keeps in {folder} is damaged ({problem}); delete this "
                "folder, and it is made again"
            )
        new = [file for file in files if file.parent == folder and file.name not in known]
        if new:
            with suppress(OSError):  # others' folder, and read-only: then they answer for it
                seals.write_json(record, known | seals.checksums(folder, new))


def _local(path: Path, squad_json: ReadJson) -> Splits:
    import datasets

    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise UserError(f"dataset.path={path}: no {', '.join(_SUFFIXES)} file in this folder")
    if path.is_file():
        train = evaluation = files  # which one it is, or both with a hold-out, depends on what is asked for
        if any(word in path.stem.lower() for word in _EVALUATION):
            train = []
        else:
            evaluation = []
    else:
        train = [p for p in files if "train" in p.stem.lower()]
        evaluation = [p for p in files if p not in train and any(word in p.stem.lower() for word in _EVALUATION)]
    if not train and not evaluation:
        raise UserError(
            f"dataset.path={path}: name the files train*, dev*, validation* or test*, to tell the splits apart"
        )
    parts = [
        datasets.concatenate_datasets([_file(p, squad_json) for p in part]) if part else None
        for part in (train, evaluation)
    ]
    return parts[0], parts[1], str(path)


def _file(path: Path, squad_json: ReadJson) -> datasets.Dataset:
    import datasets
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            # Not Dataset.from_parquet: it reads a copy in datasets' cache, which it does not check.
            return datasets.Dataset(pyarrow.parquet.read_table(path))
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json" and text.lstrip().startswith("{") and '"data"' in text[:10_000_000]:
            try:
                return datasets.Dataset.from_list(list(squad_json(json.loads(text), str(path))))
            except json.JSONDecodeError:
                pass  # several objects in a file: JSON lines under another name
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return datasets.Dataset.from_list(rows)
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets raise a dozen kinds
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
