"""Models with a sparse encoder: made from a dense model, or loaded from its folder or from a packed file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.runtime import compiler
from pruning.runtime.base_model import SparseBase
from pruning.runtime.compiler import Unavailable
from pruning.runtime.encoder import SparseEncoder
from pruning.runtime.families import LINEARS, check_layers, structure_of
from pruning.runtime.packing import GROUP, Blocks

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils.generic import ModelOutput


@dataclass(frozen=True)
class Report:
    """What runs the encoder of a model."""

    runtime: str
    """"sparse" or "dense torch"."""
    reason: str = ""
    """Why the encoder is dense; empty if it is sparse."""
    precision: str = "float32"
    """Precision of the products: float32, bfloat16, int8 or "mixed"."""
    instructions: str = ""
    """Instruction set of the kernels."""
    compiler: str = ""
    density: float = 1.0
    """Share of the encoder's 4x1 blocks that are not zero."""
    packed_bytes: int = 0
    """Memory of the encoder's packed weights."""
    dense_bytes: int = 0
    """Memory of the encoder's weights in torch, which a sparse encoder frees."""

    def __str__(self) -> str:
        if self.runtime != "sparse":
            return f"{self.runtime} ({self.reason})"
        return (
            f"sparse {self.precision} ({self.instructions}; {self.compiler}): {self.density:.1%} of the 4x1 blocks, "
            f"{self.packed_bytes / 2**20:.1f} MiB of weights instead of {self.dense_bytes / 2**20:.1f}"
        )


class FastModel:
    """A model for inference, called like the Hugging Face model that it was made from."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        self.model, self.report = model.eval(), report

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration."""
        return self.model.config  # pyright: ignore[reportReturnType]

    @torch.inference_mode()
    def __call__(self, **inputs: Any) -> ModelOutput:
        """The model's output for `input_ids`, `attention_mask` and what else its tokenizer gives.

        Hidden states of tokens that the attention mask leaves out are zero if the encoder is sparse.
        """
        return self.model(**inputs)


def load(
    folder: Path | str,
    precision: str | Mapping[str, str] = "auto",
    threads: int | None = None,
    instructions: str | None = None,
) -> FastModel:
    """Load a saved model for inference on the CPU.

    Args:
        folder: of a Hugging Face model, or a packed file that `pack` wrote; "auto" is then the precision that it has.
        precision, threads, instructions: as in `accelerate`.

    Raises:
        PruningError: a precision that this CPU does not have.
        OSError, ValueError: transformers cannot load it.
    """
    from transformers import AutoConfig

    place = Path(folder)
    if place.is_file():
        return _load_packed(place, precision, threads, instructions)
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    kind = model_class((config.architectures or ["AutoModel"])[0])
    model = kind.from_pretrained(place, dtype=torch.float32, trust_remote_code=False)
    return accelerate(model.eval(), precision, threads, instructions)


