"""Export a model to ONNX, OpenVINO, the packed file of the sparse runtime, or a smaller folder of transformers, checked
against PyTorch.

python -m runner.export FOLDER_OR_RUN --to onnx|openvino|packed|transformers [--precision float32|bfloat16|int8]
                        [--output DIR] [--force] [--plugins MODULES]

Batch and length are free. The export's folder has the tokenizer, the labels (config.json) and a card, too.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import logging
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.runtime.cut import cut
from runner import models
from runner.config import plugins
from runner.exports import card, packed
from runner.exports import folder as smaller_folder
from runner.exports.check import TOLERANCE, batches, check, sentences
from runner.exports.libraries import Missing, installed, quiet
from runner.exports.onnx import export_onnx, graph_inputs, output_axes, session
from runner.exports.openvino import compiled, convert
from runner.models.tokenizer import with_inputs
from runner.records import runs
from runner.speed.measure import load
from runner.system import files
from runner.system.commands import command_parser
from runner.system.errors import UserError, writing
from runner.system.fingerprint import hash_files
from runner.system.process import command, set_up_process
from runner.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.exports.onnx import Inputs, Run

log = logging.getLogger("runner.export")  # __name__ is __main__ on the command line, which logs no progress

RECORD = "export.json"
"""The file of an export with what it was made from and how it was checked."""
EXAMPLES = 8
"""Evaluation examples that an export is checked with."""
_NEEDED = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "packed": (), "transformers": ()}
"""Libraries that each format needs."""


def main(arguments: list[str]) -> None:
    """Export a model.

    Raises:
        UserError: there is no model, a library is missing, the architecture has no such form, the output folder holds
            something else, or the export does not compute what the model does.
    """
    options = parse(arguments)
    set_up_process()
    folder, source = runs.find_model(options.run, Tracking(options.tracking_uri))
    try:
        made = [f"{name} {installed(name).__version__}" for name in _NEEDED[options.to]]
    except Missing as error:
        raise UserError(f"--to {options.to}: {error}") from error
    name = options.to if options.precision == "float32" else f"{options.to}-{options.precision}"
    place = options.output or folder / "exports" / name
    described = {"to": options.to, "precision": options.precision, "made_by": made, "model": fingerprint(source)}
    if exists(place, described, options.force):
        print(f"{place} has this export already")
        return
    model = load(source, "FOLDER_OR_RUN")
    tokenizer = models.load_tokenizer(models.find(str(source), "RUN", models.Model(str(source))))
    read = inspect.signature(model.forward).parameters
    tokenizer = with_inputs(tokenizer, [name for name in tokenizer.model_input_names if name in read])
    inputs = real_inputs(folder, tokenizer, model, options.plugins)
    with writing(place), files.atomic_folder(place) as written:
        described |= write(written, model, tokenizer, inputs, options)
        (written / RECORD).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        save_rest(written, source, model, options.to, described["outputs"])
        difference = described["difference"]
    print(f"{place}: checked, it differs from PyTorch by {difference:.1e} at most (relative)")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("export", "outputs/RUN --to onnx", "outputs/RUN --to packed --precision int8")
    parser.add_argument("run", metavar="FOLDER_OR_RUN", help="folder or MLflow id of a run, or a model's folder")
    parser.add_argument("--to", required=True, help=f"the format: {', '.join(card.FILES)}")
    parser.add_argument("--precision", default="float32", help="of a packed file: float32, bfloat16 or int8")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the folder to write (exports/FORMAT in RUN)")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    parser.add_argument("--tracking-uri", metavar="URI", help="the MLflow store, for an id (mlflow.db here)")
    plugins.add_option(parser)
    options = parser.parse_args(arguments)
    plugins.load(options.plugins or [])
    if options.to not in card.FILES:
        raise UserError(f"--to {options.to}: choose from {', '.join(card.FILES)}")
    if options.precision not in TOLERANCE:
        raise UserError(f"--precision {options.precision}: choose from {', '.join(TOLERANCE)}")
    if options.precision != "float32" and options.to != "packed":
        raise UserError(f"--precision {options.precision}: only --to packed has it; {options.to} is float32")
    return options


def fingerprint(source: Path) -> str:
    """Hash of a model's files."""
    patterns = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "README.md")
    return hash_files(file for pattern in patterns for file in source.glob(pattern))


