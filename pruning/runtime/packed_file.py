"""Packed files: a model whose linear layers are stored as blocks, so that it is sparse on the disk, too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.runtime.families import LINEARS, check_layers, structure_of
from pruning.runtime.packing import Blocks
from pruning.runtime.self_check import Sample

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SAMPLE = "self_check."
"""Beginning of the names of the tensors of the self-check."""


@dataclass(frozen=True)
class Packed:
    """Contents of a packed file."""

    file: Path
    kind: type[PreTrainedModel]
    config: PretrainedConfig
    tensors: dict[str, Tensor | Blocks]
    """The state of the model by name: `Blocks` for what is packed."""
    precision: str
    """Precision of the blocks."""
    sample: Sample
    """What the dense model computed before it was packed."""

    @classmethod
    def read(cls, file: Path, kind: type[PreTrainedModel] | None = None) -> Packed:
        """Read a file.

        Args:
            kind: class of the model, if it is not the one of transformers that the file names.

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
        try:
            values = json.loads(described["config"])
            config = AutoConfig.for_model(values.pop("model_type"), **values)
        except (ValueError, KeyError, AttributeError) as error:
            raise PruningError(f"{file}: its configuration is damaged ({error}); pack the model again") from error
        try:
            sample = Sample(*(tensors.pop(f"{_SAMPLE}{part}") for part in Sample.__dataclass_fields__))
        except KeyError as error:
            raise PruningError(f"{file} lacks {error}, its self-check; pack the model again") from error
        loader: Any = kind or model_class(described["class"])
        packed = cls(file, loader, config, _with_blocks(tensors, file), described["precision"], sample)
        packed._check()
        return packed

    def _check(self) -> None:
        """Raises PruningError if a tensor has not the shape that the configuration gives it, or blocks are not well
        formed: the kernels read and write without a check.
        """
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in self.kind(self.config).state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        wrong = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
        if wrong:
            name = min(wrong)
            raise PruningError(
                f"{self.file}: {len(wrong)} of its tensors do not fit {self.kind.__name__}, such as {name}: "
                f"{found.get(name, 'missing')} instead of {expected.get(name, 'none')}; give kind=, the class of the "
                "model that was packed"
            )
        for name, tensor in self.tensors.items():
            if isinstance(tensor, Blocks) and not tensor.valid:
                raise _damaged(self.file, name)

    def dense(self) -> PreTrainedModel:
        """The model, expanded."""
        tensors = {name: t.dense() if isinstance(t, Blocks) else t for name, t in self.tensors.items()}
        return self._filled(self.config, tensors)

    def without_layers(self) -> PreTrainedModel:
        """Embeddings and head."""
        family, at_base = structure_of(self.config).family, self.kind.base_model_prefix
        layers = tuple(f"{prefix}{family.encoder}.layer." for prefix in ("", f"{at_base}."))
        shallow = type(self.config).from_dict(self.config.to_dict() | {"num_hidden_layers": 0})
        rest = {n: t for n, t in self.tensors.items() if isinstance(t, Tensor) and not n.startswith(layers)}
        return self._filled(shallow, rest)

    def _filled(self, config: PretrainedConfig, tensors: dict[str, Tensor]) -> PreTrainedModel:
        model = self.kind(config)
        model.load_state_dict(tensors)
        return model.eval()


def pack(model: PreTrainedModel, file: Path | str, precision: str = "float32") -> None:
    """Write a packed file, safetensors: the weights of the encoder's linear layers as blocks, everything else as it is,
    and a self-check for `load`.

    Args:
        precision: of the blocks; from float32 the model can be restored bit for bit, but that -0 becomes 0.

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
    tensors = {f"{_SAMPLE}{part}": value.contiguous() for part, value in asdict(Sample.of(model)).items()}
    for name, tensor in model.state_dict().items():
        if name in sparse:
            parts = vars(Blocks.of(tensor, precision))
            parts = parts | {"shape": torch.tensor(parts["shape"])}
            tensors |= {f"{name}.{part}": value for part, value in parts.items() if value is not None}
        else:
            tensors[name] = tensor.clone()
    described = {"format": "pt", "class": type(model).__name__, "config": model.config.to_json_string()}
    save_file(tensors, Path(file), metadata=described | {"packed": "4x1", "precision": precision})


def _damaged(file: Path, name: str) -> PruningError:
    return PruningError(f"{file}: the blocks of {name} are damaged; pack the model again")


def _with_blocks(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor | Blocks]:
    names = {name.removesuffix(".start") for name in tensors if name.endswith(".weight.start")}
    blocks: dict[str, Tensor | Blocks] = {}
    for name in names:
        parts: Any = {part: tensors.pop(f"{name}.{part}", None) for part in Blocks.__dataclass_fields__}
        if any(parts[part] is None for part in ("shape", "column", "value")) or parts["shape"].shape != (2,):
            raise _damaged(file, name)
        rows, columns = parts["shape"].tolist()
        blocks[name] = Blocks(**{**parts, "shape": (rows, columns)})
    return blocks | tensors


def model_class(name: str) -> Any:
    """A model class of transformers. Raises PruningError if there is none of this name."""
    import transformers

    kind = getattr(transformers, name, None)
    if kind is transformers.AutoModel or (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        return kind
    raise PruningError(f"transformers has no model class {name!r}")