def model_class(name: str) -> Any:
    """A model class of transformers. Raises PruningError if there is none of this name."""
    import transformers

    kind = getattr(transformers, name, None)
    if kind is transformers.AutoModel or (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        return kind
    raise PruningError(f"transformers has no model class {name!r}")


def accelerate(
    model: PreTrainedModel,
    precision: str | Mapping[str, str] = "auto",
    threads: int | None = None,
    instructions: str | None = None,
) -> FastModel:
    """Put a sparse encoder into a model, which is changed: its dense layers are freed.

    Args:
        precision: float32, bfloat16 or int8; "auto": bfloat16 if the CPU multiplies it, else float32. Or the precision
            of each kind of layer: {"query", "key", "value", "output", "up", "down"} -> precision, of which the first
            three are alike.
        threads: of each call; None: as many as torch has.
        instructions: a key of `compiler.INSTRUCTION_SETS`; None: the best that there is.

    Returns:
        The model. Where it cannot be sparse, it is unchanged, and `report.reason` says why.

    Raises:
        PruningError: a precision that the instructions do not have.
    """
    try:
        structure = structure_of(model.config)
        check_layers(model, structure.family)
        library = compiler.library(instructions)
    except (PruningError, Unavailable) as reason:
        return FastModel(model, Report("dense torch", str(reason)))
    each = _precisions(precision, library.instructions)
    dense = sum(p.nbytes for p in model.base_model.get_submodule(structure.family.encoder).parameters())
    encoder = SparseEncoder(structure, dict(model.base_model.named_parameters()), library, each, threads)
    return _with(model, encoder, dense)


def _with(model: PreTrainedModel, encoder: SparseEncoder, dense_bytes: int) -> FastModel:
    """The model with this encoder."""
    kinds, library = set(encoder.precision.values()), encoder.library
    report = Report(
        "sparse", "", kinds.pop() if len(kinds) == 1 else "mixed", library.instructions, library.compiler,
        encoder.density, encoder.bytes, dense_bytes,
    )  # fmt: skip
    base = SparseBase(model.base_model, encoder)  # pyright: ignore[reportArgumentType]
    if model.base_model is model:
        return FastModel(base, report)
    setattr(model, model.base_model_prefix, base)
    return FastModel(model, report)


def _precisions(precision: str | Mapping[str, str], instructions: str) -> dict[str, str]:
    """The precision of each kind of layer; raises PruningError."""
    has = compiler.precisions(instructions)
    if isinstance(precision, str):
        precision = dict.fromkeys(LINEARS, has[0] if precision == "auto" else precision)
    if set(precision) != set(LINEARS):
        raise PruningError(f"precision={dict(precision)} must name {', '.join(LINEARS)}")
    for value in precision.values():
        if value not in GROUP:
            raise PruningError(f"precision={value!r} is not one of auto, {', '.join(GROUP)}")
        if value not in has:
            raise PruningError(f"precision={value!r} needs instructions that this CPU lacks; it has {', '.join(has)}")
    if len({precision[name] for name in ("query", "key", "value")}) > 1:
        raise PruningError("precision of query, key and value must be the same: they read the same activations")
    return dict(precision)


def pack(model: PreTrainedModel, file: Path | str, precision: str = "float32") -> None:
    """Write a packed file, safetensors: the weights of the encoder's linear layers as blocks, everything else as it is.

    Args:
        precision: of the blocks; from float32 the model can be restored bit for bit.

    Raises:
        PruningError: the runtime does not know the architecture.
    """
    from safetensors.torch import save_file

    structure = structure_of(model.config)
    check_layers(model, structure.family)
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    sparse = {
        base + structure.family.parameter(layer, name, "weight")
        for layer in range(structure.layers)
        for name in LINEARS
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name in sparse:
            parts = vars(Blocks.of(tensor, precision))
            parts = parts | {"shape": torch.tensor(parts["shape"])}
            tensors |= {f"{name}.{part}": value for part, value in parts.items() if value is not None}
        else:
            tensors[name] = tensor.clone()
    described = {"format": "pt", "class": type(model).__name__, "config": model.config.to_json_string()}
    save_file(tensors, Path(file), metadata=described | {"packed": "4x1", "precision": precision})


def unpack(file: Path | str) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, Tensor | Blocks], str]:
    """Read a packed file.

    Returns:
        Class and configuration of the model, its tensors by name (`Blocks` for what is packed), their precision.

    Raises:
        PruningError: the file is not a packed one.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig

    try:
        with safe_open(file, "pt") as stored:
            described = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PruningError(f"{file} is no packed model: {error}") from error
    if described.get("packed") != "4x1" or not {"class", "config", "precision"} <= described.keys():
        raise PruningError(f"{file} is no packed model; pruning.runtime.pack writes one")
    kind = model_class(described["class"])
    values = json.loads(described["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    names = {name.removesuffix(".start") for name in tensors if name.endswith(".weight.start")}
    result: dict[str, Tensor | Blocks] = {}
    for name in names:
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in Blocks.__dataclass_fields__}
        rows, columns = parts["shape"].tolist()
        result[name] = Blocks(**{**parts, "shape": (rows, columns)})
    return kind, config, result | tensors, described["precision"]


def _load_packed(
    file: Path, precision: str | Mapping[str, str], threads: int | None, instructions: str | None
) -> FastModel:
    """A model from a packed file, without its dense form; where the runtime is not available, in its dense form."""
    kind, config, tensors, stored = unpack(file)
    structure = structure_of(config)
    try:
        library = compiler.library(instructions)
    except Unavailable as reason:
        dense = {name: t.dense() if isinstance(t, Blocks) else t for name, t in tensors.items()}
        model = kind.from_pretrained(None, config=config, state_dict=dense)
        return FastModel(model, Report("dense torch", str(reason)))
    has = compiler.precisions(library.instructions)
    if precision == "auto" and stored in has:
        precision = stored if stored != "float32" else has[0]
    each = _precisions(precision, library.instructions)
    shallow = type(config).from_dict(config.to_dict() | {"num_hidden_layers": 0})
    model = kind(shallow)  # embeddings and head only
    missing = model.load_state_dict(
        {n: t for n, t in tensors.items() if isinstance(t, Tensor)}, strict=False
    ).missing_keys
    if missing:
        raise PruningError(f"{file} lacks {len(missing)} tensors, the first is {missing[0]}")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    encoder = SparseEncoder(structure, {n.removeprefix(prefix): t for n, t in tensors.items()}, library, each, threads)
    dense_bytes = sum(4 * t.shape[0] * t.shape[1] for t in tensors.values() if isinstance(t, Blocks))
    model.config.num_hidden_layers = config.num_hidden_layers
    return _with(model, encoder, dense_bytes)
