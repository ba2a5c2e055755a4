"""Size and work of a model: bytes of its files, plain and compressed, and multiply-accumulates, dense and sparse."""

from __future__ import annotations

import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pruning import matrix_weights
from runner.models import heads
from runner.models.checkpoint import skeleton
from runner.models.configuration import read_config
from runner.models.verify import read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 2**24
_LEVEL = 6  # gzip's own choice


@dataclass
class Footprint:
    """Size and work of a saved sparse model. The dense one takes as many bytes: zeros are stored like other numbers."""

    bytes: int
    """Size of its safetensors files."""
    compressed_bytes: int
    """Size of these files after deflate, as gzip compresses."""
    macs_dense: int
    """Multiply-accumulates for one example: all matrix products, those of attention included."""
    macs_sparse: int
    """Multiply-accumulates for one example, without those with a zero weight. No known hardware skips all of them."""


def footprint(folder: Path, architecture: str, tokens: int) -> Footprint:
    """Measure a saved model.

    Args:
        tokens: the length of the example.
    """
    files, config = sorted(folder.glob("*.safetensors")), read_config(str(folder), "FOLDER")
    try:
        net = skeleton(architecture, config)
        dense, used = macs(net, tokens), uses(net, tokens)
    except (RuntimeError, NotImplementedError):  # its forward pass reads values, which a skeleton lacks
        from_pretrained, _ = heads.network(architecture, config)
        net = from_pretrained(folder, config=config, attn_implementation="eager")
        dense, used = macs(net, tokens), uses(net, tokens)
    stored = read_tensors(folder)
    skipped = sum(int((stored[name] == 0).sum()) * count for name, count in used.items())
    size = sum(file.stat().st_size for file in files)
    return Footprint(size, sum(map(compressed, files)), dense, dense - skipped)


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
