"""A checkpoint's config.json, read as data: it names no code to run, and describes an encoder."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch

from runner.system.errors import UserError
from runner.system.hub import explain

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

_NOT_READ = (
    *("auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation"),
    *("return_dict", "output_attentions", "output_hidden_states"),
)
"""Keys that name code, of the model's repository or a kernel on the hub; and those for what a call returns."""
_LARGEST = {
    "num_hidden_layers": 512,
    **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"), 2**24),
}
"""The sizes of an encoder, by transformers' standard names, and the most of each that is believed."""
_TYPES = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}
_REMEDY = "correct it, or download the file again"
_ENCODERS = "bert, roberta, electra, deberta-v2, distilbert, mpnet or modernbert"


def read_config(path: str, key: str, revision: str | None = None, model_type: str | None = None) -> PretrainedConfig:
    """Read the config.json of a folder, or of a model on the hub.

    Args:
        key: the configuration key that names the model, for messages.
        model_type: the architecture, if config.json does not say.

    Raises:
        UserError: it is missing, damaged, or not a configuration that transformers knows.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    with explain("model", key, path):
        file = cached_file(path, "config.json", revision=revision)
    config = _build(_values(Path(str(file)), f"{key}={path}"), model_type, f"{key}={path}")
    config.name_or_path = path
    config._commit_hash = extract_commit_hash(file, None)
    return config


def check_encoder(config: PretrainedConfig, place: str) -> None:
    """Refuse a decoder or an encoder-decoder, before its weights are downloaded.

    Args:
        place: the key and the path of the checkpoint.
    """
    from transformers.models.auto import modeling_auto as auto

    kind, reads = config.model_type, None
    if config.is_encoder_decoder or kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        reads = "an encoder with a decoder"
    elif getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        reads = "used as a decoder (is_decoder or add_cross_attention)"
    elif (
        kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and kind != "xlnet"  # which reads texts in both directions
    ):
        reads = "a decoder, which reads texts from left to right"
    if reads:
        raise UserError(
            f"{place}: its config.json says model_type={kind}, {reads}; only encoders are pruned here, such as "
            f"{_ENCODERS}"
        )


def looks_like(file: Path) -> str | None:
    """What stands in the place of a file that should be a model's: an empty file, a git-LFS pointer or an HTML page."""
    with file.open("rb") as stream:
        start = stream.read(512).lstrip()
    if not start:
        return "is empty: download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the file itself: fetch that with `git lfs pull`"
    if start.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a model's file: download it again"
    return None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' table of newly drawn heads and unused poolers, expected here, and its bars for files."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _values(file: Path, place: str) -> dict[str, Any]:
    """The settings in config.json, without those that name code."""
    problem = looks_like(file)
    try:
        values = None if problem else json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        problem = f"is not valid JSON ({str(error).splitlines()[0]}): download it again"
    if problem:
        raise UserError(f"{place}: its config.json {problem}")
    if not isinstance(values, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(values), "a number")
        raise UserError(f"{place}: its config.json holds {kind}, not an object with the model's settings")
    for name, value in _numbers(values):
        if not math.isfinite(value):
            raise UserError(f"{place}: its config.json sets {name}={value}, not a finite number: {_REMEDY}")
    return {name: value for name, value in values.items() if name not in _NOT_READ}


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            if isinstance(each, float):
                yield name, each


def _build(values: dict[str, Any], model_type: str | None, place: str) -> PretrainedConfig:
    """transformers' configuration with these settings."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = values.pop("model_type", None) or model_type
    if kind is None:
        raise UserError(f"{place}: its config.json names no architecture; set model.model_type, such as bert")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"{place}: transformers does not know the architecture {kind!r} (model_type), and code that comes with a "
            f"model is never run; choose a model that transformers knows, such as {_ENCODERS}"
        )
    if values.get("quantization_config") is not None:
        raise UserError(
            f"{place}: its config.json says that its weights are quantized (quantization_config); name the model in "
            "float16, bfloat16 or float32 that it was made from"
        )
    method = next((name for name in values if callable(getattr(CONFIG_MAPPING[kind], name, None))), None)
    if method or "attribute_map" in values:
        raise UserError(f"{place}: its config.json sets {method or 'attribute_map'}, which is no setting: remove it")
    try:
        with quiet_loading():
            config = AutoConfig.for_model(kind, **values)
    except Exception as error:  # its validation raises what it meets
        raise UserError(f"{place}: its config.json {_reason(error, kind, values)}: {_REMEDY}") from error
    for name, most in _LARGEST.items():
        size, stored = getattr(config, name, None), config.attribute_map.get(name, name)
        if isinstance(size, int) and not 1 <= size <= most:
            raise UserError(f"{place}: its config.json sets {stored}={size}, not from 1 to {most:,}: {_REMEDY}")
    heads = config.attribute_map.get("num_attention_heads", "num_attention_heads")
    # All other sizes show in the shapes of the weights.
    if not {heads, "num_attention_heads"} & values.keys() and hasattr(config, heads):
        log.warning("%s: its config.json does not say %s: %s is assumed", place, heads, getattr(config, heads))
    return config


def _reason(error: Exception, kind: str, values: Mapping[str, Any]) -> str:
    """What transformers refuses about settings, as the rest of a sentence."""
    text = str(error.__cause__ or error)
    name = re.search(r"^Field '(\w+)'", text)
    culprit = name[1] if name else next((name for name in values if _builds(kind, values, without=name)), None)
    if culprit is None or culprit not in values:
        return f"cannot be read by transformers ({shorten(text, 160)})"
    expected = re.search(r"expected (\w+)", text)
    must = f"not {_TYPES.get(expected[1], expected[1])}" if expected else f"which is refused ({shorten(text, 160)})"
    return f"sets {culprit}={shorten(json.dumps(values[culprit]), 60)}, {must}"


def _builds(kind: str, values: Mapping[str, Any], without: str) -> bool:
    from transformers import AutoConfig

    try:
        with quiet_loading():
            AutoConfig.for_model(kind, **{name: value for name, value in values.items() if name != without})
    except Exception:
        return False
    return True


@contextmanager
def building(config: PretrainedConfig) -> Iterator[None]:
    """Build a network on the meta device: names and shapes without memory for weights.

    Raises:
        UserError: transformers cannot build it with these settings.
    """
    try:
        with torch.device("meta"), quiet_loading():
            yield
    except UserError:
        raise
    except Exception as error:  # a network raises whatever its settings lead to
        raise _network_error(error, config) from error


def _network_error(error: Exception, config: PretrainedConfig) -> UserError:
    text = shorten(str(error), 160)
    if isinstance(error, KeyError):  # the name of a function that it does not have
        named = [name for name, value in config.to_dict().items() if value == error.args[0]]
        text = f"{named[0]}={error.args[0]} is unknown" if named else f"{text} is missing or unknown"
    return UserError(
        f"{config.name_or_path}: transformers builds no {config.model_type} from its config.json ({text}): {_REMEDY}"
    )
