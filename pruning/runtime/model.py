"""Models with a sparse encoder: made from a dense model, or loaded from its folder or from a packed file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.errors import PruningError
from pruning.runtime import compiler
from pruning.runtime.base_model import SparseBase
from pruning.runtime.compiler import Unavailable
from pruning.runtime.encoder import SparseEncoder
from pruning.runtime.families import LINEARS, check_layers, structure_of
from pruning.runtime.linears import candidates, swap_linears
from pruning.runtime.packed_file import Packed, model_class
from pruning.runtime.packing import GROUP, Blocks
from pruning.runtime.report import Report
from pruning.runtime.self_check import Sample, tolerance

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils.generic import ModelOutput

log = logging.getLogger(__name__)

OTHERS = "others"
"""Key of a mapping of precisions for the layers that it does not name."""


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


@dataclass(frozen=True)
class _Options:
    """How a sparse encoder is to run, as in `accelerate`."""

    precision: str | Mapping[str, str]
    threads: int | None
    instructions: str | None
    check: bool

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise PruningError(f"threads={self.threads} must be at least 1")


def load(
    folder: Path | str,
    precision: str | Mapping[str, str] = "auto",
    threads: int | None = None,
    instructions: str | None = None,
    kind: type[PreTrainedModel] | None = None,
    check: bool = True,
) -> FastModel:
    """Load a saved model for inference on the CPU.

    Args:
        folder: of a Hugging Face model, or a packed file that `pack` wrote; "auto" is then the precision that it has.
        precision, threads, instructions, check: as in `accelerate`.
        kind: class of the model, if it is not the one of transformers that config.json, or the packed file, names.

    Raises:
        PruningError: a precision that this CPU does not have, or weights that do not fit the class.
        OSError, ValueError: transformers cannot load it.
    """
    from transformers import AutoConfig

    options, place = _Options(precision, threads, instructions, check), Path(folder)
    if place.is_file():
        return _load_packed(Packed.read(place, kind), options)
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    loader: Any = kind or model_class((config.architectures or ["AutoModel"])[0])
    try:
        model = loader.from_pretrained(place, config=config, dtype=torch.float32, trust_remote_code=False)
    except RuntimeError as error:  # sizes; transformers has logged which
        raise PruningError(
            f"{folder}: its weights do not fit {loader.__name__}; give kind=, the class that was saved"
        ) from error
    return _accelerate(model, options)


def accelerate(
    model: PreTrainedModel,
    precision: str | Mapping[str, str] = "auto",
    threads: int | None = None,
    instructions: str | None = None,
    check: bool = True,
) -> FastModel:
    """Put a sparse encoder into a model, which is changed: its dense layers are freed.

    Args:
        precision: float32, bfloat16 or int8; "auto": bfloat16 if the CPU multiplies it, else float32. Or the precision
            of each kind of layer: {"query", "key", "value", "output", "up", "down"} -> precision, of which the first
            three are alike; "others" names that of the rest, which is else "auto".
        threads: of each call; None: as many as torch has.
        instructions: a key of `compiler.INSTRUCTION_SETS`; None: the best that there is.
        check: run a few random tokens through the dense layers and the sparse ones first. If these differ by more than
            their precision may cause, the model stays dense.

    Returns:
        The model. Where its encoder cannot be sparse, single linear layers are where that is faster, else it is
        unchanged; `report.reason` says why.

    Raises:
        PruningError: a precision that the instructions do not have, or the model is not on the CPU.
    """
    return _accelerate(model, _Options(precision, threads, instructions, check))


def _accelerate(model: PreTrainedModel, options: _Options) -> FastModel:
    if model.device.type != "cpu":
        raise PruningError(f"the model is on {model.device}; move it to the CPU")
    model.eval()
    if reason := why_dense(model):
        return _with_linears(model, reason, options)
    try:
        library = compiler.library(options.instructions)
    except Unavailable as unavailable:
        return _dense(model, str(unavailable))
    each = layer_precisions(options.precision, library.instructions)
    structure, base = structure_of(model.config), model.base_model
    size = sum(p.nbytes for p in base.get_submodule(structure.family.encoder).parameters())
    sample = Sample.of(model) if options.check else None
    encoder = SparseEncoder(structure, dict(base.named_parameters()), library, each, options.threads)
    sparse = SparseBase(base, encoder)  # pyright: ignore[reportArgumentType]
    difference, wrong = _checked(sparse, sample)
    return _dense(model, wrong) if wrong else _with(model, sparse, size, difference)


def why_dense(model: PreTrainedModel) -> str:
    """Why a model cannot have a sparse encoder, from its configuration and the classes of its layers; empty if it can.
    Its parameters may be on the meta device.
    """
    try:
        check_layers(model, structure_of(model.config).family)
    except PruningError as reason:
        return str(reason)
    return ""


def _dense(model: nn.Module, reason: str) -> FastModel:
    log.warning("the model runs dense in torch: %s", reason)
    return FastModel(model, Report("dense torch", reason))


def _with_linears(model: PreTrainedModel, reason: str, options: _Options) -> FastModel:
    """The model with sparse linear layers where these are faster.

    Args:
        reason: why the encoder cannot be sparse.
    """
    if not candidates(model):
        return _dense(model, f"{reason}; no linear layer is large enough to be faster alone")
    try:
        library = compiler.library(options.instructions)
    except Unavailable as unavailable:
        return _dense(model, f"{reason}; {unavailable}")
    precision, *others = set(layer_precisions(options.precision, library.instructions).values())
    if others:
        return _dense(model, f"{reason}; single linear layers have one precision")
    try:
        sample = Sample.of(model) if options.check else None
    except Exception as error:  # the model may need other inputs than an encoder of texts
        return _dense(model, f"{reason}; its self-check cannot run: {type(error).__name__}: {error}")
    done = swap_linears(model, library, precision, options.threads)
    if not done.sparse:
        return _dense(model, f"{reason}; no linear layer is sparse enough to be faster alone")
    try:
        difference = sample and sample.difference(model)
    except AttributeError as error:  # it reads the weight of a layer
        done.undo(model)
        return _dense(model, f"{reason}; it needs its dense layers: {error}")
    if difference is not None and not difference <= tolerance({precision}):
        done.undo(model)
        return _dense(model, f"{reason}; its sparse linear layers ({library}) differ from torch by {difference:.2g}")
    report = Report(
        "sparse linears", reason, precision, library.instructions, library.compiler, done.density, done.packed_bytes,
        done.dense_bytes, difference, None, len(done.sparse), done.dense,
    )  # fmt: skip
    log.warning("the model runs in torch with sparse linear layers: %s", reason)
    return FastModel(model, report)


def _checked(base: SparseBase, sample: Sample | None, stored: str = "float32") -> tuple[float | None, str]:
    """Difference of the self-check, if there is a sample, and what is wrong with it.

    Args:
        stored: precision of the weights before they were packed.
    """
    if sample is None:
        return None, ""
    difference = sample.difference(base)
    limit = tolerance({stored, *base.encoder.precision.values()})
    if difference <= limit:
        return difference, ""
    return difference, (
        f"the sparse encoder ({base.encoder.library}) failed its self-check: it differs from torch by "
        f"{difference:.2g}, and its precision may cause {limit:g}; another precision= or instructions= may pass"
    )


def _with(model: PreTrainedModel, base: SparseBase, dense_bytes: int, difference: float | None) -> FastModel:
    """The model with this base model."""
    encoder = base.encoder
    kinds, library = set(encoder.precision.values()), encoder.library
    report = Report(
        "sparse", "", kinds.pop() if len(kinds) == 1 else "mixed", library.instructions, library.compiler,
        encoder.density, encoder.bytes, dense_bytes, difference, encoder.cut,
    )  # fmt: skip
    if model.base_model is model:
        return FastModel(base, report)
    setattr(model, model.base_model_prefix, base)
    return FastModel(model, report)


def layer_precisions(precision: str | Mapping[str, str], instructions: str) -> dict[str, str]:
    """The precision of each kind of layer.

    Args:
        precision: as in `accelerate`.
        instructions: a key of `compiler.INSTRUCTION_SETS`.

    Raises:
        PruningError: a name or a precision that does not exist, or one that these instructions do not have.
    """
    has, attention = compiler.precisions(instructions), LINEARS[:3]
    named = {OTHERS: precision} if isinstance(precision, str) else dict(precision)
    if named.keys() - {*LINEARS, OTHERS} or 0 < len(named.keys() & {*attention}) < len(attention):
        raise PruningError(
            f"precision={named} must name {', '.join(LINEARS)}, all or some, the first three together; "
            f"{OTHERS} names the rest"
        )
    each = {name: named.get(name, named.get(OTHERS, "auto")) for name in LINEARS}
    each = {name: has[0] if value == "auto" else value for name, value in each.items()}
    for value in each.values():
        if value not in GROUP:
            raise PruningError(f"precision={value!r} is not one of auto, {', '.join(GROUP)}")
        if value not in has:
            raise PruningError(f"precision={value!r} needs instructions that this CPU lacks; it has {', '.join(has)}")
    if len({each[name] for name in attention}) > 1:
        raise PruningError("precision of query, key and value must be the same: they read the same activations")
    return each


def _load_packed(packed: Packed, options: _Options) -> FastModel:
    """A model from a packed file, without its dense form; where it cannot be sparse, in its dense form."""
    config, precision = packed.config, options.precision
    structure = structure_of(config)
    try:
        library = compiler.library(options.instructions)
    except Unavailable as unavailable:
        return _dense(packed.dense(), str(unavailable))
    has = compiler.precisions(library.instructions)
    if precision == "auto" and packed.precision in has:
        precision = packed.precision if packed.precision != "float32" else has[0]
    each = layer_precisions(precision, library.instructions)
    model = packed.without_layers()
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in packed.tensors.items()}
    encoder = SparseEncoder(structure, tensors, library, each, options.threads)
    sparse = SparseBase(model.base_model, encoder)  # pyright: ignore[reportArgumentType]
    difference, wrong = _checked(sparse, packed.sample if options.check else None, packed.precision)
    if wrong:
        return _dense(packed.dense(), wrong)
    size = sum(4 * t.shape[0] * t.shape[1] for t in packed.tensors.values() if isinstance(t, Blocks))
    model.config.num_hidden_layers = config.num_hidden_layers
    return _with(model, sparse, size, difference)
