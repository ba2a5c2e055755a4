"""A transformers model from a configured path: a hub id, a folder, or weights that come with this package."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from omegaconf import MISSING

from runner.models import heads, weights
from runner.models.configuration import building, check_encoder, quiet_loading, read_config
from runner.models.dropout import set_dropout
from runner.system.errors import UserError
from runner.system.files import check_regular
from runner.system.fingerprint import hash_files
from runner.system.hub import explain
from runner.system.process import ONCE
from runner.system.spelling import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EMBEDDED = "embedded:"
PRETRAINED = "model.path"
"""The key that names a checkpoint without a head for the task."""
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)

log = logging.getLogger(__name__)


@dataclass
class Model:
    """An encoder to prune."""

    path: str = MISSING
    """A hub id, a folder, or `embedded:NAME` for weights that come with this package."""
    finetuned: str | None = None
    """A checkpoint fine-tuned on the dataset, as id or folder: the dense model. If not given, the run makes one."""
    sparse: str | None = None
    """A sparse checkpoint of the same architecture: a hub id, a folder, or a finished run, by its folder or its id in
    MLflow. The student starts from it and its zeros stay: alone with pattern=locked, and as a part of the target of any
    other pattern. The dense model remains its teacher and what it is compared with."""
    revision: str | None = None
    """Commit, tag or branch of `path` on the hub."""
    finetuned_revision: str | None = None
    """Commit, tag or branch of `finetuned` on the hub."""
    model_type: str | None = None
    """transformers' name of the architecture, used where the checkpoint's config.json does not say."""
    prunable: list[str] = field(default_factory=lambda: ["*"])
    """Linear and convolution layers to prune, as shell patterns of module names; never head, pooler and embeddings."""
    excluded: list[str] = field(default_factory=list)
    """Layers to leave dense all the same, as shell patterns of module names."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that the pruning does not train: embeddings, layer_norms, biases, head, or shell patterns of parameter
    and module names. The fine-tuning of the dense model trains them."""
    num_layers: int | None = None
    """Number of layers of the student, which starts from that many of the dense model's: the first, the last and others
    evenly between them, 0, 2, 4, 7, 9 and 11 of 12 (DistilBERT, arXiv 1910.01108). The dense model keeps all."""
    layers: list[int] = field(default_factory=list)
    """Layers of the dense model that the student starts from, counted from 0, instead of `num_layers`; such as
    [0,1,2,3,4,5], without the top layers (arXiv 2004.03844). With distill=hidden and logits_hidden each imitates the
    layer that it comes from."""
    hidden_dropout: float | None = None
    """Dropout of hidden states in both trainings; the checkpoint's own if not given."""
    attention_dropout: float | None = None
    """Dropout of attention weights in both trainings; the checkpoint's own if not given. 0 is much faster on CPUs."""

    defining: ClassVar[tuple[str, ...]] = ("path", "finetuned", "sparse", "revision", "finetuned_revision")

    def __post_init__(self) -> None:
        for key in ("hidden_dropout", "attention_dropout"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"model.{key}={value} is out of range: from 0 to below 1")
        self._check_layers()
        if not self.path:
            raise UserError("model.path is empty: a hub id or a folder")

    def _check_layers(self) -> None:
        if self.num_layers is not None and self.layers:
            raise UserError(f"model.num_layers={self.num_layers}: model.layers={self.layers} names them; leave one out")
        if self.num_layers is not None and self.num_layers < 1:
            raise UserError(f"model.num_layers={self.num_layers} must be at least 1")
        if self.layers and (self.layers[0] < 0 or self.layers != sorted(set(self.layers))):
            raise UserError(f"model.layers={self.layers}: name each layer once, ascending, counted from 0: [0,2,4]")


@dataclass
class Checkpoint:
    """A model on the disk or the hub, checked to exist. Its fingerprints are those of the files as first read: of a
    folder that was rewritten, make a new one by `find`."""

    path: str
    """Hub id or folder."""
    revision: str | None
    config: PretrainedConfig
    key: str
    """The configuration key that named it, for messages."""
    _digests: dict[Path, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)
    """SHA-256 of the files that were read: a run asks for both fingerprints several times."""

    @property
    def place(self) -> str:
        """The key and its value, for messages."""
        return f"{self.key}={self.path}"

    @property
    def fingerprint(self) -> str:
        """The hub's commit, or a hash of the folder's weights, configuration and tokenizer."""
        return self._hash((*_WEIGHT_FILES, *_TOKENIZER_FILES, "config.json"))

    @property
    def weights(self) -> str:
        """The hub's commit, or a hash of the folder's weights alone."""
        return self._hash(_WEIGHT_FILES)

    def _hash(self, names: Iterable[str]) -> str:
        folder = Path(self.path)
        if not folder.is_dir():
            return f"{self.path}@{self.config._commit_hash}"
        return hash_files({file for name in names for file in folder.glob(name)}, self._digests)


