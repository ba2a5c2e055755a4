"""Score a model on a dataset.

python -m runner.evaluate FOLDER_OR_ID [dataset=squad] [dataset.max_eval_samples=1000] ...
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner import models
from runner.config.compose import compose_experiment
from runner.config.refusals import quoted
from runner.models.vocabulary import check_embeddings, check_reading
from runner.system.errors import UserError
from runner.system.process import command, set_up_process
from runner.training.inference import score


def main(arguments: list[str]) -> dict[str, Any]:
    """Compose the configuration for this model, score it, print and return the metrics. Also printed is what a setting
    chosen on these examples, such as SQuAD v2.0's threshold, would give: use it on a hold-out of train only."""
    is_override = arguments and "=" in arguments[0] and not Path(arguments[0]).exists()
    if not arguments or arguments[0].startswith("-") or is_override:
        raise UserError("usage: python -m runner.evaluate FOLDER_OR_ID [dataset=NAME] [dataset.KEY=VALUE] ...")
    path, *overrides = arguments
    experiment, _ = compose_experiment(["model=hub", f"model.path={quoted(path)}", *overrides])
    set_up_process()
    task = experiment.dataset
    checkpoint = models.find(experiment.model.path, "model", experiment.model, experiment.model.revision)
    net = models.skeleton(task.architecture, checkpoint.config)
    models.check_positions(net, checkpoint, task.max_seq_length)
    models.check_weights(task.architecture, checkpoint)
    check_embeddings(checkpoint, net)
    examples = task.read(train=False)
    task.configure(checkpoint.config, examples.evaluation, f"model {checkpoint.path}")
    check_reading(checkpoint, task, examples.evaluation, "evaluation")
    tokenizer = models.load_tokenizer(checkpoint)
    model = models.load(task.architecture, checkpoint)
    scores = score(model, tokenizer, task, examples.evaluation, Path(experiment.cache_dir) / "features", "Scoring")
    shown = {"model": path, "examples": len(examples.evaluation), **scores.metrics}
    print(json.dumps(shown | ({"if_chosen_on_these_examples": scores.choosing} if scores.choosing else {}), indent=2))
    return scores.metrics


if __name__ == "__main__":
    command(main)
