"""Which layers bear pruning: the loss by layer and sparsity, from Hessians of training windows, without training."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning import OBS, NofM, sensitivity
from runner import models
from runner.config.compose import compose_experiment
from runner.stages.checks import plan_of
from runner.stages.prepare import Inputs, resolve
from runner.system import files, ranks, spelling
from runner.system.commands import command_parser
from runner.system.device import device
from runner.system.errors import UserError, writing
from runner.system.process import command, set_up_process
from runner.system.text_tables import aligned

if TYPE_CHECKING:
    from runner.config.experiment import Experiment

log = logging.getLogger("runner.sensitivity")  # __name__ is __main__ here

SPARSITIES = "0.5,0.6,0.7,0.8,0.9"
"""Sparsities of block patterns that are looked at unless others are asked for."""
FORMS = ("png", "svg", "pdf")
"""Formats of the picture."""

Losses = Mapping[str, Mapping[float, float]]
"""Name of the weight -> sparsity -> rise of the loss, in nats a training window."""


_MORE = """
The overrides are those of a run, whose dense model is looked at: that of model.finetuned, or the one in the cache.
Each matrix is pruned alone, its other weights adapted by OBS, and the rise of the loss is estimated to second order.
`criterion=obs` with criterion.samples, .damping and .seed sets the calibration. A picture is written, too.
"""


def main(arguments: list[str]) -> None:
    """Print the loss by layer as a table or JSON, and draw it.

    Raises:
        UserError, PruningError: there is no such model, nothing to prune, or an option makes no sense.
    """
    given = parse(arguments)
    if mistake := spelling.mistake(given.overrides):
        raise UserError(mistake)
    if ranks.world_size() > 1:
        raise UserError("runner.sensitivity runs in one process: leave torchrun or accelerate launch out")
    sparsities = numbers(given.sparsity or SPARSITIES)
    check_output(given.output)
    set_up_process()
    experiment, origin = compose_experiment(given.overrides)
    check(experiment, given.sparsity)
    inputs = resolve(experiment, origin, reuse=False)
    losses, windows = measure(inputs, sparsities)
    labels = origin.labels
    about = f"{labels['model']} on {labels['dataset']}, {labels['pattern']}"
    file = given.output or Path(f"sensitivity-{inputs.name}.png")
    draw(losses, about, file)
    if given.json:
        print(json.dumps({**labels, "windows": windows, "picture": str(file), "layers": entries(losses)}, indent=1))
    else:
        print(f"{about}: rise of the loss if one matrix alone is pruned, in nats a training window")
        print(f"(estimated from {windows} windows)\n\n{table(losses)}\n\n{file}: the same as a picture")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser(
        "sensitivity", "model=tiny dataset=demo pattern=2:4", "model=tiny dataset=demo --sparsity 0.5,0.9",
        more=_MORE,
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a run: model=tiny dataset=demo")
    parser.add_argument("--sparsity", metavar="LIST", help=f"for block patterns, such as 0.5,0.9 ({SPARSITIES})")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the picture: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_intermixed_args(arguments)


def numbers(text: str) -> list[float]:
    """Sparsities from a list with commas."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = [0.0]
    if not all(0 < value < 1 for value in values):
        raise UserError(f"--sparsity {text}: give numbers between 0 and 1 with commas between them, such as 0.5,0.9")
    return values


def check_output(file: Path | None) -> None:
    """Refuse a place for the picture that cannot be written."""
    if file is None:
        return
    if file.suffix.removeprefix(".") not in FORMS:
        raise UserError(f"--output {file}: a picture ends in {', '.join(f'.{form}' for form in FORMS)}")
    if not file.parent.is_dir():
        raise UserError(f"--output {file}: there is no folder {file.parent}")


