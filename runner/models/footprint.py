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
from runner.models.checkpoint import skeleton
from runner.models.configuration import read_config
from runner.models.layers import StudentLayers
from runner.models.verify import read_tensors
from runner.system.disk import human_bytes
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
    """Multiply-accumulates of the sparse model for one example, without those with a zero weight and the products of
    attention heads that compute nothing. No known hardware skips all of them."""
    parameters: int | None = None
    """Parameters of the sparse model, zeros included; None in results of earlier versions, as the fields below."""
    parameters_dense: int | None = None
    """Parameters of the dense model."""
    dead: str = ""
    """Heads and channels that compute nothing, in words; empty if there are none."""
    bytes_cut: int | None = None
    """Size of the files without these parts, which exports cut out."""
    parameters_cut: int | None = None
    """Parameters without these parts, other zeros included."""
    macs_cut: int | None = None
    """Multiply-accumulates without these parts, other zeros included: what a dense runtime computes of an export."""

    @property
    def once_cut(self) -> str:
        """What is left without the parts that compute nothing, in words; empty if there are none."""
        if not self.dead or self.bytes_cut is None or self.parameters_cut is None or self.macs_cut is None:
            return ""
        return (
            f"{self.dead} compute nothing; without them {self.parameters_cut:,} of {self.parameters_dense:,} "
            f"parameters, {human_bytes(self.bytes_cut)} and {self.macs_cut / self.macs_dense:.1%} of the "
            "multiply-accumulates are left"
        )


def footprint(folder: Path, architecture: str, tokens: int, dense: PretrainedConfig | None = None) -> Footprint:
    """Measure a saved model.

    Args:
        tokens: the length of the example.
        dense: configuration of the dense model, if that has other layers than the saved one.
    """
    files, config = sorted(folder.glob("*.safetensors")), read_config(str(folder), "FOLDER")
    found = measure(skeleton(architecture, config), read_tensors(folder), tokens)
    saved, left = found.whole, found.left
    whole = saved if dense is None else work_of(runnable(skeleton(architecture, dense), tokens), tokens)
    size = sum(file.stat().st_size for file in files)
    return Footprint(
        size,
        sum(map(compressed, files)),
        whole.macs,
        saved.macs - found.skipped,
        saved.parameters,
        whole.parameters,
        str(found.dead) if found.has_dead else "",
        size - saved.bytes + left.bytes,
        left.parameters,
        left.macs,
    )


@dataclass
class Work:
    """What a network takes for one example, whatever its weights are."""

    parameters: int
    bytes: int
    """Size of the parameters, as they are stored."""
    macs: int
    """Multiply-accumulates."""
    uses: dict[str, int]
    """How often each weight of a Linear or Conv layer is multiplied, by its name."""
    of_weights: int
    """Multiply-accumulates with these weights; the others are attention's products of tokens with tokens."""


@dataclass
class Measured:
    """A saved model as it is, and without the parts that compute nothing."""

    whole: Work
    left: Work
    dead: CutReport
    """The parts that compute nothing: exports to ONNX, OpenVINO and the packed file cut them out."""
    skipped: int
    """Multiply-accumulates of the whole with a zero weight, and attention's products in heads that compute nothing."""

    @property
    def has_dead(self) -> bool:
        """Whether anything can be cut out."""
        return bool(self.dead.channels or self.dead.heads)


def measure(net: PreTrainedModel, tensors: Mapping[str, torch.Tensor], tokens: int) -> Measured:
    """Measure a model for an example of so many tokens.

    Args:
        net: without memory for its weights; it is used up.
        tensors: the weights, by name.

    Raises:
        RuntimeError, ValueError: it cannot compute such an example.
    """
    net = runnable(net, tokens)
    meta = net.device.type == "meta"
    whole = work_of(net, tokens)
    net.load_state_dict(dict(tensors), strict=False, assign=True)
    whole.bytes = sum(tensor.nbytes for tensor in tensors.values())
    before, dead = _size(net), cut(net)
    numbers, size = (old - new for old, new in zip(before, _size(net), strict=True))
    try:
        left = work_of(net.to("meta") if meta else net, tokens)  # type: ignore[arg-type]
        # As differences: loading has untied weights that were shared.
        left.parameters, left.bytes = whole.parameters - numbers, whole.bytes - size
    except (RuntimeError, ValueError) as error:
        left, dead = whole, CutReport(reason=f"cut, it does not run: {str(error).splitlines()[0]}")
    zeros = sum(int((tensors[name] == 0).sum()) * count for name, count in whole.uses.items() if name in tensors)
    remain = dead.all_heads - dead.heads
    products = left.macs - left.of_weights
    used = products * (remain - dead.idle_heads) // remain if dead.idle_heads else products
    return Measured(whole, left, dead, zeros + whole.macs - whole.of_weights - used)


def runnable(net: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """A network that computes an example: this one, or one with memory if its forward pass reads values, which a
    network without memory lacks.
    """
    try:
        _pass(net, tokens)
    except (RuntimeError, NotImplementedError):
        return type(net)._from_config(net.config, attn_implementation="eager")  # type: ignore[return-value]
    return net


def work_of(net: PreTrainedModel, tokens: int) -> Work:
    """The work of a network, on whatever device, for an example of so many tokens."""
    used, sizes = uses(net, tokens), {name: weight.numel() for name, weight in matrix_weights(net).items()}
    of_weights = sum(count * sizes[name] for name, count in used.items())
    return Work(net.num_parameters(), _size(net)[1], macs(net, tokens), used, of_weights)


def _size(net: PreTrainedModel) -> tuple[int, int]:
    """Numbers in the parameters of a network, and their bytes."""
    return sum(p.numel() for p in net.parameters()), sum(p.nbytes for p in net.parameters())


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
    bytes_cut: int
    """Size of the parameters without these parts."""

    def __str__(self) -> str:
        text = f"{self.parameters:,} parameters, {self.macs_per_token:,.0f} multiply-accumulates a token of {TOKENS}"
        if self.dead.channels or self.dead.heads:
            text += (
                f"\n{self.dead} compute nothing; without them, as exports cut them out: {self.parameters_cut:,} "
                f"parameters ({human_bytes(self.bytes_cut)}), {self.macs_per_token_cut:,.0f} multiply-accumulates "
                "a token"
            )
        return text


def remaining(net: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> Remaining | None:
    """Measure a model; None if it cannot compute a text of TOKENS tokens.

    Args:
        net: without memory for its weights; it is used up.
        tensors: the weights, by name.
    """
    try:
        found = measure(net, tensors, TOKENS)
    except (RuntimeError, ValueError) as error:
        log.warning("multiply-accumulates are not counted: the model does not run: %s", str(error).split("\n")[0])
        return None
    whole, left = found.whole, found.left
    return Remaining(whole.parameters, whole.macs / TOKENS, found.dead, left.parameters, left.macs / TOKENS, left.bytes)


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
    def count(module: Any, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Each output of a layer is one product with one row of its matrix.
        counts[name] += output.numel() // module.weight.shape[0]

    return count


def _pass(net: PreTrainedModel, tokens: int) -> None:
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=net.device)
    with torch.no_grad():
        net.eval()(input_ids=ids)
