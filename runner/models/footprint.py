"""Size and work of a model: bytes of its files, plain and compressed, and multiply-accumulates, dense and sparse."""

from __future__ import annotations

import json
import logging
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pruning import matrix_weights
from pruning.runtime.cut import CutReport, cut
from runner.models import heads
from runner.models.checkpoint import skeleton
from runner.models.configuration import read_config
from runner.models.layers import StudentLayers
from runner.models.verify import read_tensors
from runner.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

_CHUNK = 2**24
_LEVEL = 6  # gzip's own choice
TOKENS = 128
"""Length of the example for multiply-accumulates per token: attention takes more of them in a longer one."""


@dataclass
class Footprint:
    """Size and work of a saved sparse model. Zeros are stored like other numbers, so they take as many bytes."""

    bytes: int
    """Size of its safetensors files."""
    compressed_bytes: int
    """Size of these files after deflate, as gzip compresses."""
    macs_dense: int
    """Multiply-accumulates of the dense model for one example: all matrix products, those of attention included."""
    macs_sparse: int
    """Multiply-accumulates of the sparse model for one example, without those with a zero weight. No known hardware
    skips all of them."""
    parameters: int | None = None
    """Parameters of the sparse model, zeros included; None in results of earlier versions."""
    parameters_dense: int | None = None
    """Parameters of the dense model."""


def footprint(folder: Path, architecture: str, tokens: int, dense: PretrainedConfig | None = None) -> Footprint:
    """Measure a saved model.

    Args:
        tokens: the length of the example.
        dense: configuration of the dense model, if that has other layers than the saved one.
    """
    files, config = sorted(folder.glob("*.safetensors")), read_config(str(folder), "FOLDER")
    saved = work(architecture, config, tokens)
    whole = saved if dense is None else work(architecture, dense, tokens)
    stored = read_tensors(folder)
    skipped = sum(int((stored[name] == 0).sum()) * count for name, count in saved.uses.items())
    size = sum(file.stat().st_size for file in files)
    return Footprint(
        size, sum(map(compressed, files)), whole.macs, saved.macs - skipped, saved.parameters, whole.parameters
    )


@dataclass
class Work:
    """What a network takes for one example, whatever its weights are."""

    parameters: int
    macs: int
    """Multiply-accumulates."""
    uses: dict[str, int]
    """How often each weight of a Linear or Conv layer is multiplied, by its name."""


def work(architecture: str, config: PretrainedConfig, tokens: int) -> Work:
    """The work of a network of this configuration; it gets memory only if its forward pass needs that."""
    try:
        return work_of(skeleton(architecture, config), tokens)
    except (RuntimeError, NotImplementedError):  # its forward pass reads values, which a skeleton lacks
        _, from_config = heads.network(architecture, config)
        return work_of(from_config(config, attn_implementation="eager"), tokens)


def work_of(net: PreTrainedModel, tokens: int) -> Work:
    """The work of a network, on whatever device, for an example of so many tokens."""
    return Work(net.num_parameters(), macs(net, tokens), uses(net, tokens))


@dataclass
class Remaining:
    """What there is in a saved model, and what is left if the parts that compute nothing are cut out."""

    parameters: int
    macs_per_token: float
    """Multiply-accumulates for one of TOKENS tokens, zeros and attention included."""
    dead: CutReport
    """Parts that compute nothing: exports to ONNX, OpenVINO and the packed file cut them out."""
    parameters_cut: int
    """Parameters without these parts."""
    macs_per_token_cut: float
    """Multiply-accumulates without these parts."""

    def __str__(self) -> str:
        text = f"{self.parameters:,} parameters, {self.macs_per_token:,.0f} multiply-accumulates a token of {TOKENS}"
        if self.dead.channels or self.dead.heads:
            text += (
                f"\n{self.dead} compute nothing; without them, as exports cut them out: {self.parameters_cut:,} "
                f"parameters, {self.macs_per_token_cut:,.0f} multiply-accumulates a token"
            )
        return text


def remaining(net: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> Remaining | None:
    """Measure a model; None if it cannot compute a text of TOKENS tokens.

    Args:
        net: without memory for its weights; it is used up.
        tensors: the weights, by name.
    """
    try:
        parameters, whole = net.num_parameters(), _macs_anywhere(net)
    except (RuntimeError, ValueError) as error:
        log.warning("multiply-accumulates are not counted: the model does not run: %s", str(error).split("\n")[0])
        return None
    net.load_state_dict(dict(tensors), strict=False, assign=True)
    dead = cut(net)
    left = _macs_anywhere(net) if dead.channels or dead.heads else whole
    return Remaining(parameters, whole / TOKENS, dead, net.num_parameters(), left / TOKENS)


def gone(folder: Path) -> list[str]:
    """What records next to the weights say was left out of the model: layers by its run, channels by an export.

    Raises:
        UserError: a record is damaged.
    """
    lines: list[str] = []
    for name, key in (("pruning.json", "student_layers"), ("export.json", "cut")):
        file = folder / name
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get(key) if file.is_file() else None
            if found and key == "cut":
                lines.append(f"{CutReport(**found)} were cut out of it by the export")
            elif found:
                lines.append(f"it has {StudentLayers(**found)} of the dense model")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged or not whole; remove it to inspect the weights alone") from error
    return lines


def _macs_anywhere(net: PreTrainedModel) -> int:
    """Multiply-accumulates for TOKENS tokens of a network without memory for its weights, or with some."""
    try:
        return macs(net.to("meta"), TOKENS)  # type: ignore[arg-type]
    except (RuntimeError, NotImplementedError):  # as in `work`
        return macs(type(net)(net.config), TOKENS)


def compressed(file: Path) -> int:
    """Bytes of a file after deflate, in chunks of 16 MiB, whose dictionaries are 32 kB anyway."""
    with file.open("rb") as stream, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        chunks = iter(lambda: stream.read(_CHUNK), b"")
        return sum(pool.map(lambda chunk: len(zlib.compress(chunk, _LEVEL)), chunks))


def macs(net: PreTrainedModel, tokens: int) -> int:
    """Multiply-accumulates of one forward pass, on whatever device, for one example of so many tokens."""
    counter = FlopCounterMode(display=False)
    with counter:
        _pass(net, tokens)
    return counter.get_total_flops() // 2


def uses(net: PreTrainedModel, tokens: int) -> dict[str, int]:
    """How often a forward pass multiplies each weight of a Linear or Conv layer, by the weight's name."""
    counts: Counter[str] = Counter()
    names = {id(weight): name for name, weight in matrix_weights(net).items()}
    hooks = []
    for module in net.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if name is not None:
            hooks.append(module.register_forward_hook(_counting(counts, name)))
    try:
        _pass(net, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(counts)


def _counting(counts: Counter[str], name: str) -> Any:
    def count(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Each output of a layer is one product with one row of its matrix.
        counts[name] += output.numel() // module.weight.shape[0]

    return count


def _pass(net: PreTrainedModel, tokens: int) -> None:
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=net.device)
    with torch.no_grad():
        net.eval()(input_ids=ids)
