"""The text of `prune-distill --help`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from runner.system.commands import COMMANDS

WIDTH = 80
_MARGIN = 18

_USAGE = """\
Prune and distil a Hugging Face encoder, and measure what a sparsity pattern
costs: fine-tune it dense, prune it while it learns from the dense model, score
both, and log the run for the results table.

Usage
  prune-distill GROUP=OPTION ... KEY=VALUE ...    a run
  prune-distill -m GROUP=A,B ... KEY=1,2 ...      a sweep of all combinations
  prune-distill COMMAND ...                       another command, see below
  `python -m runner` is the same as `prune-distill`.

Examples
  prune-distill model=tiny dataset=demo pattern=4x1        needs no network
  prune-distill -m model=bert-mini pattern=dense,4x1,2:4 seed=0,1,2
  prune-distill model=bert-large pattern=4x1 dry_run=true  what it would do
  prune-distill model=minilm-l6 dataset=classify dataset.path=FILE \\
      dataset.text=COLUMN dataset.label=COLUMN pattern=2:4
  prune-distill results                                    the table of all runs
"""

GROUPS = {
    "model": "the encoder, and which of its layers may be pruned; hub takes model.path=ID_OR_FOLDER",
    "dataset": "the examples, the kind of task and the metric; classify, tag and span take your files",
    "pattern": "which weights are pruned together, and how many of them",
    "criterion": "how much a weight matters",
    "allocation": "one ranking over all layers, or the target in each",
    "schedule": "when the sparsity rises during the training",
    "distill": "what the pruned model learns from its teacher",
    "regularizer": "what pulls weights towards zero between the mask updates",
    "benchmark": "cpu: time the saved model on this CPU, for the table",
    "recipe": "numbers of the trainings; the pair of dataset and model chooses it",
    "experiment": "a whole published row",
    "hparams_search": "a search for hyperparameters, with -m",
    "debug": "default: a few steps through all stages, to see that it works",
}
"""Group -> what its options decide."""

_FLAGS = {
    "dry_run=true": "show what a run or a sweep would do: layers, steps, time, memory, disk",
    "--cfg job": "print the configuration that would run; with --resolve, its values",
    "--config-dir D": "read further options of the groups from the folder D",
    "plugins=[M]": "take criteria, schedules, patterns and tasks of your own from the module M",
    "--version": "the version of prune-distill",
    "--hydra-help": "flags of Hydra, which composes the configuration",
    "-sc install=bash": 'tab completion: eval "$(prune-distill -sc install=bash)"; also zsh and fish',
}


def text(options: Callable[[str], Sequence[str]]) -> str:
    """The help.

    Args:
        options: the names of a group's options.
    """
    parts = [_USAGE, "Groups: GROUP=OPTION chooses, GROUP.KEY=VALUE changes a value in it"]
    for group, sentence in GROUPS.items():
        names = sorted(options(group))
        names += ["any NxM and N:M"] if group == "pattern" else []
        parts += [_entry(group, sentence), _wrapped(", ".join(names), " " * _MARGIN)]
    parts += ["\nFlags", *(_entry(flag, sentence) for flag, sentence in _FLAGS.items())]
    parts += ["\nCommands: prune-distill COMMAND --help has the options of each"]
    parts += [_entry(name, sentence) for name, (_, sentence) in COMMANDS.items()]
    return "\n".join([*parts, "\ndocs/guide.md is the guide; docs/reference.md has every key."])


def _entry(name: str, sentence: str) -> str:
    start = f"  {name}"
    return _wrapped(sentence, f"{start:<{_MARGIN - 1}} " if len(start) < _MARGIN else f"{start}  ")


def _wrapped(words: str, start: str) -> str:
    return textwrap.fill(words, WIDTH, initial_indent=start, subsequent_indent=" " * _MARGIN, break_on_hyphens=False)
