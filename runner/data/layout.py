"""Which files of a folder are which split, by the words in the names of the files and of their folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.data.text_files import stem_of, suffix_of
from runner.system.errors import UserError

TRAIN = "train"
TRAINING = ""
"""The training split among those that are found, whatever its name."""
KINDS: Mapping[str, tuple[str, ...]] = {
    TRAIN: (TRAIN,),
    "validation": ("validation", "validate", "valid", "val", "dev", "devel"),
    "evaluation": ("evaluation", "evaluate", "eval"),
    "test": ("test",),
}
"""Kind of split -> words that name it; of the kinds that are evaluated, the preferred one first."""
_FORMS = {kind: re.compile(rf"(?:{'|'.join(words)})(?:[a-z]|set|data|ing|elopment)?") for kind, words in KINDS.items()}
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
_SHOWN = 5  # files that a message names
_DEPTH = 2  # folders below folders that are searched


def kinds_of(name: str) -> list[str]:
    """The kinds of split that a name has words of, or forms of them such as "testa", "TrainSet" or "development";
    "latest" and "device" do not count."""
    words = re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return [kind for kind, form in _FORMS.items() if any(map(form.fullmatch, words))]


@dataclass
class Layout:
    """The files of each split of a folder."""

    train: list[Path]
    evaluation: dict[str, list[Path]]
    """Split's name -> its files, the main split first."""
    unused: list[Path]
    """Files that look like data, and are in no split."""


@dataclass
class Asked:
    """The splits that the configuration names."""

    key: str
    """The key and value that name the folder, for messages."""
    train: str | None
    evaluation: Sequence[str]
    suffixes: Sequence[str]
    """Types of files that can be read."""

    @property
    def names(self) -> list[str]:
        """Parts of names of files."""
        return [*([self.train] if self.train else []), *self.evaluation]

    def split_of(self, file: Path, folder: Path) -> str | None:
        """The split of a file: `TRAINING`, an evaluation split that is asked for, or a kind; None: none.

        Raises:
            UserError: its name fits several.
        """
        label = _label(file, folder)
        # The longest name that fits: dev2.csv is in the split "dev2", not also in "dev".
        fitting = sorted((name for name in set(self.names) if name.lower() in label.lower()), key=len, reverse=True)
        if len(fitting) > 1 and len(fitting[0]) == len(fitting[1]):
            both = " and ".join(sorted(fitting[:2]))
            raise UserError(
                f"dataset.evaluation_splits={list(self.evaluation)}: {file} fits {both}; give longer parts of the "
                "files' names"
            )
        kinds = kinds_of(stem_of(file)) or (kinds_of(file.parent.name) if file.parent != folder else [])
        if fitting and (self.train or kinds != [TRAIN] or kinds_of(fitting[0])):
            others = [kind for kind in kinds if kind != TRAIN]
            if fitting[0] == self.train and not self.evaluation and others and not kinds_of(fitting[0]):
                raise UserError(
                    f"dataset.train_split={self.train}: it fits {file}, whose name says {others[0]}; give a longer "
                    "part of the names of the training files, or name dataset.evaluation_splits"
                )
            return TRAINING if fitting[0] == self.train else fitting[0]
        if TRAIN in kinds and len(kinds) > 1 and not self.names:
            raise UserError(
                f"{self.key}: the name of {file} says {' and '.join(kinds)}; rename it, or set dataset.train_split and "
                "dataset.evaluation_splits"
            )
        # Kinds stand for what is not asked for: any of train, or any of evaluation.
        kinds = [kind for kind in kinds if not (self.train if kind == TRAIN else self.evaluation)]
        if not kinds:
            return None
        return TRAINING if kinds[0] == TRAIN else kinds[0]


