"""Sparsity of each layer of a saved model, and the patterns that hold, read from its file.

python -m runner.inspect FOLDER [--json] [--plugins MODULES]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning import Block, LayerReport, NofM, Pattern, as_matrix, matrix_weights, misfit, parse
from runner import models
from runner.config import plugins
from runner.models import heads
from runner.models.configuration import building
from runner.models.footprint import Remaining, gone, remaining
from runner.models.verify import fault, read_tensors
from runner.models.weights import check_encoder_weights
from runner.system.commands import command_parser
from runner.system.disk import human_bytes
from runner.system.errors import UserError
from runner.system.process import command
from runner.system.spelling import did_you_mean
from runner.system.text_tables import show as show_table

BLOCKS = ("rows", "columns", "32x32", "16x16", "8x8", "4x4", "2x2", "32x1", "16x1", "8x1", "4x1", "2x1", "1x32", "1x16",
          "1x8", "1x4", "1x2")  # fmt: skip
GROUPS = ("1:16", "2:16", "4:16", "1:8", "2:8", "1:4", "1:2", "4:8", "2:4", "3:4")
# A weight that was not pruned may be zero by chance, and break a block: up to this fraction of a layer's zero blocks.
EXCEPTIONS = 0.001
_PROBE = 128  # rows to look at first: most patterns fail there


@dataclass
class Layer:
    """The zeros and patterns of one weight in the file."""

    name: str
    shape: tuple[int, ...]
    zeros: int
    sparsity: float
    """Fraction of the weight that is zero."""
    patterns: dict[str, int]
    """Patterns that hold, with the number of units that are exceptions."""


@dataclass
class Inspection:
    """The zeros and patterns of a model."""

    folder: str
    layers: list[Layer]
    """All Linear and Conv layers."""
    linear_ratio: float
    """Zeros over elements in the weights of all Linear and Conv layers."""
    overall_ratio: float
    """Zeros of these weights over the elements of all tensors."""
    patterns: list[str]
    """Patterns that hold in every layer that has zeros."""
    claims: str | None
    """The pattern that pruning.json next to the weights names, if this file exists."""
    broken_claims: list[str]
    """Contradictions between the weights and pruning.json."""
    left_out: dict[str, float]
    """Matrices that are no Linear or Conv weight, by kind, as fractions of all parameters."""
    gone: list[str]
    """What is no longer in the file, as the records next to it say: layers, feed-forward channels."""
    bytes: int
    """Size of all tensors."""
    remaining: Remaining | None
    """Parameters and multiply-accumulates; None if the model does not run."""


def inspect(folder: Path) -> Inspection:
    """Read a saved model.

    Raises:
        UserError: there is no model in the folder, or it is damaged.
    """
    tensors = read_tensors(folder)
    if not tensors:
        raise UserError(f"{folder}: there are no weights (*.safetensors) in this folder")
    net = architecture_of(folder)
    matrices = {name: as_matrix(tensors[name]) for name in matrix_names(folder, net, tensors)}
    layers = [look(name, tuple(tensors[name].shape), matrix) for name, matrix in matrices.items()]
    zeros = sum(layer.zeros for layer in layers)
    sparse = [set(layer.patterns) for layer in layers if layer.zeros]
    described = read_claims(folder / "pruning.json")
    named = [layer["pattern"] for layer in described["layers"] if layer.get("pattern")] if described else []
    plugins.check_patterns(folder / "pruning.json", named)
    biases = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 1}
    return Inspection(
        str(folder),
        layers,
        zeros / max(1, sum(matrix.numel() for matrix in matrices.values())),
        zeros / sum(tensor.numel() for tensor in tensors.values()),
        strongest(set.intersection(*sparse)) if sparse else [],
        described["pattern"] if described else None,
        broken_claims(described, matrices | biases) if described else [],
        models.left_out(net),
        gone(folder),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        remaining(net, tensors),
    )


def read_claims(file: Path) -> dict[str, Any] | None:
    """The pattern and layers in pruning.json; None if the file does not exist.

    Raises:
        UserError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        return {"pattern": described["pattern"]["name"], "layers": described["layers"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged or not whole; remove it to inspect the weights alone") from error


def architecture_of(folder: Path) -> Any:
    """The network that config.json names, without memory for its weights.

    Raises:
        UserError: there is no config.json, or it names no architecture that transformers has.
    """
    import transformers

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: there is no config.json in this folder, which says what its tensors are")
    config = models.read_config(str(folder), "FOLDER")
    kind = heads.saved_class(config, folder)
    with building(config):
        return kind.from_config(config) if kind is transformers.AutoModel else kind(config)


def matrix_names(folder: Path, net: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """The weights of Linear and Conv layers in the file.

    Raises:
        UserError: it has none, or the weights are not those of the network.
    """
    matrices = matrix_weights(net)
    names = [name for name in matrices if name in tensors]
    if not names:
        raise UserError(f"{folder}: none of its tensors is a weight of a Linear or Conv layer of {type(net).__name__}")
    check_encoder_weights(net, _loading_info(net, matrices, tensors), str(folder))
    return names


def _loading_info(net: Any, matrices: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers would report about the loading of these tensors."""
    missing = {name for name, _ in net.named_parameters()} - tensors.keys()
    differing = [name for name in matrices.keys() & tensors.keys() if tensors[name].shape != matrices[name].shape]
    return {
        # Files of earlier versions have other names for the parameters of norms, which do not count here.
        "missing_keys": missing if missing & matrices.keys() else set(),
        "unexpected_keys": tensors.keys() - net.state_dict().keys(),
        "mismatched_keys": [(name, tensors[name].shape, matrices[name].shape) for name in differing],
    }


def look(name: str, shape: tuple[int, ...], matrix: Tensor) -> Layer:
    """Count the zeros of one weight, and find the patterns that they follow."""
    zeros = int((matrix == 0).sum())
    holding: dict[str, int] = {}
    if zeros:
        for text in (*BLOCKS, *GROUPS):
            pattern = parse(text)
            broken = exceptions(pattern, matrix, zeros) if misfit(pattern, torch.Size(shape)) is None else None
            if broken is not None:
                holding[text] = broken
    return Layer(name, shape, zeros, zeros / matrix.numel(), holding)


def exceptions(pattern: Pattern, matrix: Tensor, zeros: int) -> int | None:
    """The number of units that break a pattern that fits and holds otherwise; None if it does not hold."""
    # A zero by chance breaks a block, and no N:M group.
    allowed = 0 if isinstance(pattern, NofM) else EXCEPTIONS * zeros / pattern.unit_size(matrix.shape)
    probe = matrix[:_PROBE]
    if str(pattern) != "columns" and pattern.misfit(probe.shape) is None and pattern.violations(probe) > allowed:
        return None
    broken = pattern.violations(matrix)
    return broken if broken <= allowed else None


def implies(one: Pattern, other: Pattern) -> bool:
    """Whether every weight that follows `one` follows `other`."""
    if isinstance(one, Block) and isinstance(other, Block):
        # 0 is the whole axis, which every block that fits divides
        return all(a == 0 or (b != 0 and a % b == 0) for a, b in ((one.rows, other.rows), (one.cols, other.cols)))
    if isinstance(one, NofM) and isinstance(other, NofM):
        larger = other.m % one.m == 0 and one.n * (other.m // one.m) <= other.n
        return larger or (one.m % other.m == 0 and one.n <= other.n)
    return False


def strongest(names: Iterable[str]) -> list[str]:
    """The patterns that do not follow from another one."""
    names = sorted(names)
    return [name for name in names if not any(name != other and implies(parse(other), parse(name)) for other in names)]


def broken_claims(described: Mapping[str, Any], matrices: Mapping[str, Tensor]) -> list[str]:
    """The layers whose weights contradict pruning.json, with the reason.

    Args:
        matrices: weights [out, in] and biases [out] by parameter name.
    """
    known = {field.name for field in fields(LayerReport)}
    broken = []
    for values in described["layers"]:
        layer = LayerReport(
            **{"pattern": described["pattern"], "violations": 0} | {k: v for k, v in values.items() if k in known}
        )
        if layer.skipped:
            continue
        matrix = matrices.get(layer.name)
        wrong = "it is not in the file" if matrix is None else fault(layer, matrix)
        if wrong is not None:
            broken.append(f"{layer.name}: {wrong}")
    return broken


def show(inspection: Inspection) -> None:
    """Print an inspection as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("Layer", overflow="fold"), "Shape", "Zeros", "Patterns that hold", box=box.SIMPLE_HEAD)
    for layer in inspection.layers:
        shape = " x ".join(map(str, layer.shape))
        table.add_row(layer.name.removesuffix(".weight"), shape, f"{layer.sparsity:.4f}", describe(layer))
    console = Console(highlight=False, color_system=None)
    show_table(console, table, widest=500)
    console.print(
        f"{inspection.linear_ratio:.4f} of all Linear and Conv weights are zero, {inspection.overall_ratio:.4f} of all"
    )
    if (left_out := models.describe_left_out(inspection.left_out)) is not None:
        console.print(left_out)
    sparse = sum(1 for layer in inspection.layers if layer.zeros)
    if sparse:
        which = ", ".join(inspection.patterns) or "no pattern"
        console.print(f"{which} in all of the {sparse} layers with zeros (of {len(inspection.layers)})")
    size = human_bytes(inspection.bytes)
    left = f", {inspection.remaining}" if inspection.remaining is not None else ""
    console.print(*inspection.gone, f"{size} of weights{left}", sep="\n")
    if inspection.claims is not None:
        console.print(
            f"pruning.json says {inspection.claims}: "
            + ("the file disagrees" if inspection.broken_claims else "the file agrees")
        )
    for line in inspection.broken_claims:
        console.print(f"  {line}")


def describe(layer: Layer) -> str:
    """The patterns of a layer as text."""
    if not layer.zeros:
        return "dense"
    counts = {name: layer.patterns[name] for name in strongest(layer.patterns)}
    texts = [f"{name} ({count} exceptions)" if count else name for name, count in counts.items()]
    return ", ".join(texts) or "unstructured"


def main(arguments: list[str]) -> int:
    """Inspect the model of the command line; the exit status is 1 if it contradicts pruning.json."""
    parser = command_parser("inspect", "outputs/RUN", "FOLDER --json")
    parser.add_argument("folder", metavar="FOLDER", help="the folder of a saved model, or of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    plugins.add_option(parser)
    options = parser.parse_args(arguments)
    plugins.load(options.plugins or [])
    folder = Path(options.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{options.folder}: there is no such folder{did_you_mean(folder)}")
    with models.quiet_loading():
        inspection = inspect(models.saved_in(folder))
    if options.json:
        print(json.dumps(asdict(inspection), indent=2))
    else:
        show(inspection)
    return 1 if inspection.broken_claims else 0


if __name__ == "__main__":
    command(main)
