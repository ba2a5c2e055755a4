"""The weights in a checkpoint's files: whether they can be read, are numbers, and fit the network that takes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.models.configuration import looks_like
from runner.models.structure import POSITION_TABLES
from runner.system.errors import UserError
from runner.system.files import check_regular

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 3  # names that a message shows


def weight_files(path: str, revision: str | None, place: str) -> list[Path]:
    """The files that transformers reads the weights from; downloaded now if they are on the hub.

    Args:
        place: the key and the path of the checkpoint, for messages.

    Raises:
        UserError: there is none, or an index names one that is missing.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    for name in names:
        file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        files = [Path(file)]
        if name.endswith(".index.json"):
            try:
                shards = get_checkpoint_shard_files(path, file, revision=revision)[0] or ()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problem = looks_like(Path(file)) or "is damaged: download it again"
                raise UserError(f"{place}: its {name} {problem}") from error
            files = [Path(shard) for shard in shards]
        lost = next((shard.name for shard in files if not shard.is_file()), None)
        if lost:
            raise UserError(f"{place}: its {name} names {lost}, which is missing: download it again")
        return files
    raise UserError(f"{place}: it has no weights under a name that transformers reads: {', '.join(names)}")


@contextmanager
def opened(file: Path, place: str) -> Iterator[tuple[Collection[str], Callable[[str], Tensor]]]:
    """A file of weights.

    Yields:
        The names of its tensors, and the function that reads one.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    check_regular(file)
    where = f"{place}: its {file.name}"
    if problem := looks_like(file):
        raise UserError(f"{where} {problem}")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as stored:
                yield stored.keys(), stored.get_tensor
        except SafetensorError as error:
            raise UserError(f"{where} is damaged or not whole ({error}): download it again") from error
        return
    tensors = _unpickled(file, where)
    yield tensors.keys(), tensors.__getitem__


def _unpickled(file: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a pickle, of which nothing but tensors is read."""
    from pickle import UnpicklingError

    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, UnpicklingError) else None
        if code:
            raise UserError(
                f"{where} holds {code[1]}, and only tensors are read from a pickle, which could run code: take the "
                "model's safetensors file, or ask its author for one"
            ) from error
        raise UserError(f"{where} is damaged or not whole: download it again") from error
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        held = ", ".join(map(str, list(values)[:_SHOWN])) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{where} holds {held}, not the tensors of a model: save the model by save_pretrained")
    return values


def check_readable(files: Iterable[Path], place: str) -> None:
    """Refuse files of weights that are damaged, empty or something else; no tensor is read."""
    for file in files:
        with opened(file, place) as (names, _):
            if not names:
                raise UserError(f"{place}: its {file.name} holds no tensor")


def check_numbers(files: Iterable[Path], net: PreTrainedModel, unused: Collection[str], place: str) -> None:
    """Refuse weights that are integers, NaN or infinite.

    Args:
        unused: tensors that the network does not take, whatever they hold.
    """
    kinds = _kinds(net)
    for file in files:
        with opened(file, place) as (names, read):
            for name in names:
                if name in unused or name.rpartition(".")[2] not in kinds:
                    continue
                tensor = read(name)
                if not tensor.is_floating_point():
                    kind = str(tensor.dtype).removeprefix("torch.")
                    raise UserError(
                        f"{place}: {name} in {file.name} is stored as {kind}: its weights are quantized or damaged; "
                        "name the model in float16, bfloat16 or float32"
                    )
                wrong = int((~tensor.float().isfinite()).sum())
                if wrong:
                    raise UserError(
                        f"{place}: {wrong} of {tensor.numel()} numbers of {name} in {file.name} are NaN or infinite "
                        "(in float32): its training diverged, or the file is damaged; take another checkpoint"
                    )


def _prefix(net: PreTrainedModel) -> str:
    """The beginning of the names of the encoder's weights."""
    return "" if net.base_model is net else f"{net.base_model_prefix}."


def _kinds(net: PreTrainedModel) -> set[str]:
    """The last parts of the names of parameters, such as weight and bias: buffers have others, such as position_ids."""
    return {name.rpartition(".")[2] for name, _ in net.named_parameters()}


def check_encoder_weights(net: PreTrainedModel, info: Mapping[str, Any], place: str, trained: bool = False) -> None:
    """Refuse weights that do not arrive in the encoder: missing, unused, or of another shape.

    Args:
        net: the network, with or without memory for its weights.
        info: what transformers reports about its loading.
        trained: whether the head comes from the checkpoint, so that its shapes count too.
    """
    prefix = _prefix(net)
    for name, stored, expected in sorted(info["mismatched_keys"]):
        if trained or name.startswith(prefix):
            raise UserError(
                f"{place}: {name} is {list(stored)} in its weights and {list(expected)} by its config.json: the "
                "checkpoint is damaged, or its two files are not of one model"
            )
    names = [name for name, _ in net.named_parameters() if name.startswith(prefix)]
    weights = [name for name in names if "pooler" not in name.split(".")]
    missing, unexpected = [name for name in weights if name in info["missing_keys"]], sorted(info["unexpected_keys"])
    unused = unused_in_encoder(net, unexpected)
    if not missing and not unused:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the encoder's {len(weights)} weights are missing ({_first(missing)})")
    if unused:
        parts.append(f"{len(unused)} of its tensors have no place in the encoder ({_first(unused)})")
    raise UserError(f"{place}: {' and '.join(parts)}: {_likely_reason(missing, unexpected, prefix)}")


def unused_in_encoder(net: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """The tensors that belong to the encoder by their names, and are no weights of this one. Not counted are poolers,
    buffers of earlier versions, and position tables of a model whose positions are relative."""
    base, kinds = net.base_model, _kinds(net)
    parts = {name for name, _ in base.named_children()} | {name for name, _ in base.named_parameters(recurse=False)}
    unused = []
    for name in unexpected:
        path = name.removeprefix(_prefix(net)).split(".")
        left = path[-1] not in kinds or "pooler" in path or any(table in path for table in POSITION_TABLES)
        if path[0] in parts and not left:
            unused.append(name)
    return unused


def _first(names: list[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def _likely_reason(missing: list[str], unexpected: list[str], prefix: str) -> str:
    """Why weights do not arrive, and what to do: names with another beginning, or the weights of another model."""
    inner = [name.removeprefix(prefix) for name in missing]
    if added := _beginning(unexpected, {*missing, *inner}):
        return f"the names in its file begin with {added!r}; save the weights again without it"
    if lacking := _beginning(missing, set(unexpected)):
        return f"the names in its file lack {lacking!r} at their beginning; save the weights again with it"
    return "its weights and its config.json are not of one model; take a checkpoint that is whole"


def _beginning(names: Iterable[str], rests: set[str]) -> str:
    """What stands before one of `rests` in most of the names; the shortest, or nothing."""
    counts = Counter(
        name[: dot.end()] for name in names for dot in re.finditer(r"\.", name) if name[dot.end() :] in rests
    )
    return min(counts, key=lambda start: (-counts[start], len(start)), default="")


def new_parts(net: PreTrainedModel, info: Mapping[str, Any]) -> list[str]:
    """The parts outside the encoder's layers, such as the head, whose weights the checkpoint does not have, or has in
    another shape."""
    prefix, parameters = _prefix(net), {name for name, _ in net.named_parameters()}
    new = parameters & {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    return sorted({".".join(name.split(".")[: 2 if name.startswith(prefix) else 1]) for name in new})