def find(folder: Path, asked: Asked) -> Layout:
    """Find the splits of a folder: in its files and its folders named after splits, or else in its only folder that has
    any, such as `data`.

    Raises:
        UserError: there are none, or it is ambiguous which they are.
    """
    place, splits = _search(folder, asked)
    data = {file for each in {folder, place} for file in _visible(each, "*", "*/*") if _is_data(file, asked)}
    if not any(suffix_of(file) in asked.suffixes for file in data):
        others = f"; it has {shown(names(sorted(data), folder))}" if data else ""
        raise UserError(f"{asked.key}: this folder has no {', '.join(asked.suffixes)} file{others}")
    missing = {"train_split": [asked.train] if asked.train and TRAINING not in splits else [],
               "evaluation_splits": [name for name in asked.evaluation if name not in splits]}  # fmt: skip
    for key, lacking in missing.items():
        if lacking:
            raise UserError(f"{asked.key}: no file named {lacking[0]}*, which dataset.{key} asks for")
    if not splits:
        raise UserError(
            f"{asked.key}: no file name says which split it is (there is {shown(names(sorted(data), folder))}): name "
            "the files train*, dev*, validation* or test*, or set dataset.train_split and dataset.evaluation_splits"
        )
    train = splits.pop(TRAINING, [])
    scored = asked.evaluation or [kind for kind in KINDS if kind in splits][:1]
    evaluation = {name: splits[name] for name in scored}
    for files in (train, *evaluation.values()):
        _check_complete(files)
    return Layout(
        train, evaluation, sorted(data - {*train, *(file for files in evaluation.values() for file in files)})
    )


def _search(folder: Path, asked: Asked, depth: int = _DEPTH) -> tuple[Path, dict[str, list[Path]]]:
    """The folder that has the splits, and the files of each."""
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and _is_visible(each))
    files = _readable(folder, asked)
    for each in folders:
        if kinds_of(each.name) or any(name.lower() in each.name.lower() for name in asked.names):
            files += _readable(each, asked)
    splits: dict[str, list[Path]] = {}
    for file in files:
        split = asked.split_of(file, folder)
        if split is not None:
            splits.setdefault(split, []).append(file)
    if splits or not depth:
        return folder, splits
    inner = {place: found for place, found in (_search(each, asked, depth - 1) for each in folders) if found}
    if len(inner) > 1:
        raise UserError(
            f"{asked.key}: several of its folders have splits: {shown(names(inner, folder))}; set dataset.path to one "
            "of them"
        )
    return next(iter(inner.items()), (folder, {}))


def _label(file: Path, folder: Path) -> str:
    """The part of a file's path that may name its split."""
    return stem_of(file) if file.parent == folder else f"{file.parent.name}/{stem_of(file)}"


def _readable(folder: Path, asked: Asked) -> list[Path]:
    return sorted(file for file in _visible(folder, "*") if suffix_of(file) in asked.suffixes)


def _is_data(file: Path, asked: Asked) -> bool:
    return suffix_of(file) in asked.suffixes or bool(kinds_of(stem_of(file)))


def _visible(folder: Path, *patterns: str) -> Iterator[Path]:
    """The files in a folder, without hidden ones and those that archives of macOS add."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            if not file.is_dir() and all(map(_is_visible, (file, *file.relative_to(folder).parents))):
                yield file


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse a split of several folders, one of which a numbered part is missing, and one with the same name in several
    types."""
    folders = {file.parent: file for file in files}
    if len(folders) > 1:
        both = " and ".join(map(str, list(folders.values())[:2]))
        raise UserError(f"{both} are in different folders, and their names say that they are one split: move or rename "
                        "one of them")  # fmt: skip
    parts: dict[tuple[Path, int], set[int]] = {}
    names: dict[Path, Path] = {}
    for file in files:
        twin = names.setdefault(file.with_name(stem_of(file)), file)
        if twin != file:
            raise UserError(f"{twin} and {file.name} have the same name: if both hold the same data, remove one, else "
                            "give them different names")  # fmt: skip
        numbered = _SHARD.fullmatch(stem_of(file))
        if numbered:
            parts.setdefault((file.with_name(numbered[1]), int(numbered[3])), set()).add(int(numbered[2]))
    for (name, count), numbers in parts.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise UserError(f"{name}-{missing[0]:05}-of-{count:05}: this part is missing, with {len(missing)} of "
                            f"{count} in all; copy it into the folder")  # fmt: skip


def names(files: Iterable[Path], folder: Path) -> list[str]:
    """The paths of files in a folder."""
    return [str(file.relative_to(folder)) for file in files]


def shown(names: Sequence[str]) -> str:
    """The first few of some files, for messages."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