def exists(place: Path, described: dict[str, Any], force: bool) -> bool:
    """Whether the folder has this very export. Raises UserError if it has something else, unless it may be replaced."""
    if not place.exists() and not place.is_symlink():
        return False
    is_export = place.is_dir() and (place / RECORD).is_file()
    if is_export and files.is_intact(place):
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        if {key: record.get(key) for key in described} == described:
            return True
    if place.is_dir() and not any(place.iterdir()):
        return False
    if not force:
        raise UserError(f"--output {place}: this exists, and is another export or none; --force replaces an export")
    if not is_export:
        raise UserError(f"--output {place}: --force replaces exports only, and this is none; choose another folder")
    return False


def real_inputs(
    folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, modules: Sequence[str] | None
) -> list[Inputs]:
    """Batches of built-in sentences, and of evaluation examples if the folder is a run's and its data can be read.

    Args:
        modules: of `--plugins`, which a task of somebody's own needs.
    """
    inputs = sentences(tokenizer, getattr(model.config, "max_position_embeddings", None) or 512)
    if (folder / "result.json").is_file():
        try:
            run = runs.find(str(folder), Tracking())
            named = {plugins.KEY: f"[{','.join(modules)}]"} if modules is not None else {}
            task = runs.restored(run, named).experiment.dataset
            task = replace(task, max_eval_samples=min(task.max_eval_samples or EXAMPLES, EXAMPLES))
            features = task.features(task.read(train=False).evaluation, tokenizer, None, labels=False)
            names = [name for name in tokenizer.model_input_names if name in features.column_names]
            rows = features.select_columns(names).select(range(min(len(features), EXAMPLES))).to_list()
            log.info("checked with %d evaluation examples of %s", len(rows), run.result["dataset"])
            inputs += batches(tokenizer, rows)
        except UserError as error:
            log.info("checked with built-in sentences alone: %s", error)
    return inputs


def write(
    place: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[Inputs],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Write the graph or the packed weights and the tokenizer, and compare with PyTorch.

    Returns:
        What was cut, the names of inputs and outputs, and the difference.
    """
    to, precision = options.to, options.precision
    file = place / card.FILES[to]
    names, outputs = list(inputs[0]), list(output_axes(model, inputs[0]))
    described: dict[str, Any] = {}
    with exporting(to):
        if to == "packed":
            run: Run = packed.loaded(packed.pack(model, file, precision), precision)
        elif to == "transformers":
            smaller = copy.deepcopy(model)
            described["cut"] = vars(smaller_folder.shrink(smaller))
            smaller.save_pretrained(place)
            run = smaller_folder.outputs_of(load(place, "--to transformers"))
        else:
            smaller = copy.deepcopy(model)
            report = cut(smaller)
            log.info("cut, as it computes nothing: %s", report)
            described["cut"] = vars(report)
            onnx = place / card.FILES["onnx"]
            with quiet():
                export_onnx(smaller, inputs[0], onnx)
                names = graph_inputs(onnx)
                run = session(onnx, 1) if to == "onnx" else compiled(convert(onnx, file), "float32", 1)
            if to != "onnx":
                onnx.unlink()
    difference = check(model, run, inputs, precision, f"--to {to}")
    tokenizer = with_inputs(tokenizer, [name for name in tokenizer.model_input_names if name in names])
    tokenizer.init_kwargs = {
        key: value for key, value in tokenizer.init_kwargs.items() if key not in ("name_or_path", "tokenizer_file")
    } | {"model_input_names": tokenizer.model_input_names}
    tokenizer.save_pretrained(place)
    return described | {"inputs": names, "outputs": outputs, "difference": difference}


@contextmanager
def exporting(to: str) -> Iterator[None]:
    """Explain why an exporter failed."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--to {to}: the exporter refuses this model ({reason}); choose another format") from error


def save_rest(place: Path, source: Path, model: PreTrainedModel, to: str, outputs: Sequence[str]) -> None:
    """Write config.json, which names the labels, unless the export has its own, and the card."""
    kind = type(model).__name__
    values = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [kind]}
    shown = {key: value for key, value in values.items() if key not in ("_name_or_path", "name_or_path", "auto_map")}
    if to != "transformers":
        (place / "config.json").write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    original = source / "README.md"
    text = original.read_text(encoding="utf-8") if original.is_file() else None
    written = card.text(text, f"{source.name}, as {to}", to, outputs, kind)
    (place / "README.md").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    command(main)