def find(path: str, key: str, model: Model, revision: str | None = None) -> Checkpoint:
    """Resolve a configured path and read its config.json.

    Raises:
        UserError: nothing is there, the hub cannot be reached, a folder has no weights, or it is no encoder.
    """
    if path.startswith(EMBEDDED):
        path = str(Path(__file__).parents[1] / "demo" / path.removeprefix(EMBEDDED))
    folder = Path(path).expanduser()
    if folder.is_dir():
        path = str(folder)
        check_regular(*sorted(folder.iterdir()))
        if not (folder / "config.json").is_file():
            raise UserError(f"{key}={path}: there is no config.json in this folder")
        if not any(p for name in _WEIGHT_FILES for p in folder.glob(name)):
            raise UserError(
                f"{key}={path}: there are no weights in this folder (model.safetensors or pytorch_model.bin)"
            )
    elif folder.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"{key}={path}: there is no such folder{did_you_mean(folder)}")
    config = read_config(path, key, revision, model.model_type)
    check_encoder(config, f"{key}={path}")
    set_dropout(config, model.hidden_dropout, model.attention_dropout, path)
    return Checkpoint(path, revision, config, key)


def with_hidden_dropout(checkpoint: Checkpoint, value: float | None) -> Checkpoint:
    """A checkpoint whose model has another dropout probability of hidden states; None: its own.

    Raises:
        UserError: the architecture has no such setting.
    """
    if value is None:
        return checkpoint
    config = copy.deepcopy(checkpoint.config)
    set_dropout(config, value, None, checkpoint.path, "train")
    return replace(checkpoint, config=config)


def saved_in(folder: Path) -> Path:
    """The folder of the model that is saved in a run's folder; any other path stays as it is."""
    folder_or_run = folder.expanduser()
    model = folder_or_run / "model"
    is_run = (model / "config.json").is_file() and not (folder_or_run / "config.json").is_file()
    return model if is_run else folder


def load(architecture: str, checkpoint: Checkpoint, attentions: bool = False) -> PreTrainedModel:
    """Load a model in float32, whatever it was saved in. Parameters of the head that a pretrained checkpoint lacks are
    drawn at random, which is logged.

    Args:
        attentions: whether it must return attention weights, which only the eager implementation of attention does.

    Raises:
        UserError: it cannot be loaded, its weights do not fit, or it is fine-tuned and lacks parameters.
    """
    model, info = _pretrained(architecture, checkpoint, **({"attn_implementation": "eager"} if attentions else {}))
    drawn = weights.new_parts(model, info)
    if drawn:
        log.info(
            "%s: drawn at random, as the checkpoint lacks it: %s", checkpoint.place, " and ".join(drawn), extra=ONCE
        )
    return model


def check_weights(architecture: str, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose weights are damaged or do not arrive in the network. Its files are read, and no memory
    is taken for the network.

    Raises:
        UserError: as `load`, or a weight is an integer, NaN or infinite.
    """
    with explain("model", checkpoint.key, checkpoint.path), quiet_loading():
        files = weights.weight_files(checkpoint.path, checkpoint.revision, checkpoint.place)
    weights.check_readable(files, checkpoint.place)
    net, info = _pretrained(architecture, checkpoint, device_map="meta")
    weights.check_numbers(files, net, info["unexpected_keys"], checkpoint.place)


def _pretrained(architecture: str, checkpoint: Checkpoint, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' report about the loading, which has been checked."""
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # no thread that asks the hub to convert a .bin
    with explain("model", checkpoint.key, checkpoint.path), quiet_loading():
        from_pretrained, _ = heads.network(architecture, checkpoint.config)
        model, info = from_pretrained(
            checkpoint.path,
            revision=checkpoint.revision,
            config=checkpoint.config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head of another task: drawn anew; others are refused below
            **options,
        )
    trained = checkpoint.key != PRETRAINED
    weights.check_encoder_weights(model, info, checkpoint.place, trained)
    lacking = sorted(info["missing_keys"])
    if trained and lacking:
        raise UserError(
            f"{checkpoint.place}: it has no weights for {', '.join(lacking[:3])}: it was not "
            f"fine-tuned for this kind of task ({architecture.removeprefix('AutoModelFor')})"
        )
    return model, info


def skeleton(architecture: str, config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device: names and shapes without memory for weights.

    Raises:
        UserError: transformers has no such model of this architecture, or cannot build it with these settings.
    """
    import transformers

    if type(config) not in getattr(transformers, architecture)._model_mapping:
        raise UserError(f"the architecture {config.model_type} has no {architecture.removeprefix('AutoModel')} model")
    with building(config):
        _, from_config = heads.network(architecture, config)
        return from_config(config)