def check(experiment: Experiment, sparsity: str | None) -> None:
    """Refuse what has no sensitivity, before anything is loaded."""
    if not experiment.prune:
        raise UserError("prune=false: there is no pattern to look at; leave it out")
    if experiment.model.sparse:
        raise UserError(f"model.sparse={experiment.model.sparse}: the dense model is looked at; leave model.sparse out")
    others = any(layer.pattern for layer in experiment.allocation.layers.values())
    if not experiment.pattern.prunes and not others:
        raise UserError(f"pattern={experiment.pattern} prunes nothing; choose one that does, such as pattern=4x1")
    if sparsity and isinstance(experiment.pattern, NofM) and not others:
        raise UserError(f"--sparsity {sparsity}: {experiment.pattern} has one sparsity, its own; leave the option out")


def measure(inputs: Inputs, sparsities: list[float]) -> tuple[dict[str, dict[float, float]], int]:
    """The losses of the dense model's layers, and the number of windows that they are from."""
    from runner.training.calibration import calibration

    experiment, data = inputs.experiment, inputs.data
    assert data is not None
    net: Any = models.load(experiment.dataset.architecture, dense_model(inputs))
    models.freeze(net, experiment.model.frozen)
    net.to(device())
    plan = plan_of(experiment, net)
    plan.warn()
    criterion = experiment.criterion if isinstance(experiment.criterion, OBS) else OBS()
    windows = min(criterion.samples, len(data.features))
    read = calibration(criterion, net, data, experiment.train.precision)
    assert read is not None
    sums = sensitivity(read, plan, sparsities, criterion)
    if unused := [name for name, _, _ in plan.pruned() if name not in sums]:
        log.warning("%s (and %d more): the loss does not depend on it", unused[0], len(unused) - 1)
    if not sums:
        raise UserError("the loss depends on no layer that the pattern prunes")
    return {name: {at: loss / windows for at, loss in of_layer.items()} for name, of_layer in sums.items()}, windows


def dense_model(inputs: Inputs) -> models.Checkpoint:
    """The fine-tuned dense model: given, or in the cache."""
    if inputs.experiment.model.finetuned:
        return inputs.sources.base
    if not files.is_intact(inputs.dense_folder):
        typed = shlex.join(["python", "-m", "runner", *inputs.origin.overrides, "prune=false"])
        raise UserError(
            f"the dense model is not in {inputs.experiment.cache_dir}, and nothing is trained here: name a fine-tuned "
            f"one with model.finetuned=PLACE, or make it first: {typed}"
        )
    return models.find(str(inputs.dense_folder), "the dense model", inputs.experiment.model)


def entries(losses: Losses) -> list[dict[str, Any]]:
    """The losses as plain values, in the order of the layers."""
    from results.layers import in_order, places
    from results.runs import natural

    at = places(losses)
    kinds = in_order(kind for _, kind in at.values())
    ordered = sorted(losses, key=lambda name: (natural(at[name][0]), kinds.index(at[name][1])))
    return [
        {"name": name, "layer": at[name][0], "kind": at[name][1],
         "losses": {f"{sparsity:g}": loss for sparsity, loss in losses[name].items()}}
        for name in ordered
    ]  # fmt: skip


def table(losses: Losses) -> str:
    """The losses as text, in the order of the layers, with their sums."""
    rows = entries(losses)
    heads = [f"{at:g}" for at in sorted({at for of_layer in losses.values() for at in of_layer})]
    cells = [[row["layer"] or "-", row["kind"], *(_number(row["losses"].get(head)) for head in heads)] for row in rows]
    sums = [_number(sum(row["losses"].get(head, 0.0) for row in rows)) for head in heads]
    lines = [["layer", "kind", *(f"{100 * float(head):g}%" for head in heads)], *cells, ["all", "", *sums]]
    return "\n".join(aligned(lines, right=range(2, len(lines[0]))))


def _number(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.2g}" if loss < 0.001 else f"{loss:.4f}"


def draw(losses: Losses, about: str, file: Path) -> None:
    """Write the picture."""
    from results.sensitivity import picture

    content = picture(losses, about, file.suffix.removeprefix("."))
    with writing(file):
        files.atomic_write(file, content)


if __name__ == "__main__":
    command(main)
